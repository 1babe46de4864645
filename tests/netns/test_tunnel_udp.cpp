// Batches between two namespaces, by real sockets (test_tunnel_udp_world.h).
#include <arpa/inet.h>
#include <linux/udp.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <functional>
#include <numeric>
#include <thread>

#include "base/clock.h"
#include "test_tunnel_udp_world.h"

using namespace banana;
using namespace banana::tunnel;
using namespace banana::tunnel::testing;

// In the place of the C library's: what this kernel cannot be brought to answer is answered here.
extern "C" int sendmmsg(int socket, mmsghdr* messages, unsigned count, int flags) {
    unsigned good = 0;
    int error = 0;
    while (good < count && (error = refuse ? refuse(messages[good].msg_hdr) : 0) == 0) ++good;
    if (good == 0 && error != 0) {
        errno = error;
        return -1;
    }
    return static_cast<int>(::syscall(SYS_sendmmsg, socket, messages, good, flags));
}

namespace {
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
