// The cross-connect over real links: design §3's path, both directions, both attachments.
//
//   guest            hv1                                 hv2                              ext
//   eth0 ---veth--- spike (port of bn-lab, down)
//                   wire0 (vxlan 70000) == underlay == wire0 --- bnc (port of br-lab) .. lan ---veth--- eth0
//                   wire1 (vxlan 70001) == 192.0.2/24 == wire1          |
//                                                        bncp (bnc's other end, idle)
//
// The underlay is a veth pair of MTU 1500. Wires have MTU 9000.
#include <arpa/inet.h>
#include <bpf/bpf.h>
#include <fmt/core.h>
#include <poll.h>
#include <sys/socket.h>

#include <atomic>
#include <cstring>
#include <optional>
#include <thread>

#include "test_xconnect_lab.h"
#include "xconnect/prober.h"

using namespace banana;
using namespace banana::testlab;

namespace {

const char* dir1 = "/sys/fs/bpf/hv1";
const char* dir2 = "/sys/fs/bpf/hv2";

struct World {
    Ns guest{"guest"}, hv1{"hv1"}, hv2{"hv2"}, ext{"ext"};
    Mac guest_mac = mac("52:54:00:00:00:02"), ext_mac = mac("52:54:00:00:00:01");
    std::optional<CrossConnect> cc1, cc2;
    Options options;
    PortKey spike, wire[2], far[2], corm;  // spike and wire at hv1; far and corm at hv2
    std::optional<Wiretap> at_guest, at_ext;

    // Without snooping: such a bridge joins 224.0.0.106 and sends a report of it, which would be counted.
    explicit World(AttachMode mode) {
        options.mode = mode;
        options.capacity = 1024;
        sh(R"(
            ip -n guest link add eth0 address 52:54:00:00:00:02 mtu 9000 type veth peer name spike mtu 9000 netns hv1
            ip -n guest addr add 10.1.0.2/24 dev eth0; ip -n guest link set eth0 up
            ip -n hv1 link add bn-lab type bridge; ip -n hv1 link set spike master bn-lab up
            ip -n hv1 link add under type veth peer name under netns hv2
            ip -n hv1 addr add 192.0.2.1/24 dev under; ip -n hv1 link set under up
            ip -n hv2 addr add 192.0.2.2/24 dev under; ip -n hv2 link set under up
            for i in 0 1; do
                ip -n hv1 link add wire$i mtu 9000 type vxlan id 7000$i remote 192.0.2.2 dstport 4789 nolearning
                ip -n hv2 link add wire$i mtu 9000 type vxlan id 7000$i remote 192.0.2.1 dstport 4789 nolearning
                ip -n hv1 link set wire$i up; ip -n hv2 link set wire$i up
            done
            ip -n hv2 link add br-lab mtu 9000 type bridge mcast_snooping 0; ip -n hv2 link set br-lab up
            ip -n hv2 link add bnc mtu 9000 type veth peer name bncp mtu 9000
            ip -n hv2 link set bncp up; ip -n hv2 link set bnc master br-lab up
            ip -n ext link add eth0 address 52:54:00:00:00:01 mtu 9000 type veth peer name lan mtu 9000 netns hv2
            ip -n ext addr add 10.1.0.1/24 dev eth0; ip -n ext link set eth0 up; ip -n hv2 link set lan master br-lab up
        )");
        spike = {hv1.ifindex("spike"), Direction::ingress};
        corm = {hv2.ifindex("bnc"), Direction::egress};
        for (int i : {0, 1}) {
            wire[i] = {hv1.ifindex(fmt::format("wire{}", i)), Direction::ingress};
            far[i] = {hv2.ifindex(fmt::format("wire{}", i)), Direction::ingress};
        }
        cc1 = must(CrossConnect::open(dir1, options));
        cc2 = must(CrossConnect::open(dir2, options));
        at_guest.emplace(guest, "eth0", data_ethertype);
        at_ext.emplace(ext, "eth0", data_ethertype);
    }

    void attach() {
        hv1.enter();
        must(cc1->attach(spike, {PortKind::spike, guest_mac, false}));
        for (auto& port : wire) must(cc1->attach(port, {PortKind::wire, {}, false}));
        hv2.enter();
        must(cc2->attach(corm, {PortKind::corm, {}, false}));
        for (auto& port : far) must(cc2->attach(port, {PortKind::wire, {}, false}));
    }

