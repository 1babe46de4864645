// The VXLAN filter against real frames: the right peer's come out of the VXLAN device, a third address's do not.
//
//   peer  192.0.2.1, fd00::1 ---+
//                               +-- sw in "net" --- host 192.0.2.2, fd00::2: wire (VNI 70000), other (VNI 80000)
//   third 192.0.2.3, fd00::3 ---+
#include <arpa/inet.h>
#include <fmt/core.h>
#include <linux/if_ether.h>
#include <sys/socket.h>

#include <cstring>
#include <filesystem>
#include <optional>

#include "base/clock.h"
#include "test_xconnect_lab.h"
#include "wiring/vxlan_filter.h"

using namespace banana;
using namespace banana::testlab;
using banana::wiring::VxlanFilter;
using banana::wiring::VxlanPeer;

namespace {

constexpr uint32_t our_vni = 70000, their_vni = 80000;

IpAddress ip(const char* text) { return must(IpAddress::parse(text)); }

struct World {
    Ns net{"net", true}, peer{"peer", true}, third{"third", true}, host{"host", true};
    bool ipv6;
    std::optional<Wiretap> wire, other;

    explicit World(bool v6) : ipv6(v6) {
        sh("ip -n net link add sw type bridge; ip -n net link set sw up");
        int number = 1;
        for (const char* name : {"peer", "host", "third"}) {
            sh(fmt::format(
                "ip -n {0} link add u type veth peer name {0} netns net; ip -n {0} addr add 192.0.2.{1}/24 dev u; "
                "ip -n {0} addr add fd00::{1}/64 dev u nodad; ip -n {0} link set u up; "
                "ip -n net link set {0} master sw up",
                name, number++));
        }
        const char* remote = v6 ? "fd00::1" : "192.0.2.1";
        sh(
            fmt::format("ip -n host link add wire mtu 9000 type vxlan id 70000 remote {0} dstport 4789 nolearning {1}; "
                        "ip -n host link add other type vxlan id 80000 remote {0} dstport 4789 nolearning {1}; "
                        "ip -n host link set wire up; ip -n host link set other up",
                        remote, v6 ? "udp6zerocsumrx" : ""));
        wire.emplace(host, "wire", data_ethertype);
        other.emplace(host, "other", data_ethertype);
    }

