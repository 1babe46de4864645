#include "peer/control_server.h"

#include <fmt/core.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <asio/local/stream_protocol.hpp>
#include <asio/steady_timer.hpp>
#include <cerrno>
#include <set>

#include "base/control_client.h"
#include "base/lock_file.h"
#include "peer/codec.h"
#include "peer/spawn.h"
#include "peer/streams.h"

namespace banana::rpc {

namespace {

using Local = asio::local::stream_protocol;
constexpr milliseconds accept_pause{100};  // after an error such as EMFILE, which does not go away by asking again
constexpr int backlog = 64;

Error explain(const asio::error_code& code) { return {Errc::unreachable, code.message()}; }

// True: somebody answers at `path`. A socket file that nobody listens on refuses.
bool is_served(const sockaddr_un& address) {
    const Fd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!probe) return false;
    if (::connect(probe.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) return true;
    return errno == EAGAIN;  // it listens, and its backlog is full
}

Result<Fd> listen_at(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.empty() || path.size() >= sizeof address.sun_path)
        return Error(Errc::invalid, fmt::format("listen on '{}': a socket's path has 1 to {} bytes", path,
                                                sizeof address.sun_path - 1));
    path.copy(address.sun_path, path.size());
    const std::string what = fmt::format("listen on {}", path);
    struct stat info {};
    if (::lstat(path.c_str(), &info) == 0) {
        if (!S_ISSOCK(info.st_mode)) return Error(Errc::exists, what + ": that is not a socket");
        if (is_served(address)) return Error(Errc::exists, what + ": another daemon serves it");
        if (::unlink(path.c_str()) != 0) return errno_error(errno, what);
    }
    Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!fd) return errno_error(errno, what);
    // Linux gives the socket file the mode of the unbound socket, so it is never open to others, not even for a moment.
    if (::fchmod(fd.get(), 0600) != 0 ||
        ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
        ::chmod(path.c_str(), 0600) != 0 || ::listen(fd.get(), backlog) != 0)
        return errno_error(errno, what);
    return fd;
}

}  // namespace

struct ControlServer::Impl : std::enable_shared_from_this<ControlServer::Impl> {
    Impl(asio::io_context& i, ControlOptions o, Dispatcher d)
        : io(i), options(std::move(o)), dispatcher(std::move(d)), acceptor(i), pause(i) {}

    asio::io_context& io;
    ControlOptions options;
    Dispatcher dispatcher;
    asio::basic_socket_acceptor<Local> acceptor;
    asio::steady_timer pause;
    Fd lock;
    bool running = false;
    std::set<std::shared_ptr<Connection>> open;

    asio::awaitable<void> accept_loop(std::shared_ptr<Impl> self);
    void admit(Local::socket socket);
};

ControlServer::ControlServer(asio::io_context& io, ControlOptions options, Dispatcher dispatcher)
    : impl_(std::make_shared<Impl>(io, std::move(options), std::move(dispatcher))) {}
ControlServer::~ControlServer() { stop(); }

Status ControlServer::start() {
    TRY_SET(impl_->lock, lock_beside(impl_->options.path));
    auto fd = listen_at(impl_->options.path);
    if (!fd) {
        impl_->lock.reset();
        return fd.error();
    }
    impl_->acceptor.assign(Local(), fd->release());
    impl_->running = true;
    spawn(impl_->io.get_executor(), impl_->accept_loop(impl_), "control socket");
    return {};
}

asio::awaitable<void> ControlServer::Impl::accept_loop(std::shared_ptr<Impl> self) {
    while (self->running) {
        asio::error_code code;
        Local::socket socket = co_await acceptor.async_accept(asio::redirect_error(asio::use_awaitable, code));
        if (!running) co_return;
        if (!code) {
            admit(std::move(socket));
            continue;
        }
        log::warning("control socket {}: accept: {}", options.path, code.message());
        pause.expires_after(accept_pause);
        co_await pause.async_wait(asio::redirect_error(asio::use_awaitable, code));
    }
}

void ControlServer::Impl::admit(Local::socket socket) {
    ucred who{};
    socklen_t size = sizeof who;
    if (::getsockopt(socket.native_handle(), SOL_SOCKET, SO_PEERCRED, &who, &size) != 0) return;
    Context context;
    context.role = "control";
    context.is_control = true;
    context.from = fmt::format("control pid {}", who.pid);
    std::optional<Error> refusal;
    if (who.uid != 0 && who.uid != ::geteuid())
        refusal = Error(Errc::refused, fmt::format("user {} may not control this daemon", who.uid));
    else if (open.size() >= options.max_connections)
        refusal = Error(Errc::busy, fmt::format("{} control connections are open", open.size()));
    if (refusal) {
        const std::string line = encode_error({}, *refusal);
        ::send(socket.native_handle(), line.data(), line.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
        return;
    }
    Limits limits;
    limits.idle_timeout = options.idle_timeout;
    limits.max_answer = control_answer_max;
    limits.max_queued += control_answer_max;
    auto stream = std::make_unique<AsioStream<Local::socket>>(std::move(socket), explain);
    // The set keeps it while it is open; the weak pointers keep the end of one from reviving the other.
    auto link = std::make_shared<std::weak_ptr<Connection>>();
    const std::weak_ptr<Impl> weak = weak_from_this();
    auto connection =
        Connection::start(std::move(stream), dispatcher, std::move(context), limits, [weak, link](const Error& why) {
            const auto self = weak.lock();
            const auto ended = link->lock();
            if (self && ended) self->open.erase(ended);
            log::debug("control connection closed: {}", why.message());
        });
    *link = connection;
    open.insert(std::move(connection));
}

void ControlServer::stop() {
    if (!std::exchange(impl_->running, false)) return;
    asio::error_code ignored;
    impl_->acceptor.close(ignored);
    impl_->pause.cancel();
    for (const auto& connection : std::exchange(impl_->open, {}))
        connection->close(Error(Errc::unreachable, "the daemon is stopping"));
    ::unlink(impl_->options.path.c_str());
    impl_->lock.reset();
}

size_t ControlServer::connections() const { return impl_->open.size(); }

}  // namespace banana::rpc