    // Both wires lead inwards; the Spike and the Corm port send by wire `i`.
    void connect(int i = 0) {
        for (int j : {0, 1}) {
            must(cc1->set(wire[j], {spike.ifindex, Into::egress, 1, false}));
            must(cc2->set(far[j], {corm.ifindex, Into::ingress, 1, false}));
        }
        must(cc1->set(spike, {wire[i].ifindex, Into::egress, 1, false}));
        must(cc2->set(corm, {far[i].ifindex, Into::egress, 1, false}));
    }

    bool guest_to_ext() { return at_guest->send(frame(ext_mac, guest_mac, 7)) && at_ext->receive(1).size() == 1; }
    bool ext_to_guest() { return at_ext->send(frame(guest_mac, ext_mac, 8)) && at_guest->receive(1).size() == 1; }
};

void in_both_modes(const std::function<void(World&)>& body) {
    for (auto mode : {AttachMode::tcx, AttachMode::clsact}) {
        INFO((mode == AttachMode::tcx ? "tcx" : "clsact"));
        isolated([&] {
            World world(mode);
            body(world);
        });
    }
}

uint64_t drops(const CrossConnect& cc, PortKey port, xc_drop reason) {
    return must(cc.counters(port)).drops[reason].frames;
}

}  // namespace

TEST_CASE("xconnect: frames pass both ways over a VXLAN wire and are counted exactly") {
    in_both_modes([](World& w) {
        w.attach();
        w.connect();
        for (uint32_t i = 0; i < 100; i++) REQUIRE(w.at_guest->send(frame(w.ext_mac, w.guest_mac, i, 60 + i)));
        auto there = w.at_ext->receive(100);
        REQUIRE(there.size() == 100);
        CHECK(sequence_of(there[99]) == 99);
        CHECK(there[99].size() == 159);
        for (uint32_t i = 0; i < 50; i++) REQUIRE(w.at_ext->send(frame(w.guest_mac, w.ext_mac, i, 9014)));
        CHECK(w.at_guest->receive(50).size() == 50);

        Count out{100, 100 * 60 + 99 * 100 / 2}, in{50, 50 * 9014};
        CHECK(must(w.cc1->counters(w.spike)).passed == out);
        CHECK(must(w.cc2->counters(w.far[0])).passed == out);
        CHECK(must(w.cc2->counters(w.corm)).passed == in);
        CHECK(must(w.cc1->counters(w.wire[0])).passed == in);
        for (auto& port : {w.spike, w.wire[0]}) CHECK(must(w.cc1->counters(port)).dropped() == Count{});
        CHECK(must(w.cc1->counters(w.wire[1])).passed == Count{});
        CHECK(w.at_guest->receive(1, 50).empty());  // nothing comes back
    });
}

TEST_CASE("xconnect: a native wire joins Spike and Corm port of one host") {
    in_both_modes([](World& w) {
        // Here the Corm port and bridge of hv2 have their Spike beside them.
        sh("ip -n hv2 link add spike2 type veth peer name tap2; ip -n hv2 link add bn-lab type bridge; "
           "ip -n hv2 link set spike2 master bn-lab up; ip -n hv2 link set tap2 up");
        PortKey spike2{w.hv2.ifindex("spike2"), Direction::ingress};
        must(w.cc2->attach(spike2, {PortKind::spike, w.guest_mac, false}));
        must(w.cc2->attach(w.corm, {PortKind::corm, {}, false}));
        must(w.cc2->set(spike2, {w.corm.ifindex, Into::ingress, 1, false}));
        must(w.cc2->set(w.corm, {spike2.ifindex, Into::egress, 1, false}));
        Wiretap tap(w.hv2, "tap2", data_ethertype);
        REQUIRE(tap.send(frame(w.ext_mac, w.guest_mac, 3)));
        CHECK(w.at_ext->receive(1).size() == 1);
        REQUIRE(w.at_ext->send(frame(w.guest_mac, w.ext_mac, 4)));
        CHECK(tap.receive(1).size() == 1);
    });
}

