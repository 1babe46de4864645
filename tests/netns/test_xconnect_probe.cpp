// Probes over a real VXLAN wire: sizes, standby wires, and guests that try to meddle.
//
//   tap ---veth--- spike    hv1: wire (vxlan, MTU 9000) === underlay veth, MTU 1500 === wire :hv2    bnc --- bncp
#include <arpa/inet.h>
#include <poll.h>

#include <cstring>
#include <optional>

#include "test_xconnect_lab.h"
#include "xconnect/prober.h"

using namespace banana;
using namespace banana::testlab;

namespace {

struct Wire {
    Ns hv1{"hv1"}, hv2{"hv2"};
    std::optional<CrossConnect> cc1, cc2;
    PortKey near, far;
    std::optional<Prober> prober;

    Wire() {
        sh(R"(
            ip -n hv1 link add under type veth peer name under netns hv2
            ip -n hv1 addr add 192.0.2.1/24 dev under; ip -n hv1 link set under up
            ip -n hv2 addr add 192.0.2.2/24 dev under; ip -n hv2 link set under up
            ip -n hv1 link add wire mtu 9000 type vxlan id 70000 remote 192.0.2.2 dstport 4789 nolearning
            ip -n hv2 link add wire mtu 9000 type vxlan id 70000 remote 192.0.2.1 dstport 4789 nolearning
            ip -n hv1 link set wire up; ip -n hv2 link set wire up
        )");
        cc1 = must(CrossConnect::open("/sys/fs/bpf/hv1"));
        cc2 = must(CrossConnect::open("/sys/fs/bpf/hv2"));
        far = {hv2.ifindex("wire"), Direction::ingress};
        must(cc2->attach(far, {PortKind::wire, {}, false}));
        near = {hv1.ifindex("wire"), Direction::ingress};
        must(cc1->attach(near, {PortKind::wire, {}, false}));
        prober = must(Prober::open());
    }

    // The reply to `nonce`, if it comes within the time given.
    std::optional<ProbeReply> reply(uint64_t nonce, int ms = 5000) {
        for (;;) {
            pollfd ready{prober->fd(), POLLIN, 0};
            if (poll(&ready, 1, ms) <= 0) return {};
            for (auto& one : must(prober->read()))
                if (one.nonce == nonce) return one;
        }
    }
};

std::vector<uint8_t> probe_frame(const Mac& from, uint8_t type, uint8_t version = XC_PROBE_VERSION) {
    auto out = frame(mac("02:00:00:00:00:01"), from, 0, 100, XC_PROBE_ETHERTYPE);
    xc_probe probe{};
    probe.magic = htonl(XC_PROBE_MAGIC);
    probe.version = version;
    probe.type = type;
    memcpy(out.data() + 14, &probe, sizeof(probe));
    return out;
}

}  // namespace

TEST_CASE("xconnect probe: full-size frames come back over a standby wire") {
    isolated([] {
        Wire w;
        uint64_t nonce = 0x1122334455667788;
        // 1514: MTU 1500 over an underlay of 1500, hence in two outer fragments; 9014: MTU 9000, in seven.
        for (size_t size : {size_t{60}, size_t{1464}, size_t{1514}, size_t{9014}}) {
            CAPTURE(size);
            must(w.prober->send(w.near.ifindex, ++nonce, size));
            auto reply = w.reply(nonce);
            REQUIRE(reply);
            CHECK(reply->frame_size == size);
            CHECK(reply->ifindex == w.near.ifindex);
            CHECK(reply->rtt_ns > 0);
            CHECK(reply->rtt_ns < 1000000000);
        }
        CHECK(must(w.cc2->counters(w.far)).probes == Count{4, 60 + 1464 + 1514 + 9014});
        CHECK(must(w.cc1->counters(w.near)).probes.frames == 4);
        CHECK(must(w.cc2->counters(w.far)).dropped() == Count{});
        CHECK(w.prober->send(w.near.ifindex, 1, 9015).error().code() == Errc::refused);
        CHECK(w.prober->send(999999, 1, 100).error().code() == Errc::not_found);

        // A frame larger than the far end's underlay can pass whole: no answer, and nothing breaks.
        w.hv2.enter();
        must(w.cc2->detach(w.far));
        w.hv1.enter();
        must(w.prober->send(w.near.ifindex, 77, 100));
        CHECK_FALSE(w.reply(77, 200));
    });
}

