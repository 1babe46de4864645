// Two namespaces, and the sockets of lanes in them; offloads, MTU and family vary:
//
//   A: near 10.9.0.1, fd00:9::1  === veth ===  far 10.9.0.2, fd00:9::2 :B
//
// Neither namespace has a name: they go with the process.
#pragma once

#include <fmt/core.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "test_netlink_world.h"
#include "tunnel/udp.h"

namespace banana::tunnel::testing {

using Bytes = std::vector<uint8_t>;
using netlink::ip;
using netlink::why;
using netlink::World;

// What the kernel is made to say to the first message of a sendmmsg(): an errno, or 0, which lets it pass.
inline std::function<int(const msghdr&)> refuse;

inline void shell(const std::string& command) {
    REQUIRE_MESSAGE(std::system(("set -e; " + command).c_str()) == 0, command);
}

struct Two {
    cpu_set_t allowed{};
    World first;
    Fd a{::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC)};
    World second;
    Fd b{::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC)};

    ~Two() { (void)::sched_setaffinity(0, sizeof allowed, &allowed); }
    static std::string setup(const std::string& device, int host, int mtu) {
        return fmt::format(
            "ip link set {0} mtu {2}; echo 0 >/proc/sys/net/ipv6/conf/{0}/disable_ipv6; ip link set {0} up; "
            "ip addr add 10.9.0.{1}/24 dev {0}; ip -6 addr add fd00:9::{1}/64 dev {0} nodad",
            device, host, mtu);
    }
    template <class Do>
    auto in_a(Do what) {
        struct Back {
            int to;
            ~Back() {
                if (::setns(to, CLONE_NEWNET) != 0) std::abort();
            }
        } back{b.get()};
        REQUIRE(::setns(a.get(), CLONE_NEWNET) == 0);
        return what();
    }

    explicit Two(int mtu = 1500) {
        // A veth goes by the sending CPU's queue: a thread that moves to another CPU would overtake itself.
        cpu_set_t here;
        CPU_ZERO(&here);
        CPU_SET(::sched_getcpu(), &here);
        REQUIRE(::sched_getaffinity(0, sizeof allowed, &allowed) == 0);
        REQUIRE(::sched_setaffinity(0, sizeof here, &here) == 0);
        shell(fmt::format("ip link set lo up; ip link add far type veth peer name near netns /proc/{}/fd/{}",
                          ::getpid(), a.get()));
        shell(setup("far", 2, mtu));
        in_a([&] { shell("ip link set lo up; " + setup("near", 1, mtu)); });
    }
};

inline std::string near_address(int family) { return family == AF_INET ? "10.9.0.1" : "fd00:9::1"; }
inline std::string far_address(int family) { return family == AF_INET ? "10.9.0.2" : "fd00:9::2"; }

inline std::vector<LaneSockets> lanes(const IpAddress& address, uint16_t port, size_t count) {
    auto opened = open_lane_sockets(address, port, count, 4 << 20);
    REQUIRE_MESSAGE(opened.ok(), why(opened));
    return std::move(*opened);
}
inline Endpoint bound(int socket) {
    Endpoint endpoint;
    socklen_t size = sizeof endpoint.raw;
    REQUIRE(::getsockname(socket, reinterpret_cast<sockaddr*>(&endpoint.raw), &size) == 0);
    return endpoint;
}
// One socket in A, some in B, each on port 4790 of its side.
struct Ends {
    std::vector<LaneSockets> near, far;
    Endpoint to;
    Ends(Two& two, int family, size_t count = 1)
        : near(two.in_a([&] { return lanes(ip(near_address(family).c_str()), 4790, 1); })),
          far(lanes(ip(far_address(family).c_str()), 4790, count)),
          to(Endpoint::of(ip(far_address(family).c_str()), 4790)) {
        meet();
    }
    // One datagram, so that the hosts know each other's MAC: what waits for that is dropped beyond 212 992 B.
    void meet() const {
        int socket = far[0].dialling.get();
        Endpoint there = bound(socket);
        REQUIRE(::sendto(out(), "", 0, 0, reinterpret_cast<const sockaddr*>(&there.raw), there.size()) == 0);
        pollfd one{socket, POLLIN, 0};
        REQUIRE(::poll(&one, 1, 5000) == 1);
        REQUIRE(::recv(socket, nullptr, 0, 0) == 0);
    }
    int out() const { return near[0].listening.get(); }
    int in(size_t lane = 0) const { return far[lane].listening.get(); }
};

inline Bytes datagram(size_t bytes, size_t number) {
    Bytes all(bytes);
    for (size_t i = 0; i < bytes; ++i) all[i] = static_cast<uint8_t>(number * 31 + i * 7 + (i >> 8));
    return all;
}
inline void put(SendBatch& batch, int socket, const Endpoint& to, const Bytes& bytes) {
    std::copy(bytes.begin(), bytes.end(), batch.reserve(bytes.size() + 40));  // may reserve more than is used
    batch.commit(socket, to, bytes.size());
}
inline bool readable(int socket, int timeout_ms) {
    pollfd one{socket, POLLIN, 0};
    return ::poll(&one, 1, timeout_ms) == 1;
}
// Until `count` came or nothing more does.
inline std::vector<Bytes> take(Receiver& receiver, int socket, size_t count) {
    std::vector<Bytes> all;
    while (all.size() < count && readable(socket, 2000))
        for (const Receiver::Datagram& one : receiver.receive()) all.emplace_back(one.bytes.begin(), one.bytes.end());
    return all;
}

}  // namespace banana::tunnel::testing