TEST_CASE("xconnect: no entry, no frame") {
    in_both_modes([](World& w) {
        w.attach();
        for (int i = 0; i < 3; i++) REQUIRE(w.at_guest->send(frame(w.ext_mac, w.guest_mac)));
        REQUIRE(w.at_ext->send(frame(w.guest_mac, w.ext_mac)));
        CHECK(eventually([&] { return drops(*w.cc1, w.spike, XC_DROP_NO_ENTRY) == 3; }));
        CHECK(eventually([&] { return drops(*w.cc2, w.corm, XC_DROP_NO_ENTRY) == 1; }));
        w.connect();
        CHECK(w.guest_to_ext());
        must(w.cc1->erase(w.spike));
        must(w.cc1->erase(w.spike));
        REQUIRE(w.at_guest->send(frame(w.ext_mac, w.guest_mac)));
        CHECK(eventually([&] { return drops(*w.cc1, w.spike, XC_DROP_NO_ENTRY) == 4; }));
        CHECK(w.at_ext->receive(1, 100).empty());
        CHECK_FALSE(must(w.cc1->get(w.spike)));

        // A port that lost its policy is not trusted, though an entry is set.
        w.connect();
        must(w.cc1->forget(w.spike.ifindex));
        must(w.cc1->set(w.spike, {w.wire[0].ifindex, Into::egress, 1, false}));
        REQUIRE(w.at_guest->send(frame(w.ext_mac, w.guest_mac)));
        CHECK(eventually([&] { return drops(*w.cc1, {}, XC_DROP_NO_ENTRY) == 1; }));
        CHECK(w.at_ext->receive(1, 100).empty());
    });
}

TEST_CASE("xconnect: what a Spike may not send") {
    in_both_modes([](World& w) {
        w.attach();
        w.connect();
        Mac other = mac("52:54:00:00:00:99");
        REQUIRE(w.at_guest->send(frame(mac("01:80:c2:00:00:00"), w.guest_mac)));
        REQUIRE(w.at_guest->send(frame(mac("01:80:c2:00:00:0f"), w.guest_mac)));
        REQUIRE(w.at_guest->send(frame(w.ext_mac, other)));
        CHECK(eventually([&] { return drops(*w.cc1, w.spike, XC_DROP_LINK_LOCAL) == 2; }));
        CHECK(eventually([&] { return drops(*w.cc1, w.spike, XC_DROP_FOREIGN_MAC) == 1; }));
        // One bit past the reserved block is ordinary multicast.
        REQUIRE(w.at_guest->send(frame(mac("01:80:c2:00:00:10"), w.guest_mac)));
        CHECK(w.at_ext->receive(1).size() == 1);

        must(w.cc1->set_policy(w.spike, {PortKind::spike, w.guest_mac, true}));
        REQUIRE(w.at_guest->send(frame(w.ext_mac, other)));
        CHECK(w.at_ext->receive(1).size() == 1);
        REQUIRE(w.at_guest->send(frame(mac("01:80:c2:00:00:00"), w.guest_mac)));
        CHECK(eventually([&] { return drops(*w.cc1, w.spike, XC_DROP_LINK_LOCAL) == 3; }));
        CHECK(must(w.cc1->counters(w.spike)).dropped().frames == 4);
    });
}

TEST_CASE("xconnect: 3000 map updates under 10 kpps each way lose and double nothing") {
    in_both_modes([](World& w) {
        w.attach();
        w.connect();
        constexpr uint32_t frames = 30000;
        Tally there, back;
        std::jthread up([&] { send_paced(*w.at_guest, w.ext_mac, w.guest_mac, frames, 90); });
        std::jthread down([&] { send_paced(*w.at_ext, w.guest_mac, w.ext_mac, frames, 90); });
        std::jthread read_up([&] { there = tally(*w.at_ext, frames); });
        std::jthread read_down([&] { back = tally(*w.at_guest, frames); });
        int updates = 0;
        for (; updates < 3000; updates++) {
            int i = updates % 2;
            must(w.cc1->set(w.spike, {w.wire[i].ifindex, Into::egress, 2, false}));
            must(w.cc2->set(w.corm, {w.far[i].ifindex, Into::egress, 2, false}));
            poll(nullptr, 0, 1);  // spreads the updates over the stream
        }
        up.join();
        down.join();
        read_up.join();
        read_down.join();
        CHECK(there.distinct == frames);
        CHECK(back.distinct == frames);
        CHECK(there.duplicates + back.duplicates == 0);
        CHECK(must(w.cc1->counters(w.wire[0])).passed.frames > 0);
        CHECK(must(w.cc1->counters(w.wire[1])).passed.frames > 0);
    });
}

