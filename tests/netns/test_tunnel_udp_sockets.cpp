// What batches are sent and received by: endpoints, the sockets of lanes, and what the kernel's offloads are worth.
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <fstream>

#include "test_tunnel_udp_world.h"

using namespace banana;
using namespace banana::tunnel;
using namespace banana::tunnel::testing;

TEST_CASE("an endpoint says its address and port, and knows its like") {
    Endpoint v4 = Endpoint::of(ip("192.0.2.1"), 4790), v6 = Endpoint::of(ip("2001:db8::1"), 4790);
    CHECK(v4.text() == "192.0.2.1:4790");
    CHECK(v6.text() == "[2001:db8::1]:4790");
    CHECK(v4.host_text() == "192.0.2.1");
    CHECK(v6.port() == 4790);
    CHECK(v4 == Endpoint::of(ip("192.0.2.1"), 4790));
    CHECK_FALSE(v4 == Endpoint::of(ip("192.0.2.1"), 4791));
    CHECK_FALSE(v4 == Endpoint::of(ip("192.0.2.2"), 4790));
    CHECK_FALSE(v4 == v6);
    CHECK_FALSE(v6 == Endpoint::of(ip("2001:db8::2"), 4790));
    Endpoint local = Endpoint::of(ip("fe80::1"), 1), other = local;
    local.raw.sin6_scope_id = 2;
    CHECK(local.text() == "[fe80::1%2]:1");
    CHECK_FALSE(local == other);
}

TEST_CASE("lane sockets: ports, buffers, path MTU, and refusals that say why") {
    World world;
    shell("ip link set lo up");
    std::ifstream receive("/proc/sys/net/core/rmem_max"), send("/proc/sys/net/core/wmem_max");
    int receive_max = 0, send_max = 0;
    REQUIRE(static_cast<bool>(receive >> receive_max));
    REQUIRE(static_cast<bool>(send >> send_max));
    int bytes = std::max(receive_max, send_max) + (1 << 20);  // more than is had without force
    auto open = [&](const char* address, uint16_t port, size_t count) {
        return open_lane_sockets(ip(address), port, count, static_cast<size_t>(bytes));
    };
    auto opened = open("127.0.0.1", 4790, 3);
    REQUIRE_MESSAGE(opened.ok(), why(opened));
    REQUIRE(opened->size() == 3);
    std::vector<uint16_t> ports;
    auto option = [](const Fd& socket, int level, int name) {
        int value = -1;
        socklen_t size = sizeof value;
        CHECK(::getsockopt(socket.get(), level, name, &value, &size) == 0);
        return value;
    };
    for (const LaneSockets& lane : *opened)
        for (const Fd* socket : {&lane.listening, &lane.dialling}) {
            ports.push_back(bound(socket->get()).port());
            CHECK(bound(socket->get()).host_text() == "127.0.0.1");
            CHECK(option(*socket, SOL_SOCKET, SO_RCVBUF) == 2 * bytes);  // twice what was asked for, by socket(7)
            CHECK(option(*socket, SOL_SOCKET, SO_SNDBUF) == 2 * bytes);
            CHECK(option(*socket, IPPROTO_IP, IP_MTU_DISCOVER) == IP_PMTUDISC_PROBE);
        }
    CHECK(std::count(ports.begin(), ports.end(), 4790) == 3);
    std::sort(ports.begin(), ports.end());
    CHECK(std::unique(ports.begin(), ports.end()) - ports.begin() == 4);

    auto taken = open("127.0.0.1", 4790, 1);
    REQUIRE_FALSE(taken.ok());
    CHECK(taken.error().code() == Errc::busy);
    CHECK(why(taken) == "bind UDP 127.0.0.1:4790: another process has this port");
    auto foreign = open("192.0.2.1", 4790, 1);
    REQUIRE_FALSE(foreign.ok());
    CHECK(why(foreign) == "bind UDP 192.0.2.1:4790: the address is not on this host, or not usable yet");
    CHECK_FALSE(open("127.0.0.1", 4792, 0).ok());
    CHECK_FALSE(open("127.0.0.1", 0, 1).ok());
    opened->clear();
    CHECK(open("127.0.0.1", 4790, 1).ok());
}

TEST_CASE("sockets without an address take both families, and know IPv4 as IPv4") {
    Two two;
    auto any = lanes(IpAddress{}, 4790, 1);
    for (int family : {AF_INET, AF_INET6}) {
        CAPTURE(family);
        auto near = two.in_a([&] { return lanes(ip(near_address(family).c_str()), 4790, 1); });
        SendBatch batch(true);
        Receiver there(any[0].listening.get(), true), here(near[0].listening.get(), true);
        for (int i = 0; i < 3; ++i)
            put(batch, near[0].listening.get(), Endpoint::of(ip(far_address(family).c_str()), 4790), {0, 0, 1});
        batch.flush();
        REQUIRE(readable(any[0].listening.get(), 2000));
        Endpoint from = *there.receive()[0].from;
        CHECK(from == Endpoint::of(ip(near_address(family).c_str()), 4790));
        for (int i = 0; i < 3; ++i) put(batch, any[0].listening.get(), from, {0, 0, 2});
        batch.flush();
        CHECK(take(here, near[0].listening.get(), 3).size() == 3);
        CHECK(batch.counters().messages == 2);
        put(batch, any[0].listening.get(), from, datagram(1473, 0));
        batch.flush();
        CHECK(batch.take_too_big().bytes == 1473);  // the path MTU's option holds for IPv4 too
    }
}

TEST_CASE("the self-test believes what comes out only") {
    World world;
    CHECK_FALSE(test_udp_offload().gso);  // lo is down: nothing comes
    shell("ip link set lo up");
    UdpCapabilities found = test_udp_offload();
    CHECK(found.gso);
    CHECK(found.gro);
    refuse = [](const msghdr& message) { return message.msg_controllen != 0 ? EIO : 0; };
    found = test_udp_offload();
    refuse = nullptr;
    CHECK_FALSE(found.gso);
    CHECK(found.gro);
    // A kernel that gets one byte wrong.
    refuse = [](const msghdr& message) {
        if (message.msg_controllen != 0) static_cast<uint8_t*>(message.msg_iov->iov_base)[1405] ^= 1;
        return 0;
    };
    found = test_udp_offload();
    refuse = nullptr;
    CHECK_FALSE(found.gso);
}
