// Endpoints and the sockets of lanes. What sends stands in udp_send.cpp, what receives in udp_receive.cpp.
#include "tunnel/udp.h"

#include <arpa/inet.h>
#include <fmt/core.h>
#include <linux/filter.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace banana::tunnel {

namespace {
const sockaddr_in& v4(const Endpoint& endpoint) { return reinterpret_cast<const sockaddr_in&>(endpoint.raw); }
sockaddr_in& v4(Endpoint& endpoint) { return reinterpret_cast<sockaddr_in&>(endpoint.raw); }

Status set(int socket, int level, int option, int value, const char* name) {
    if (::setsockopt(socket, level, option, &value, sizeof value) == 0) return {};
    return errno_error(errno, fmt::format("set {}", name));
}

// By force where we may pass the machine's limit, else as much as the limit gives (the kernel clips without an error).
void set_buffer(int socket, int forced, int plain, size_t bytes) {
    int wanted = static_cast<int>(std::min<size_t>(bytes, 1U << 30));
    if (::setsockopt(socket, SOL_SOCKET, forced, &wanted, sizeof wanted) == 0) return;
    (void)::setsockopt(socket, SOL_SOCKET, plain, &wanted, sizeof wanted);
}

// Without an address: both families in one socket, or IPv4 alone on a host without IPv6.
Result<Fd> open_socket(const IpAddress& address) {
    bool any = address.family == 0;
    int family = any ? AF_INET6 : address.family;
    Fd socket(::socket(family, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!socket && any && errno == EAFNOSUPPORT)
        socket.reset(::socket(family = AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!socket) return errno_error(errno, "open UDP socket");
    if (family == AF_INET6) {
        TRY(set(socket.get(), IPPROTO_IPV6, IPV6_V6ONLY, any ? 0 : 1, "IPV6_V6ONLY"));
        TRY(set(socket.get(), IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_PROBE, "IPV6_MTU_DISCOVER"));
    }
    // An IPv6 socket that takes IPv4 as well has the IPv4 option too.
    if (family == AF_INET || any)
        TRY(set(socket.get(), IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE, "IP_MTU_DISCOVER"));
    return socket;
}

Status bind_to(int socket, const IpAddress& address, uint16_t port) {
    int family = 0;
    socklen_t size = sizeof family;
    if (::getsockopt(socket, SOL_SOCKET, SO_DOMAIN, &family, &size) != 0) return errno_error(errno, "read SO_DOMAIN");
    IpAddress where = address;
    if (where.family == 0) where.family = family;
    Endpoint local = Endpoint::of(where, port);
    if (::bind(socket, reinterpret_cast<const sockaddr*>(&local.raw), local.size()) == 0) return {};
    std::string what = "bind UDP " + local.text();
    if (errno == EADDRNOTAVAIL)
        return Error(Errc::not_found, what + ": the address is not on this host, or not usable yet");
    if (errno == EADDRINUSE) return Error(Errc::busy, what + ": another process has this port");
    return errno_error(errno, what);
}

// A process of the same user could join the group of another and get its datagrams: the port must be free first.
Status must_be_free(const IpAddress& address, uint16_t port) {
    if (port == 0) return Error(Errc::invalid, "bind UDP: lanes need a port of their own, not 0");
    TRY_SET(Fd probe, open_socket(address));
    return bind_to(probe.get(), address, port);
}
}  // namespace

Endpoint Endpoint::of(const IpAddress& address, uint16_t port) {
    Endpoint endpoint;
    if (address.family == AF_INET6) {
        endpoint.raw.sin6_family = AF_INET6;
        endpoint.raw.sin6_port = htons(port);
        std::memcpy(&endpoint.raw.sin6_addr, address.bytes.data(), 16);
    } else {
        sockaddr_in& in = v4(endpoint);
        in.sin_family = AF_INET;
        in.sin_port = htons(port);
        std::memcpy(&in.sin_addr, address.bytes.data(), 4);
    }
    return endpoint;
}

// The port has the same place in both kinds.
static_assert(offsetof(sockaddr_in, sin_port) == offsetof(sockaddr_in6, sin6_port));
uint16_t Endpoint::port() const { return ntohs(raw.sin6_port); }

std::string Endpoint::host_text() const {
    IpAddress address;
    address.family = family();
    if (family() == AF_INET) {
        std::memcpy(address.bytes.data(), &v4(*this).sin_addr, 4);
        return address.text();
    }
    if (family() != AF_INET6) return "none";
    std::memcpy(address.bytes.data(), &raw.sin6_addr, 16);
    return raw.sin6_scope_id == 0 ? address.text() : fmt::format("{}%{}", address.text(), raw.sin6_scope_id);
}

std::string Endpoint::text() const {
    return fmt::format(fmt::runtime(family() == AF_INET6 ? "[{}]:{}" : "{}:{}"), host_text(), port());
}

bool Endpoint::same_host(const Endpoint& other) const {
    Endpoint there = other;
    there.raw.sin6_port = raw.sin6_port;  // where a sockaddr_in has it
    return *this == there;
}

bool Endpoint::operator==(const Endpoint& other) const {
    if (raw.sin6_family != other.raw.sin6_family || raw.sin6_port != other.raw.sin6_port) return false;
    if (family() == AF_INET) return v4(*this).sin_addr.s_addr == v4(other).sin_addr.s_addr;
    return std::memcmp(&raw.sin6_addr, &other.raw.sin6_addr, sizeof raw.sin6_addr) == 0 &&
           raw.sin6_scope_id == other.raw.sin6_scope_id;
}

Result<std::vector<LaneSockets>> open_lane_sockets(const IpAddress& address, uint16_t port, size_t lanes,
                                                   size_t buffer_bytes) {
    if (lanes == 0 || lanes > lanes_max)
        return Error(Errc::invalid, fmt::format("open {} lanes: 1 to {}", lanes, lanes_max));
    TRY(must_be_free(address, port));
    std::vector<LaneSockets> all;
    for (size_t lane = 0; lane < lanes; ++lane) {
        LaneSockets sockets;
        TRY_SET(sockets.listening, open_socket(address));
        TRY_SET(sockets.dialling, open_socket(address));
        for (int socket : {sockets.listening.get(), sockets.dialling.get()}) {
            set_buffer(socket, SO_RCVBUFFORCE, SO_RCVBUF, buffer_bytes);
            set_buffer(socket, SO_SNDBUFFORCE, SO_SNDBUF, buffer_bytes);
        }
        TRY(set(sockets.listening.get(), SOL_SOCKET, SO_REUSEPORT, 1, "SO_REUSEPORT"));
        TRY(bind_to(sockets.listening.get(), address, port));
        TRY(bind_to(sockets.dialling.get(), address, 0));
        all.push_back(std::move(sockets));
    }
    return all;
}

Status steer_by_lane(int socket) {
    // The program sees a datagram from its payload on; one too short for the load ends with 0.
    sock_filter code[] = {BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 1), BPF_STMT(BPF_RET | BPF_A, 0)};
    sock_fprog program{std::size(code), code};
    if (::setsockopt(socket, SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, &program, sizeof program) == 0) return {};
    return errno_error(errno, "steer datagrams by lane");
}

}  // namespace banana::tunnel
