#include "base/control_client.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "base/clock.h"

namespace banana::rpc {

namespace {

using std::chrono::milliseconds;

int64_t deadline_in(milliseconds timeout) { return monotonic_ns() + timeout.count() * 1'000'000; }

// Waits for `events`; Errc::timeout once the deadline has passed.
Status wait_for(int fd, short events, int64_t deadline_ns, const std::string& what) {
    while (true) {
        const int64_t left_ms = (deadline_ns - monotonic_ns() + 999'999) / 1'000'000;
        if (left_ms <= 0) return Error(Errc::timeout, what + ": no answer in time (is it hung, or busy?)");
        pollfd entry{fd, events, 0};
        const int n = ::poll(&entry, 1, static_cast<int>(std::min<int64_t>(left_ms, 1'000'000)));
        if (n > 0) return {};
        if (n < 0 && errno != EINTR) return errno_error(errno, what);
    }
}

Error not_reachable(const std::string& path, const std::string& cause) {
    return {Errc::unreachable, fmt::format("connect to bananad at {}: {}", path, cause)};
}

Result<Json> answer_of(const Json& reply) {
    if (!reply.has("error")) return reply.get("result");
    const Json error = reply.get("error");
    return Error(errc_from_name(error.get("data").get("code").as_string()),
                 error.get("message").as_string("an error without text"));
}

}  // namespace

Result<BlockingClient> BlockingClient::connect(const std::string& path, milliseconds timeout) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.empty() || path.size() >= sizeof address.sun_path)
        return Error(Errc::invalid, fmt::format("connect to bananad at '{}': not a socket path", path));
    std::copy(path.begin(), path.end(), address.sun_path);
    Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!fd) return errno_error(errno, "make a UNIX socket");
    // A full backlog cannot be polled for; the send time-out bounds connect() on UNIX sockets.
    const int64_t us = std::max<int64_t>(timeout.count(), 1) * 1000;
    const timeval limit{us / 1'000'000, us % 1'000'000};
    ::setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
        if (errno == EAGAIN || errno == EINTR)
            return Error(Errc::timeout, fmt::format("connect to bananad at {}: it takes no connections", path));
        if (errno == EACCES || errno == EPERM) {
            const Error why = errno_error(errno, fmt::format("connect to bananad at {}", path));
            return Error(why.code(), why.message() + "; only root may ask it (sudo)");
        }
        return not_reachable(path, fmt::format("{} (is it running?)", std::strerror(errno)));
    }
    const int flags = ::fcntl(fd.get(), F_GETFL);
    if (::fcntl(fd.get(), F_SETFL, flags | O_NONBLOCK) != 0) return errno_error(errno, "make a socket non-blocking");
    return BlockingClient(std::move(fd), path);
}

Status BlockingClient::send_all(const std::string& line, int64_t deadline_ns) {
    size_t done = 0;
    while (done < line.size()) {
        const ssize_t n = ::send(fd_.get(), line.data() + done, line.size() - done, MSG_NOSIGNAL);
        if (n >= 0) {
            done += static_cast<size_t>(n);
        } else if (errno == EAGAIN) {
            TRY(wait_for(fd_.get(), POLLOUT, deadline_ns, "ask bananad"));
        } else if (errno == EPIPE || errno == ECONNRESET) {
            return {};  // it has hung up; what it said before can still be read
        } else if (errno != EINTR) {
            return errno_error(errno, "ask bananad");
        }
    }
    return {};
}

Result<std::string> BlockingClient::read_line(int64_t deadline_ns) {
    std::array<char, 16384> chunk;
    size_t scanned = 0;
    while (true) {
        if (const size_t end = buffer_.find('\n', scanned); end != std::string::npos) {
            std::string line = buffer_.substr(0, end);
            buffer_.erase(0, end + 1);
            return line;
        }
        scanned = buffer_.size();
        if (scanned > control_answer_max) return Error("bananad's answer is too long");
        const ssize_t n = ::recv(fd_.get(), chunk.data(), chunk.size(), 0);
        if (n > 0) {
            buffer_.append(chunk.data(), static_cast<size_t>(n));
        } else if (n == 0 || errno == ECONNRESET) {
            return not_reachable(path_, "it closed the connection");
        } else if (errno == EAGAIN) {
            TRY(wait_for(fd_.get(), POLLIN, deadline_ns, "ask bananad"));
        } else if (errno != EINTR) {
            return errno_error(errno, "ask bananad");
        }
    }
}

Result<Json> BlockingClient::call(const std::string& method, const Json& params, milliseconds timeout) {
    const int64_t deadline = deadline_in(timeout);
    const int64_t id = next_id_++;
    Json request = Json::object({{"jsonrpc", "2.0"}, {"id", id}, {"method", method}});
    if (!params.is_null()) request.set("params", params);
    const std::string line = request.dump() + '\n';
    if (line.size() > json_max_bytes)
        return Error(Errc::invalid, fmt::format("ask bananad '{}': a request of {} bytes", method, line.size()));
    if (!fd_) return not_reachable(path_, "an earlier request was cut off");
    if (auto sent = send_all(line, deadline); !sent) {
        fd_.reset();  // half a request may be out: nothing can follow it
        return sent.error();
    }
    while (true) {
        TRY_SET(const std::string text, read_line(deadline));
        auto reply = Json::parse(text, control_answer_max);
        if (!reply) return reply.error().context("bananad's answer");
        const bool answer = reply->has("result") || reply->has("error");
        // An error without an id: the daemon could not read the request, or takes no more connections.
        if (answer && (reply->get("id").is_null() || reply->get("id").as_int(-1) == id)) return answer_of(*reply);
    }
}

}  // namespace banana::rpc
