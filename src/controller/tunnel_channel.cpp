#include "controller/tunnel_channel.h"

#include <fmt/core.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <asio/redirect_error.hpp>
#include <asio/use_awaitable.hpp>
#include <cstring>

#include "base/bytes.h"
#include "base/clock.h"
#include "tunnel/control.h"

namespace banana::controller {

namespace {

constexpr int reads_at_once = 64;  // messages, before others get a turn

Result<Fd> connect_socket(const std::string& path) {
    const std::string what = "connect to " + path;
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.size() >= sizeof address.sun_path) return Error(Errc::invalid, what + ": the path is too long");
    std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
    Fd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (!socket) return errno_error(errno, what);
    // EAGAIN, too: its backlog is full, as of one that does not accept.
    if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) < 0)
        return errno_error(errno, what);
    return socket;
}

// Rooms for the descriptors' control message, aligned as it must be.
struct FdMessage {
    alignas(cmsghdr) char bytes[CMSG_SPACE(tunnel::control_fds_max * sizeof(int))] = {};

    void put(msghdr& message, const std::vector<Fd>& fds) {
        if (fds.empty()) return;
        message.msg_control = bytes;
        message.msg_controllen = CMSG_SPACE(fds.size() * sizeof(int));
        cmsghdr* header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
        for (size_t i = 0; i < fds.size(); ++i) {
            const int fd = fds[i].get();
            std::memcpy(CMSG_DATA(header) + i * sizeof(int), &fd, sizeof(int));
        }
    }
};

}  // namespace

Result<std::shared_ptr<TunnelChannel>> TunnelChannel::connect(asio::io_context& io, const std::string& path,
                                                              std::chrono::milliseconds patience) {
    TRY_SET(Fd socket, connect_socket(path));
    return std::make_shared<TunnelChannel>(io, std::move(socket), patience);
}

TunnelChannel::TunnelChannel(asio::io_context& io, Fd socket, std::chrono::milliseconds patience)
    : io_(io), descriptor_(io), watchdog_(io), patience_(patience), buffer_(tunnel::control_max) {
    descriptor_.assign(socket.release());
}

void TunnelChannel::start(std::function<void(const Json&)> on_event, std::function<void(const Error&)> on_closed) {
    on_event_ = std::move(on_event);
    on_closed_ = std::move(on_closed);
    wait_readable();
}

