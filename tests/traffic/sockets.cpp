#include "sockets.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <time.h>

#include <cerrno>

namespace traffic {

namespace {
constexpr int64_t kSecond = 1'000'000'000;
constexpr int kReceiveBuffer = 8 << 20;  // a guest that was stopped reads what was held for it in one go
constexpr size_t kMaxLine = 4096;
}  // namespace

int64_t now_ns() {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * kSecond + now.tv_nsec;
}

void sleep_until_ns(int64_t deadline_ns) {
    timespec until{deadline_ns / kSecond, deadline_ns % kSecond};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr) == EINTR) continue;
}

std::optional<sockaddr_in> parse_address(const std::string& text, uint16_t port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    if (inet_pton(AF_INET, text.c_str(), &address.sin_addr) != 1) return std::nullopt;
    return address;
}

std::string to_string(const sockaddr_in& address) {
    char text[INET_ADDRSTRLEN] = "?";
    inet_ntop(AF_INET, &address.sin_addr, text, sizeof text);
    return std::string(text) + ":" + std::to_string(ntohs(address.sin_port));
}

static Fd bound(int type, uint16_t port) {
    Fd fd(socket(AF_INET, type | SOCK_CLOEXEC, 0));
    if (!fd) return fd;
    int one = 1;
    // UDP ports are never shared: two servers on one would each count a part of the stream.
    if (type == SOCK_STREAM) setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    sockaddr_in any{};
    any.sin_family = AF_INET;
    any.sin_port = htons(port);
    if (bind(fd.get(), reinterpret_cast<sockaddr*>(&any), sizeof any) < 0) fd.reset();
    return fd;
}

Fd udp_socket(uint16_t port) {
    Fd fd = bound(SOCK_DGRAM, port);
    int size = kReceiveBuffer;
    if (fd && setsockopt(fd.get(), SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size) < 0)
        setsockopt(fd.get(), SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    return fd;
}

uint16_t local_port(const Fd& fd) {
    sockaddr_in local{};
    socklen_t length = sizeof local;
    getsockname(fd.get(), reinterpret_cast<sockaddr*>(&local), &length);
    return ntohs(local.sin_port);
}

Fd tcp_listen(uint16_t port) {
    Fd fd = bound(SOCK_STREAM, port);
    if (fd && listen(fd.get(), 16) < 0) fd.reset();
    return fd;
}

Fd tcp_connect(const sockaddr_in& peer, int timeout_ms) {
    Fd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!fd) return fd;
    set_timeouts(fd, timeout_ms);  // the send time-out bounds connect() too
    int one = 1;
    setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&peer), sizeof peer) < 0) fd.reset();
    return fd;
}

void set_timeouts(const Fd& fd, int milliseconds) {
    timeval limit{milliseconds / 1000, (milliseconds % 1000) * 1000};
    setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
}

bool write_all(const Fd& fd, const void* data, size_t length) {
    const char* at = static_cast<const char*>(data);
    while (length > 0) {
        ssize_t wrote = send(fd.get(), at, length, MSG_NOSIGNAL);
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote <= 0) return false;
        at += wrote;
        length -= static_cast<size_t>(wrote);
    }
    return true;
}

std::optional<std::string> read_line(const Fd& fd) {
    std::string line;
    char byte = 0;
    while (line.size() < kMaxLine) {
        ssize_t got = recv(fd.get(), &byte, 1, 0);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return std::nullopt;
        if (byte == '\n') return line;
        line += byte;
    }
    return std::nullopt;
}

}  // namespace traffic