TEST_CASE("xconnect: GSO frames of a TCP connection pass whole") {
    in_both_modes([](World& w) {
        w.attach();
        w.connect();
        constexpr size_t total = 64 << 20;
        w.ext.enter();
        Fd listener(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_port = htons(5000);
        REQUIRE(bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
        REQUIRE(listen(listener.get(), 1) == 0);
        w.guest.enter();
        Fd client(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
        inet_pton(AF_INET, "10.1.0.1", &address.sin_addr);
        REQUIRE(connect(client.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
        Fd server(accept(listener.get(), nullptr, nullptr));
        std::jthread writer([&] {
            std::vector<uint8_t> block(1 << 16);
            for (size_t i = 0; i < block.size(); i++) block[i] = static_cast<uint8_t>(i * 7 + i / 251);
            for (size_t sent = 0; sent < total; sent += block.size()) send(client.get(), block.data(), block.size(), 0);
            shutdown(client.get(), SHUT_WR);
        });
        size_t received = 0, wrong = 0;
        std::vector<uint8_t> block(1 << 16);
        for (ssize_t size; (size = recv(server.get(), block.data(), block.size(), 0)) > 0;)
            for (ssize_t i = 0; i < size; i++, received++) {
                size_t at = received & 0xffff;
                wrong += block[static_cast<size_t>(i)] != static_cast<uint8_t>(at * 7 + at / 251);
            }
        writer.join();
        CHECK(received == total);
        CHECK(wrong == 0);
        auto counted = must(w.cc1->counters(w.spike)).passed;
        CHECK(counted.bytes > total);
        CHECK(counted.bytes / counted.frames > 20000);  // whole, not cut to the MTU of 9000
        CHECK(must(w.cc1->counters(w.spike)).dropped() == Count{});
    });
}

TEST_CASE("xconnect: a first frame is reported once for each arming") {
    in_both_modes([](World& w) {
        w.attach();
        w.connect();
        must(w.cc1->set(w.spike, {w.wire[0].ifindex, Into::egress, 41, true}));
        CHECK(must(w.cc1->read_events()).empty());
        for (int i = 0; i < 5; i++) CHECK(w.guest_to_ext());
        pollfd ready{w.cc1->events_fd(), POLLIN, 0};
        CHECK(poll(&ready, 1, 5000) == 1);
        auto events = must(w.cc1->read_events());
        REQUIRE(events.size() == 1);
        CHECK(events[0].port == w.spike);
        CHECK(events[0].generation == 41);
        CHECK_FALSE(must(w.cc1->get(w.spike))->armed);
        CHECK(w.guest_to_ext());
        CHECK(must(w.cc1->read_events()).empty());

        must(w.cc2->set(w.corm, {w.far[0].ifindex, Into::egress, 42, true}));
        CHECK(w.ext_to_guest());
        events = must(w.cc2->read_events());
        REQUIRE(events.size() == 1);
        CHECK(events[0].port == w.corm);
        CHECK(events[0].generation == 42);
        CHECK(events[0].monotonic_ns > 0);
    });
}

TEST_CASE("xconnect: counters and entries of a device that went are not inherited") {
    in_both_modes([](World& w) {
        w.attach();
        w.connect();
        CHECK(w.guest_to_ext());
        CHECK(must(w.cc1->list()).size() == 3);
        must(w.cc1->forget(w.spike.ifindex));
        CHECK(must(w.cc1->list()).size() == 2);
        CHECK_FALSE(must(w.cc1->policy(w.spike)));
        CHECK(w.cc1->counters(w.spike).error().code() == Errc::not_found);

        // wire1 goes: its own entry; and the Spike's is gone: wire0's points at it.
        std::vector<uint32_t> alive{w.wire[0].ifindex};
        CHECK(must(w.cc1->sweep(alive)) == 2);
        CHECK(must(w.cc1->list()).empty());
        CHECK(must(w.cc1->list_policies()).size() == 1);
        CHECK(must(w.cc1->sweep(alive)) == 0);
    });
}