pid_t TunnelChannel::pid() const {
    ucred peer{};
    socklen_t size = sizeof peer;
    auto& descriptor = const_cast<asio::posix::stream_descriptor&>(descriptor_);
    if (closed_ || ::getsockopt(descriptor.native_handle(), SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0) return 0;
    return peer.pid;
}

void TunnelChannel::close() {
    on_event_ = nullptr;
    on_closed_ = nullptr;
    fail(Error(Errc::unreachable, "the connection to banana-tunneld was closed"));
}

void TunnelChannel::fail(const Error& why) {
    if (closed_) return;
    closed_ = true;
    const auto self = shared_from_this();  // the callbacks may let go of us
    asio::error_code ignored;
    descriptor_.close(ignored);
    watchdog_.cancel();
    made_.clear();
    for (auto* queue : {&unanswered_, &queued_}) {
        const auto all = std::exchange(*queue, {});
        for (const auto& request : all) request.answer(Error(Errc::unreachable, why.message()));
    }
    if (const auto closed = std::exchange(on_closed_, nullptr)) closed(why);
    on_event_ = nullptr;
}

void TunnelChannel::request(const std::string& method, const Json& params, Answer answer, MakeFds fds) {
    if (closed_) return answer(Error(Errc::unreachable, "banana-tunneld is not connected"));
    const int64_t id = ++last_id_;
    const Json message = Json::object({{"id", id}, {"method", method}, {"params", params}});
    std::string text = message.dump();
    if (text.size() > tunnel::control_max)
        return answer(Error(Errc::invalid, fmt::format("{}: {} B are more than a message takes", method, text.size())));
    queued_.push_back({id, method, std::move(text), std::move(answer), std::move(fds)});
    send_queued();
}

void TunnelChannel::send_queued() {
    if (sending_ || waits_writable_) return;  // an answer that asks for more
    sending_ = true;
    while (!closed_ && !queued_.empty() && unanswered_.size() < window) {
        const Sent sent = send_one(queued_.front());
        if (sent != Sent::done) break;
    }
    sending_ = false;
}

TunnelChannel::Sent TunnelChannel::send_one(Request& request) {
    if (request.fds) {
        auto made = std::exchange(request.fds, nullptr)();
        if (!made || made->size() > tunnel::control_fds_max) {
            const Request refused = std::move(request);
            queued_.pop_front();
            refused.answer(made ? Error(Errc::invalid, refused.method + ": too many descriptors") : made.error());
            return Sent::done;
        }
        made_ = std::move(*made);
    }
    iovec part{request.text.data(), request.text.size()};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    FdMessage rights;
    rights.put(message, made_);
    ssize_t sent = 0;
    do sent = ::sendmsg(descriptor_.native_handle(), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    if (sent < 0 && errno == EAGAIN) {
        waits_writable_ = true;
        descriptor_.async_wait(asio::posix::stream_descriptor::wait_write,
                               [self = shared_from_this()](const asio::error_code& error) {
                                   self->waits_writable_ = false;
                                   if (!error) self->send_queued();
                               });
        watch();  // of one that does not even read
        return Sent::blocked;
    }
    if (sent < 0) {
        fail(errno_error(errno, "send to banana-tunneld"));
        return Sent::failed;
    }
    made_.clear();
    request.sent_ns = monotonic_ns();
    request.text.clear();
    unanswered_.push_back(std::move(request));
    queued_.pop_front();
    if (unanswered_.size() == 1) watch();
    return Sent::done;
}

// Looks after the oldest unanswered request.
void TunnelChannel::watch() {
    const int64_t since = unanswered_.empty() ? monotonic_ns() : unanswered_.front().sent_ns;
    const auto left = std::chrono::nanoseconds(patience_) - std::chrono::nanoseconds(monotonic_ns() - since);
    watchdog_.expires_after(left);
    watchdog_.async_wait([self = shared_from_this(), since](const asio::error_code& error) {
        if (error || self->closed_) return;
        const bool stuck =
            self->unanswered_.empty() ? self->waits_writable_ : self->unanswered_.front().sent_ns <= since;
        if (stuck)
            return self->fail(Error(Errc::timeout, fmt::format("banana-tunneld (process {}) has not answered for {} ms",
                                                               self->pid(), self->patience_.count())));
        if (!self->unanswered_.empty()) self->watch();
    });
}

void TunnelChannel::wait_readable() {
    descriptor_.async_wait(asio::posix::stream_descriptor::wait_read,
                           [self = shared_from_this()](const asio::error_code& error) {
                               if (error || self->closed_) return;
                               self->read_all();
                               if (!self->closed_) self->wait_readable();
                           });
}

void TunnelChannel::read_all() {
    for (int i = 0; i < reads_at_once && !closed_; ++i) {
        iovec part{buffer_.data(), buffer_.size()};
        msghdr message{};
        message.msg_iov = &part;
        message.msg_iovlen = 1;
        const ssize_t got = ::recvmsg(descriptor_.native_handle(), &message, MSG_DONTWAIT);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && errno == EAGAIN) return;
        if (got < 0) return fail(errno_error(errno, "read from banana-tunneld"));
        if (got == 0) return fail(Error(Errc::unreachable, "banana-tunneld ended the connection"));
        if ((message.msg_flags & MSG_TRUNC) != 0)
            return fail(Error(Errc::invalid, "banana-tunneld sent a message that is too long"));
        received({buffer_.data(), static_cast<size_t>(got)});
    }
}

void TunnelChannel::received(std::string_view text) {
    const auto message = Json::parse(text, tunnel::control_max);
    if (!message || !message->is_object())
        return fail(Error(Errc::invalid, "banana-tunneld sent what is no message: " + printable(text, 60)));
    if (message->has("event")) {
        if (on_event_) on_event_(*message);
        return;
    }
    if (unanswered_.empty() || message->get("id").as_int(-1) != unanswered_.front().id)
        return fail(Error(Errc::invalid, "banana-tunneld answered what was not asked: " + printable(text, 60)));
    const Request request = std::move(unanswered_.front());
    unanswered_.pop_front();
    if (const Json error = message->get("error"); !error.is_null())
        request.answer(Error(errc_from_name(error.get("code").as_string()),
                             fmt::format("{}: {}", request.method, printable(error.get("message").as_string()))));
    else
        request.answer(message->get("result"));
    send_queued();
}

asio::awaitable<Result<Json>> TunnelChannel::call(std::shared_ptr<TunnelChannel> self, std::string method, Json params,
                                                  MakeFds fds) {
    struct Reply {
        explicit Reply(asio::io_context& io) : timer(io, asio::steady_timer::time_point::max()) {}
        asio::steady_timer timer;
        std::optional<Result<Json>> result;
    };
    const auto reply = std::make_shared<Reply>(self->io_);
    self->request(
        method, params,
        [reply](const Result<Json>& result) {
            reply->result = result;
            reply->timer.cancel();
        },
        std::move(fds));
    asio::error_code ignored;
    while (!reply->result) co_await reply->timer.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
    co_return *reply->result;
}

}  // namespace banana::controller
