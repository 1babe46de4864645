#include "qmp/unix_transport.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "base/clock.h"

namespace banana::qmp {

namespace {
// One readable event handles at most this much, so that a talkative QEMU cannot starve the loop.
constexpr int reads_per_turn = 16;
constexpr size_t read_bytes = 16384;

int64_t deadline_after(Milliseconds timeout) { return monotonic_ns() + timeout.count() * 1'000'000; }

int remaining_ms(int64_t deadline) {
    const int64_t left = deadline - monotonic_ns();
    return left <= 0 ? 0 : static_cast<int>(std::min<int64_t>(left / 1'000'000 + 1, INT32_MAX));
}
}  // namespace

UnixTransport::UnixTransport(Fd socket, const std::string& name, Limits limits)
    : socket_(std::move(socket)), session_(name, limits) {}

UnixTransport::~UnixTransport() = default;

Result<std::unique_ptr<UnixTransport>> UnixTransport::connect(const std::string& path, Limits limits) {
    const std::string what = "connect to QMP socket " + path;
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.size() >= sizeof(address.sun_path)) return errno_error(ENAMETOOLONG, what);
    std::memcpy(address.sun_path, path.c_str(), path.size());
    Fd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!socket) return errno_error(errno, what);
    if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) < 0)
        return errno_error(errno, what);
    return adopt(std::move(socket), path, limits);
}

Result<std::unique_ptr<UnixTransport>> UnixTransport::adopt(Fd socket, const std::string& name, Limits limits) {
    const int flags = fcntl(socket.get(), F_GETFL);
    if (flags < 0 || fcntl(socket.get(), F_SETFL, flags | O_NONBLOCK) < 0)
        return errno_error(errno, "make QMP socket " + name + " non-blocking");
    return std::unique_ptr<UnixTransport>(new UnixTransport(std::move(socket), name, limits));
}

void UnixTransport::execute(const std::string& command, const Json& arguments, Reply reply) {
    session_.execute(command, arguments, std::move(reply));
    // A failure to write has closed the session and thereby answered the command.
    (void)flush();
}

Status UnixTransport::end(const Error& reason) {
    socket_.reset();
    unsent_.clear();
    session_.close(reason);
    return *session_.closed_because();
}

Status UnixTransport::flush() {
    unsent_ += session_.take_output();
    return write_some();
}

Status UnixTransport::write_some() {
    while (!unsent_.empty()) {
        const ssize_t sent = ::send(socket_.get(), unsent_.data(), unsent_.size(), MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) continue;
        if (sent < 0 && errno == EAGAIN) return {};
        if (sent < 0 && (errno == EPIPE || errno == ECONNRESET)) {
            // The reason may still stand in the receive buffer; reading finds it, or the end.
            unsent_.clear();
            return {};
        }
        if (sent < 0) return end(errno_error(errno, "send"));
        unsent_.erase(0, static_cast<size_t>(sent));
    }
    return {};
}

Status UnixTransport::read_some() {
    std::array<char, read_bytes> buffer;
    for (int turn = 0; turn < reads_per_turn; turn++) {
        const ssize_t got = ::recv(socket_.get(), buffer.data(), buffer.size(), 0);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && errno == EAGAIN) return {};
        if (got == 0 || (got < 0 && errno == ECONNRESET))
            return end(Error(Errc::unreachable, "QEMU closed the connection"));
        if (got < 0) return end(errno_error(errno, "receive"));
        if (auto fed = session_.feed({buffer.data(), static_cast<size_t>(got)}); !fed) return end(fed.error());
        TRY(flush());
    }
    return {};
}

Status UnixTransport::on_ready() {
    if (session_.state() == State::closed) return end(*session_.closed_because());
    TRY(flush());
    return read_some();
}

Status UnixTransport::wait_input(Milliseconds timeout) {
    if (session_.state() == State::closed) return end(*session_.closed_because());
    TRY(flush());
    pollfd entry{.fd = socket_.get(), .events = POLLIN, .revents = 0};
    if (wants_write()) entry.events |= POLLOUT;
    const int ready = poll(&entry, 1, remaining_ms(deadline_after(timeout)));
    if (ready < 0 && errno != EINTR) return end(errno_error(errno, "poll"));
    if (ready == 0) return Error(Errc::timeout, fmt::format("no word from QEMU within {} ms", timeout.count()));
    return on_ready();
}

Status UnixTransport::wait_ready(Milliseconds timeout) {
    const int64_t deadline = deadline_after(timeout);
    while (session_.state() != State::ready) {
        TRY(wait_input(Milliseconds(remaining_ms(deadline))));
        if (session_.state() != State::ready && monotonic_ns() >= deadline)
            return Error(Errc::timeout, fmt::format("QEMU was not ready within {} ms", timeout.count()));
    }
    return {};
}

Result<Json> UnixTransport::call(const std::string& command, const Json& arguments, Milliseconds timeout) {
    const int64_t deadline = deadline_after(timeout);
    std::optional<Result<Json>> answer;
    const int64_t id = session_.execute(command, arguments, [&answer](Result<Json> result) { answer = result; });
    while (!answer) {
        auto waited = wait_input(Milliseconds(remaining_ms(deadline)));
        // Events without end are no reply.
        if (waited && monotonic_ns() >= deadline) waited = Error(Errc::timeout, "no reply");
        if (answer || waited) continue;
        // The callback refers to this frame: it must be gone before we are.
        session_.cancel(id);
        if (waited.error().code() != Errc::timeout) return waited.error();
        return Error(Errc::timeout, fmt::format("QMP {}: no reply within {} ms", command, timeout.count()));
    }
    return *answer;
}

}  // namespace banana::qmp