    // An encapsulated frame with this sequence number, by an ordinary UDP socket: the kernel cuts what is too long.
    void inject(const Ns& from, uint32_t vni, uint32_t sequence, size_t size = 100) const {
        from.enter();
        std::vector<uint8_t> datagram{0x08, 0, 0, 0, uint8_t(vni >> 16), uint8_t(vni >> 8), uint8_t(vni), 0};
        auto inner = frame(mac("02:00:00:00:00:01"), mac("02:00:00:00:00:02"), sequence, size);
        datagram.insert(datagram.end(), inner.begin(), inner.end());
        Fd socket(::socket(ipv6 ? AF_INET6 : AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
        sockaddr_in v4{};
        sockaddr_in6 v6{};
        v4.sin_family = AF_INET;
        v6.sin6_family = AF_INET6;
        v4.sin_port = v6.sin6_port = htons(4789);
        inet_pton(AF_INET, "192.0.2.2", &v4.sin_addr);
        inet_pton(AF_INET6, "fd00::2", &v6.sin6_addr);
        auto* to = ipv6 ? reinterpret_cast<sockaddr*>(&v6) : reinterpret_cast<sockaddr*>(&v4);
        ssize_t sent = sendto(socket.get(), datagram.data(), datagram.size(), 0, to, ipv6 ? sizeof(v6) : sizeof(v4));
        REQUIRE(sent == static_cast<ssize_t>(datagram.size()));
        host.enter();
    }
};

// What comes out, up to the marker that is sent last and must pass.
std::vector<uint32_t> numbers_up_to(Wiretap& tap, uint32_t marker) {
    std::vector<uint32_t> out;
    for (;;) {
        auto frames = tap.receive(1);
        REQUIRE(frames.size() == 1);
        if (sequence_of(frames[0]) == marker) return out;
        out.push_back(sequence_of(frames[0]));
    }
}

void over_both_underlays(const std::function<void(World&)>& body) {
    for (bool v6 : {false, true}) {
        CAPTURE(v6);
        isolated([&] {
            World world(v6);
            body(world);
        });
    }
}

}  // namespace

TEST_CASE("vxlan filter: our VNI from its peer only, whole and in outer fragments; other VNIs untouched") {
    over_both_underlays([](World& w) {
        w.inject(w.third, our_vni, 1);  // without the filter it comes out: the test can tell
        CHECK(w.wire->receive(1).size() == 1);

        auto filter = must(VxlanFilter::open());
        auto address = ip(w.ipv6 ? "fd00::1" : "192.0.2.1");
        must(filter.allow(our_vni, address));
        must(filter.allow(our_vni, address));
        w.inject(w.third, our_vni, 2);
        w.inject(w.third, our_vni, 3, 5000);  // four outer fragments
        w.inject(w.third, their_vni, 4);
        w.inject(w.peer, our_vni, 5, 5000);
        w.inject(w.peer, our_vni, 6);
        CHECK(numbers_up_to(*w.wire, 6) == std::vector<uint32_t>{5});
        CHECK(w.other->receive(1).size() == 1);
        CHECK(must(filter.dropped()) == 2);

        // A second address for a while, then none at all.
        must(filter.allow(our_vni, ip(w.ipv6 ? "fd00::3" : "192.0.2.3")));
        w.inject(w.third, our_vni, 7);
        CHECK(w.wire->receive(1).size() == 1);
        must(filter.remove(our_vni));
        must(filter.remove(our_vni));
        CHECK(must(filter.list()).empty());
        w.inject(w.third, our_vni, 8);
        CHECK(w.wire->receive(1).size() == 1);
    });
}

TEST_CASE("vxlan filter: a VNI one bit off, in any byte, is another's") {
    isolated([] {
        World w(false);
        auto filter = must(VxlanFilter::open());
        for (uint32_t bit : {0u, 7u, 8u, 15u, 16u, 23u}) must(filter.allow(our_vni ^ (1u << bit), ip("192.0.2.1")));
        w.inject(w.third, our_vni, 1);
        CHECK(w.wire->receive(1).size() == 1);
        CHECK(must(filter.dropped()) == 0);
    });
}

TEST_CASE("vxlan filter: an IPv6 fragment that hides the VNI does not slip through") {
    isolated([] {
        World w(true);
        auto filter = must(VxlanFilter::open());
        must(filter.allow(our_vni, ip("fd00::1")));
        // By hand: a first fragment with the UDP header alone, the VXLAN header in the second.
        auto inner = frame(mac("02:00:00:00:00:01"), mac("02:00:00:00:00:02"), 1, 200);
        std::vector<uint8_t> udp{0x30, 0x39, 0x12, 0xb5, 0, 0, 0, 0, 0x08, 0, 0, 0, 0x01, 0x11, 0x70, 0};
        udp.insert(udp.end(), inner.begin(), inner.end());
        udp[5] = static_cast<uint8_t>(udp.size());
        auto send = [&](const Ns& from) {
            from.enter();
            Fd raw(socket(AF_INET6, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_FRAGMENT));
            REQUIRE(raw.get() >= 0);
            sockaddr_in6 to{};
            to.sin6_family = AF_INET6;
            inet_pton(AF_INET6, "fd00::2", &to.sin6_addr);
            std::vector<uint8_t> first{17, 0, 0, 1, 1, 2, 3, 4}, second{17, 0, 0, 8, 1, 2, 3, 4};
            first.insert(first.end(), udp.begin(), udp.begin() + 8);
            second.insert(second.end(), udp.begin() + 8, udp.end());
            for (auto& part : {first, second})
                REQUIRE(sendto(raw.get(), part.data(), part.size(), 0, reinterpret_cast<sockaddr*>(&to), sizeof(to)) >
                        0);
            w.host.enter();
        };
        send(w.third);
        CHECK(eventually([&] { return must(filter.dropped()) == 1; }));
        w.inject(w.peer, our_vni, 9);
        CHECK(numbers_up_to(*w.wire, 9).empty());
        must(filter.destroy());  // and without the filter it is a frame like any other
        send(w.peer);
        CHECK(w.wire->receive(1).size() == 1);
    });
}

TEST_CASE("vxlan filter: outlives its process; sync makes it right again, also after a flush of the ruleset") {
    isolated([] {
        World w(false);
        std::vector<VxlanPeer> want{{7, ip("fd00::9")}, {our_vni, ip("192.0.2.1")}, {0xffffff, ip("192.0.2.1")}};
        {
            auto filter = must(VxlanFilter::open());
            must(filter.allow(want));
            must(filter.allow(12, ip("192.0.2.9")));
        }
        w.inject(w.third, our_vni, 1);
        auto filter = must(VxlanFilter::open());
        CHECK(must(filter.list()).size() == 4);
        must(filter.sync(want));
        must(filter.sync(want));
        CHECK(must(filter.list()) == want);
        CHECK(must(filter.dropped()) == 1);  // the counter survives both

        sh("nft flush ruleset");
        CHECK(filter.list().error().code() == Errc::not_found);
        must(filter.sync(want));
        CHECK(must(filter.list()) == want);
        sh("nft flush ruleset");
        must(filter.allow(13, ip("192.0.2.9")));  // finds it gone, puts all back
        CHECK(must(filter.list()).size() == 4);
        sh("nft flush ruleset");
        must(filter.remove(13));
        CHECK(must(filter.list()) == want);
        w.inject(w.third, our_vni, 2);
        w.inject(w.peer, our_vni, 3);
        CHECK(numbers_up_to(*w.wire, 3).empty());
    });
}

TEST_CASE("vxlan filter: mend() notices a table that is gone, emptied or another's, and makes it whole") {
    isolated([] {
        World w(false);
        auto filter = must(VxlanFilter::open());
        const std::string old = std::filesystem::temp_directory_path() / ("banana-ruleset-" + random_hex(8));
        sh("(echo flush ruleset; nft list ruleset) >" + old);
        const std::vector<VxlanPeer> want{{our_vni, ip("192.0.2.1")}, {0xffffff, ip("192.0.2.1")}};
        must(filter.allow(want));
        must(filter.allow(12, ip("192.0.2.9")));
        must(filter.remove(12));
        CHECK_FALSE(must(filter.mend()));  // changes of our own are none
        must(filter.sync(want));
        CHECK_FALSE(must(filter.mend()));
        sh("nft add table inet other; nft add chain inet other input");
        CHECK_FALSE(must(filter.mend()));
        uint32_t number = 0;
        // The last is what /etc/nftables.conf does that was once written from the ruleset.
        const std::vector<std::string> harms{"nft flush ruleset", "nft delete table inet banana",
                                             "nft flush table inet banana", "nft flush chain inet banana input",
                                             "nft -f " + old};
        for (const auto& harm : harms) {
            CAPTURE(harm);
            sh(harm);
            CHECK(must(filter.mend()));
            CHECK_FALSE(must(filter.mend()));
            CHECK(must(filter.list()) == want);
            w.inject(w.third, our_vni, ++number);
            w.inject(w.peer, our_vni, ++number);
            CHECK(numbers_up_to(*w.wire, number).empty());
        }
        std::filesystem::remove(old);
    });
}

TEST_CASE("vxlan filter: an earlier version's table is taken up, its chain goes") {
    isolated([] {
        World w(false);
        sh("nft -f - <<'END'\n"
           "add table inet banana\n"
           "add set inet banana vnis { typeof @th,96,24; }\n"
           "add set inet banana pairs4 { typeof ip saddr . @th,96,24; }\n"
           "add chain inet banana vxlan\n"
           "add chain inet banana input { type filter hook input priority 0; policy accept; }\n"
           "add rule inet banana vxlan ip saddr . @th,96,24 @pairs4 accept\n"
           "add rule inet banana vxlan @th,96,24 != @vnis accept\n"
           "add rule inet banana vxlan drop\n"
           "add rule inet banana input udp dport 4789 jump vxlan\n"
           "add element inet banana vnis { 70000 }\n"
           "add element inet banana pairs4 { 192.0.2.1 . 70000 }\n"
           "END\n");
        auto filter = must(VxlanFilter::open());
        CHECK(must(filter.list()) == std::vector<VxlanPeer>{{our_vni, ip("192.0.2.1")}});
        sh("! nft list chain inet banana vxlan 2>/dev/null");
        w.inject(w.third, our_vni, 1);
        w.inject(w.peer, our_vni, 2);
        CHECK(numbers_up_to(*w.wire, 2).empty());
        CHECK(must(filter.dropped()) == 1);
    });
}

TEST_CASE("vxlan filter: TCP to the same port number is left alone") {
    for (bool v6 : {false, true}) {
        CAPTURE(v6);
        isolated([v6] {
            World w(v6);
            auto filter = must(VxlanFilter::open());
            // Where a datagram has its VNI a SYN has its header's length, its flags and half its window: all such VNIs.
            std::vector<VxlanPeer> peers;
            for (uint32_t window = 0; window < 256; window++) peers.push_back({0xa00200 | window, ip("192.0.2.1")});
            must(filter.allow(peers));
            const int family = v6 ? AF_INET6 : AF_INET;
            Fd listener(socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
            sockaddr_in6 to6{};
            sockaddr_in to4{};
            to6.sin6_family = AF_INET6;
            to4.sin_family = AF_INET;
            to6.sin6_port = to4.sin_port = htons(4789);
            auto* to = v6 ? reinterpret_cast<sockaddr*>(&to6) : reinterpret_cast<sockaddr*>(&to4);
            const socklen_t size = v6 ? sizeof(to6) : sizeof(to4);
            REQUIRE(bind(listener.get(), to, size) == 0);
            REQUIRE(listen(listener.get(), 1) == 0);
            w.third.enter();
            Fd client(socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
            const timeval patience{3, 0};
            setsockopt(client.get(), SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
            inet_pton(AF_INET, "192.0.2.2", &to4.sin_addr);
            inet_pton(AF_INET6, "fd00::2", &to6.sin6_addr);
            CHECK(connect(client.get(), to, size) == 0);
        });
    }
}

TEST_CASE("vxlan filter: bad input is refused before the kernel is asked") {
    isolated([] {
        CHECK(VxlanFilter::open(4789, "x; flush ruleset").error().code() == Errc::invalid);
        auto filter = must(VxlanFilter::open(4789, "banana_2"));
        CHECK(filter.allow(1u << 24, ip("192.0.2.1")).error().code() == Errc::invalid);
        CHECK(filter.allow(1, {}).error().code() == Errc::invalid);
        CHECK(must(filter.list()).empty());
        must(filter.destroy());
        must(filter.destroy());
    });
}

TEST_CASE("vxlan filter: a pair costs the same at 2 000 pairs as at none") {
    isolated([] {
        auto filter = must(VxlanFilter::open());
        auto cost = [&](uint32_t from) {
            int64_t start = monotonic_ns();
            for (uint32_t vni = from; vni < from + 50; vni++) must(filter.allow(vni, ip("192.0.2.1")));
            int64_t added = monotonic_ns();
            for (uint32_t vni = from; vni < from + 50; vni++) must(filter.remove(vni));
            MESSAGE(fmt::format("at {}: add {} us, remove {} us", from, (added - start) / 50000,
                                (monotonic_ns() - added) / 50000));
            return added - start;
        };
        auto empty = cost(1);
        std::vector<VxlanPeer> many;
        for (uint32_t vni = 1; vni <= 2000; vni++) many.push_back({vni, ip("192.0.2.1")});
        must(filter.allow(many));
        auto full = cost(3000);
        CHECK(full < 10 * empty + 300000000);  // a listing of 2 000 for each call would be far beyond
    });
}
