// Batches between two namespaces, by real sockets; offloads, MTU and family vary:
//
//   A: near 10.9.0.1, fd00:9::1  === veth ===  far 10.9.0.2, fd00:9::2 :B
//
// Neither namespace has a name: they go with the process.
#include <arpa/inet.h>
#include <fmt/core.h>
#include <linux/udp.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <numeric>
#include <thread>

#include "base/clock.h"
#include "test_netlink_world.h"
#include "tunnel/udp.h"

using namespace banana;
using namespace banana::tunnel;
using netlink::ip;
using netlink::why;
using netlink::World;

namespace {
using Bytes = std::vector<uint8_t>;
using Refuse = std::function<int(const msghdr&)>;  // an errno, or 0: let it pass

Refuse refuse;  // what the kernel is made to say to the first message of a call

int fault(const msghdr& message) { return refuse ? refuse(message) : 0; }
}  // namespace

// In the place of the C library's: what this kernel cannot be brought to answer is answered here.
extern "C" int sendmmsg(int socket, mmsghdr* messages, unsigned count, int flags) {
    unsigned good = 0;
    int error = 0;
    while (good < count && (error = fault(messages[good].msg_hdr)) == 0) ++good;
    if (good == 0 && error != 0) {
        errno = error;
        return -1;
    }
    return static_cast<int>(::syscall(SYS_sendmmsg, socket, messages, good, flags));
}