TEST_CASE("xconnect probe: a wire in use is probed beside its traffic, and its guest never sees the probe") {
    isolated([] {
        Wire w;
        sh("ip -n hv2 link add bnc type veth peer name bncp; ip -n hv2 link set bnc up; ip -n hv2 link set bncp up");
        PortKey bnc{w.hv2.ifindex("bnc"), Direction::egress};
        must(w.cc2->attach(bnc, {PortKind::corm, {}, false}));
        must(w.cc2->set(w.far, {bnc.ifindex, Into::egress, 1, false}));
        must(w.cc2->set(bnc, {w.far.ifindex, Into::egress, 1, false}));
        w.hv1.enter();
        must(w.prober->send(w.near.ifindex, 5, 200));
        CHECK(w.reply(5));
        CHECK(must(w.cc2->counters(w.far)).passed == Count{});
    });
}

TEST_CASE("xconnect probe: guests and Corm networks can neither ask nor answer") {
    isolated([] {
        Wire w;
        Mac guest = mac("52:54:00:00:00:02");
        sh("ip -n hv1 link add spike type veth peer name tap; ip -n hv1 link set spike up; ip -n hv1 link set tap up; "
           "ip -n hv2 link add bnc type veth peer name bncp; ip -n hv2 link set bnc up; ip -n hv2 link set bncp up");
        PortKey spike{w.hv1.ifindex("spike"), Direction::ingress};
        must(w.cc1->attach(spike, {PortKind::spike, guest, false}));
        must(w.cc1->set(spike, {w.near.ifindex, Into::egress, 1, false}));
        PortKey bnc{w.hv2.ifindex("bnc"), Direction::egress};
        must(w.cc2->attach(bnc, {PortKind::corm, {}, false}));
        must(w.cc2->set(bnc, {w.far.ifindex, Into::egress, 1, false}));
        must(w.cc2->set(w.far, {bnc.ifindex, Into::egress, 1, false}));

        Wiretap tap(w.hv1, "tap", data_ethertype), out(w.hv2, "bnc", data_ethertype),
            end(w.hv2, "bncp", XC_PROBE_ETHERTYPE);
        for (uint8_t type : {XC_PROBE_REQUEST, XC_PROBE_REPLY}) {
            REQUIRE(tap.send(probe_frame(guest, type)));
            out.send(probe_frame(mac("52:54:00:00:00:01"), type));  // the drop comes back as ENOBUFS
        }
        CHECK(eventually([&] {
            return must(w.cc1->counters(spike)).drops[XC_DROP_PROBE_FROM_GUEST].frames == 2 &&
                   must(w.cc2->counters(bnc)).drops[XC_DROP_PROBE_FROM_GUEST].frames == 2;
        }));
        CHECK(must(w.cc2->counters(w.far)).probes.frames == 0);
        CHECK(must(w.prober->read()).empty());

        // The same ethertype without our magic is a guest's own business, and so is a tagged frame.
        must(w.cc2->set(w.far, {bnc.ifindex, Into::ingress, 1, false}));
        Wiretap in(w.hv2, "bnc", XC_PROBE_ETHERTYPE);
        REQUIRE(tap.send(frame(mac("02:00:00:00:00:01"), guest, 9, 100, XC_PROBE_ETHERTYPE)));
        CHECK(in.receive(1).size() == 1);
        auto tagged = probe_frame(guest, XC_PROBE_REQUEST);
        tagged.insert(tagged.begin() + 12, {0x81, 0x00, 0x00, 0x05});
        REQUIRE(tap.send(tagged));
        CHECK(eventually([&] { return must(w.cc2->counters(w.far)).passed.frames == 2; }));
        CHECK(must(w.cc2->counters(w.far)).probes.frames == 0);

        // Our magic on a wire in a version or of a type unknown.
        Wiretap wire(w.hv1, "wire", data_ethertype);
        REQUIRE(wire.send(probe_frame(guest, XC_PROBE_REQUEST, XC_PROBE_VERSION + 1)));
        REQUIRE(wire.send(probe_frame(guest, 9)));
        CHECK(eventually([&] { return must(w.cc2->counters(w.far)).drops[XC_DROP_BAD_PROBE].frames == 2; }));
    });
}