namespace {
void shell(const std::string& command) { REQUIRE_MESSAGE(std::system(("set -e; " + command).c_str()) == 0, command); }

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

std::string near_address(int family) { return family == AF_INET ? "10.9.0.1" : "fd00:9::1"; }
std::string far_address(int family) { return family == AF_INET ? "10.9.0.2" : "fd00:9::2"; }

std::vector<LaneSockets> lanes(const IpAddress& address, uint16_t port, size_t count) {
    auto opened = open_lane_sockets(address, port, count, 4 << 20);
    REQUIRE_MESSAGE(opened.ok(), why(opened));
    return std::move(*opened);
}
Endpoint bound(int socket) {
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

Bytes datagram(size_t bytes, size_t number) {
    Bytes all(bytes);
    for (size_t i = 0; i < bytes; ++i) all[i] = static_cast<uint8_t>(number * 31 + i * 7 + (i >> 8));
    return all;
}
void put(SendBatch& batch, int socket, const Endpoint& to, const Bytes& bytes) {
    std::copy(bytes.begin(), bytes.end(), batch.reserve(bytes.size() + 40));  // may reserve more than is used
    batch.commit(socket, to, bytes.size());
}
bool readable(int socket, int timeout_ms) {
    pollfd one{socket, POLLIN, 0};
    return ::poll(&one, 1, timeout_ms) == 1;
}
// Until `count` came or nothing more does.
std::vector<Bytes> take(Receiver& receiver, int socket, size_t count) {
    std::vector<Bytes> all;
    while (all.size() < count && readable(socket, 2000))
        for (const Receiver::Datagram& one : receiver.receive()) all.emplace_back(one.bytes.begin(), one.bytes.end());
    return all;
}
// Equal ones in number and out of it, shorter, longer and empty ones in between; more than a message or an arena holds.
std::vector<Bytes> mixture() {
    std::vector<Bytes> all;
    auto add = [&](size_t count, size_t bytes) {
        while (count-- > 0) all.push_back(datagram(bytes, all.size()));
    };
    add(300, 1200);
    add(1, 700);
    add(64, 1200);
    add(3, 1);
    add(1, 0);
    add(130, 60);
    add(2, 1199);
    add(2, 1200);
    add(1, 1);
    return all;
}

// Tells loss from disorder, and where.
void check_same(const std::vector<Bytes>& came, const std::vector<Bytes>& sent) {
    CHECK(came.size() == sent.size());
    if (came == sent) return;
    size_t at = 0;
    while (at < came.size() && at < sent.size() && came[at] == sent[at]) ++at;
    std::vector<Bytes> a = came, b = sent;
    std::sort(a.begin(), a.end());
    std::sort(b.begin(), b.end());
    FAIL_CHECK(std::string(a == b ? "out of order" : "not what was sent") << ", first at " << at);
}

struct Case {
    int family, mtu;
    std::string offloads;
    bool gso, gro;
};

void round_trip(const Case& one) {
    CAPTURE(one.family);
    CAPTURE(one.mtu);
    CAPTURE(one.offloads);
    CAPTURE(one.gso);
    CAPTURE(one.gro);
    Two two(one.mtu);
    if (!one.offloads.empty()) {
        shell("ethtool -K far " + one.offloads + " >/dev/null");
        two.in_a([&] { shell("ethtool -K near " + one.offloads + " >/dev/null"); });
    }
    Ends ends(two, one.family);
    SendBatch batch(one.gso);
    Receiver receiver(ends.in(), one.gro);
    std::vector<Bytes> sent = mixture();
    for (const Bytes& bytes : sent) put(batch, ends.out(), ends.to, bytes);
    batch.flush();
    CHECK(batch.empty());
    check_same(take(receiver, ends.in(), sent.size()), sent);
    const SendCounters& counters = batch.counters();
    CHECK(counters.datagrams == sent.size());
    CHECK(counters.errors + counters.too_big + counters.no_room == 0);
    // 54 of 1200 B fit into a message, 218 into the arena: 5 and 2 (with the 700), 2 (with a 1), 1, the empty one,
    // 3, 2.
    CHECK(counters.messages == (one.gso ? 16 : sent.size()));
    CHECK(counters.calls <= 4);
    CHECK_FALSE(readable(ends.in(), 0));
}
}  // namespace

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

TEST_CASE("datagrams come out as they went in, whatever the devices offload") {
    for (int family : {AF_INET, AF_INET6})
        for (int mtu : {1500, 1280})
            for (const char* offloads : {"", "tx-udp-segmentation off", "gso off tx off", "gro on"})
                for (bool gso : {true, false})
                    for (bool gro : {true, false}) round_trip({family, mtu, offloads, gso, gro});
}

TEST_CASE("a message is of one address and one socket") {
    Two two;
    Ends ends(two, AF_INET, 2);
    REQUIRE(steer_by_lane(ends.in()).ok());
    std::vector<LaneSockets> more = two.in_a([&] { return lanes(ip("10.9.0.1"), 4791, 1); });
    Endpoint dialled = bound(ends.far[0].dialling.get());
    SendBatch batch(true);
    for (size_t i = 0; i < 8; ++i) {
        put(batch, ends.out(), i / 2 % 2 ? dialled : ends.to, {0, 0, static_cast<uint8_t>(i)});
        put(batch, more[0].listening.get(), ends.to, {0, 1, static_cast<uint8_t>(i)});
    }
    batch.flush();
    Receiver lane0(ends.in(0), true), lane1(ends.in(1), true), third(ends.far[0].dialling.get(), true);
    CHECK(take(lane1, ends.in(1), 8).size() == 8);
    CHECK(take(lane0, ends.in(0), 4) == std::vector<Bytes>{{0, 0, 0}, {0, 0, 1}, {0, 0, 4}, {0, 0, 5}});
    CHECK(take(third, ends.far[0].dialling.get(), 4) == std::vector<Bytes>{{0, 0, 2}, {0, 0, 3}, {0, 0, 6}, {0, 0, 7}});
}

TEST_CASE("the kernel gives each lane its datagrams, also those of a segmented send") {
    for (int family : {AF_INET, AF_INET6}) {
        CAPTURE(family);
        Two two;
        Ends ends(two, family, 4);
        Status steered = steer_by_lane(ends.in(2));  // any socket of the group
        REQUIRE_MESSAGE(steered.ok(), why(steered));
        SendBatch batch(true);
        for (size_t source = 0; source < 16; ++source) {  // many ports, which a hash would spread
            auto sockets = two.in_a([&] { return lanes(ip(near_address(family).c_str()), 5000, 4); });
            for (uint8_t lane = 0; lane < 4; ++lane)
                for (size_t i = 0; i < 5; ++i) {
                    Bytes bytes(100, static_cast<uint8_t>(source));
                    bytes[1] = lane;
                    put(batch, sockets[lane].dialling.get(), ends.to, bytes);
                }
            batch.flush();
        }
        for (uint8_t lane = 0; lane < 4; ++lane) {
            Receiver receiver(ends.in(lane), true);
            std::vector<Bytes> came = take(receiver, ends.in(lane), 80);
            CHECK(std::count_if(came.begin(), came.end(), [&](const Bytes& one) { return one[1] == lane; }) == 80);
            CHECK_FALSE(readable(ends.in(lane), 0));
        }
    }
}

TEST_CASE("a lane that is not there loses nothing to strangers: short datagrams go to lane 0, others to one lane") {
    Two two;
    Ends ends(two, AF_INET, 3);
    REQUIRE(steer_by_lane(ends.in()).ok());
    SendBatch batch(true);
    put(batch, ends.out(), ends.to, {7});
    put(batch, ends.out(), ends.to, {});
    batch.flush();
    Receiver receiver(ends.in(), true);
    CHECK(take(receiver, ends.in(), 2) == std::vector<Bytes>{{7}, {}});
    put(batch, ends.out(), ends.to, {7, 200});
    batch.flush();
    size_t came = 0;
    for (size_t lane = 0; lane < 3; ++lane) {
        Receiver each(ends.in(lane), true);
        if (readable(ends.in(lane), lane == 0 ? 100 : 0)) came += each.receive().size();
    }
    CHECK(came == 1);
}

TEST_CASE("what is larger than the device takes is told, and the rest goes") {
    for (int family : {AF_INET, AF_INET6})
        for (bool gso : {true, false}) {
            CAPTURE(family);
            CAPTURE(gso);
            Two two(1280);
            Ends ends(two, family);
            SendBatch batch(gso);
            Receiver receiver(ends.in(), true);
            std::vector<Bytes> fits;
            auto add = [&](size_t bytes, size_t count) {
                while (count-- > 0) {
                    put(batch, ends.out(), ends.to, datagram(bytes, fits.size()));
                    if (bytes < 1280) fits.push_back(datagram(bytes, fits.size()));
                }
            };
            add(1200, 3);
            add(1400, 20);
            add(1000, 1);  // may end the message of 1400
            add(1300, 1);
            add(1200, 3);
            batch.flush();
            CHECK(take(receiver, ends.in(), fits.size()) == fits);
            CHECK(batch.counters().too_big == 21);
            CHECK(batch.counters().datagrams == fits.size());
            CHECK(batch.counters().errors == 0);
            CHECK(batch.counters().calls < 30);
            CHECK(batch.gso() == gso);
            CHECK(batch.take_too_big().bytes == 1300);
            CHECK(batch.take_too_big().bytes == 0);
            size_t fit = family == AF_INET ? 1252 : 1232;  // 1280 without the IP and UDP headers
            put(batch, ends.out(), ends.to, datagram(fit, 1));
            put(batch, ends.out(), ends.to, datagram(fit + 1, 2));
            batch.flush();
            CHECK(batch.take_too_big().bytes == fit + 1);
            CHECK(take(receiver, ends.in(), 1) == std::vector<Bytes>{datagram(fit, 1)});
        }
}

TEST_CASE("a message that is refused as a whole goes datagram by datagram") {
    Two two;
    Ends ends(two, AF_INET);
    Receiver receiver(ends.in(), true);
    std::vector<Bytes> sent = mixture();
    SUBCASE("EINVAL, from the kernel: no checksum, no segments; asked again next time") {
        int on = 1;
        REQUIRE(::setsockopt(ends.out(), SOL_SOCKET, SO_NO_CHECK, &on, sizeof on) == 0);
        SendBatch batch(true);
        for (const Bytes& bytes : sent) put(batch, ends.out(), ends.to, bytes);
        batch.flush();
        CHECK(take(receiver, ends.in(), sent.size()) == sent);
        CHECK(batch.counters().datagrams == sent.size());
        CHECK(batch.gso());
    }
    SUBCASE("EIO: never asked again") {
        size_t asked = 0;
        refuse = [&](const msghdr& message) {
            if (message.msg_controllen != 0) asked++;
            return message.msg_controllen != 0 ? EIO : 0;
        };
        SendBatch batch(true);
        for (const Bytes& bytes : sent) put(batch, ends.out(), ends.to, bytes);
        batch.flush();
        refuse = nullptr;
        CHECK(asked <= 2);  // a call is ended before a message that it will refuse, then begun with it
        CHECK(take(receiver, ends.in(), sent.size()) == sent);
        CHECK(batch.counters().datagrams == sent.size());
        CHECK_FALSE(batch.gso());
    }
}

TEST_CASE("errors cost only the datagrams that have them") {
    Two two;
    Ends ends(two, AF_INET);
    Receiver receiver(ends.in(), true);
    SendBatch batch(true);
    auto sandwich = [&](const Endpoint& bad) {
        put(batch, ends.out(), ends.to, {0, 0, 1});
        for (int i = 0; i < 5; ++i) put(batch, ends.out(), bad, {0, 0, 9});
        put(batch, ends.out(), ends.to, {0, 0, 2});
        batch.flush();
        CHECK(take(receiver, ends.in(), 2) == std::vector<Bytes>{{0, 0, 1}, {0, 0, 2}});
    };
    sandwich(Endpoint::of(ip("192.0.2.1"), 4790));  // no route
    CHECK(batch.counters().errors == 5);
    int tries = 0;
    refuse = [&](const msghdr& message) {
        bool bad = static_cast<const sockaddr_in*>(message.msg_name)->sin_port == htons(9);
        tries += bad;
        return bad ? ENOBUFS : 0;
    };
    int64_t begin = monotonic_ns();
    sandwich(Endpoint::of(ip("10.9.0.2"), 9));
    refuse = nullptr;
    CHECK(batch.counters().no_room == 5);
    CHECK(tries < 20);                              // does not spin,
    CHECK(monotonic_ns() - begin < 1'000'000'000);  // nor wait long
}

TEST_CASE("a pending error hides no datagram, to send or received") {
    Two two;
    Ends ends(two, AF_INET);
    int on = 1, out = ends.out();
    REQUIRE(::setsockopt(out, IPPROTO_IP, IP_RECVERR, &on, sizeof on) == 0);
    Endpoint closed = Endpoint::of(ip("10.9.0.2"), 9), back = Endpoint::of(ip("10.9.0.1"), 4790);
    SendBatch batch(true);
    Receiver far(ends.in(), true), near(out, true);
    auto offend = [&] {
        put(batch, out, closed, {1});
        batch.flush();
        pollfd one{out, 0, 0};
        REQUIRE(::poll(&one, 1, 2000) == 1);
        REQUIRE((one.revents & POLLERR) != 0);
    };
    offend();
    put(batch, out, ends.to, {0, 0, 1});
    batch.flush();
    CHECK(take(far, ends.in(), 1).size() == 1);
    offend();
    put(batch, ends.in(), back, {0, 0, 2});
    batch.flush();
    pollfd one{out, POLLIN, 0};  // the error alone ends a poll too
    for (int64_t end = monotonic_ns() + 2'000'000'000; (one.revents & POLLIN) == 0 && monotonic_ns() < end;)
        (void)::poll(&one, 1, 10);
    CHECK(near.receive().size() == 1);  // in one call: empty would mean that there is nothing
}

TEST_CASE("a full socket slows the sender down, then loses what it must, and says so") {
    Two two;
    Ends ends(two, AF_INET);
    two.in_a([] { shell("tc qdisc add dev near root tbf rate 20mbit burst 20k limit 10m"); });
    int small = 100'000;
    REQUIRE(::setsockopt(ends.out(), SOL_SOCKET, SO_SNDBUF, &small, sizeof small) == 0);
    SendBatch batch(true);
    int64_t begin = monotonic_ns();
    rusage before{}, after{};
    ::getrusage(RUSAGE_THREAD, &before);
    for (size_t i = 0; i < 1000; ++i) put(batch, ends.out(), ends.to, datagram(1400, i));  // 0.56 s of this link
    batch.flush();
    ::getrusage(RUSAGE_THREAD, &after);
    CHECK(monotonic_ns() - begin < 400'000'000);
    CHECK(batch.counters().no_room > 100);
    CHECK(batch.counters().datagrams + batch.counters().no_room == 1000);
    CHECK(batch.counters().errors == 0);
    CHECK(batch.counters().calls < 200);  // it does not spin
    Receiver receiver(ends.in(), true);
    CHECK(take(receiver, ends.in(), batch.counters().datagrams).size() == batch.counters().datagrams);
    // A link that is emptied within the wait loses nothing.
    two.in_a([] { shell("tc qdisc change dev near root tbf rate 500mbit burst 200k limit 10m"); });
    uint64_t lost = batch.counters().no_room;
    for (size_t i = 0; i < 100; ++i) put(batch, ends.out(), ends.to, datagram(1400, i));
    batch.flush();
    CHECK(batch.counters().no_room == lost);
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

// Not a test: `netns_tests --no-skip -tc="measure*"`.
TEST_CASE("measure: 1400 B datagrams a second over veth, one thread a side" * doctest::skip()) {
    for (auto [gso, gro] : {std::pair{true, true}, {true, false}, {false, true}, {false, false}}) {
        Two two;
        if (!gro) two.in_a([] { shell("ethtool -K near tx-udp-segmentation off >/dev/null"); });
        Ends ends(two, AF_INET);
        std::atomic<bool> stop = false;
        SendBatch batch(gso);
        std::thread sender([&] {
            (void)::sched_setaffinity(0, sizeof two.allowed, &two.allowed);
            while (!stop) {
                for (size_t i = 0; i < 128; ++i) {
                    std::fill_n(batch.reserve(1400), 1400, static_cast<uint8_t>(i));
                    batch.commit(ends.out(), ends.to, 1400);
                }
                batch.flush();
            }
        });
        Receiver receiver(ends.in(), gro);
        uint64_t came = 0, calls = 0, sum = 0;  // what is sent is written, what comes is read, as by a cipher
        int64_t begin = monotonic_ns(), end = begin + 2'000'000'000;
        while (monotonic_ns() < end) {
            for (const Receiver::Datagram& one : receiver.receive()) {
                sum = std::accumulate(one.bytes.begin(), one.bytes.end(), sum);
                came++;
            }
            if (!readable(ends.in(), 100)) break;
        }
        calls = receiver.calls();
        CHECK(sum != 0);
        stop = true;
        sender.join();
        double seconds = static_cast<double>(monotonic_ns() - begin) / 1e9;
        fmt::print("gso {} gro {}: sent {:.0f}/s, received {:.0f}/s ({:.2f} Gbit/s), {:.1f} a receive\n", gso, gro,
                   static_cast<double>(batch.counters().datagrams) / seconds, static_cast<double>(came) / seconds,
                   static_cast<double>(came) * 1400 * 8 / seconds / 1e9,
                   static_cast<double>(came) / static_cast<double>(calls));
    }
}
