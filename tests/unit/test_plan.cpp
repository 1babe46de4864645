#include "wiring/plan.h"

#include <doctest/doctest.h>
#include <fmt/core.h>

#include "model/names.h"
#include "wiring/headroom.h"

using namespace banana;
using namespace banana::wiring;
using model::Format;

namespace {

const Site site{"hv1", *IpAddress::parse("192.0.2.1"), 4789};

model::Half native(const std::string& device) {
    model::Half half;
    half.host = "hv1";
    half.device = device;
    return half;
}
model::Half vxlan(const std::string& host, uint32_t connector) {
    model::Half half;
    half.host = host;
    half.format = Format::vxlan;
    half.connector = connector;
    half.underlay = *IpAddress::parse("192.0.2.2");
    return half;
}

model::Corm corm(model::CormKind kind = model::CormKind::etherstub) {
    model::Corm corm;
    corm.id = 1;
    corm.name = "lab";
    corm.host = "hv1";
    corm.kind = kind;
    corm.mtu = 9000;
    if (kind == model::CormKind::uplink) corm.device = "eth1";
    if (kind == model::CormKind::bridge) corm.device = "br0";
    return corm;
}

model::Wire wire() {
    model::Wire wire;
    wire.port = 0x2a;
    wire.name = "hv1/vm1/net0";
    wire.mac = *Mac::parse("52:54:00:00:00:01");
    wire.corm = "hv1/lab";
    return wire;
}

// An active wire becomes idle; its half.
model::Half end(model::Wire& wire) {
    const model::Half half = *wire.active;
    wire.active.reset();
    wire.phase = model::Phase::idle;
    return half;
}

model::Spike spike(Format format, model::SpikeState state) {
    model::Spike spike;
    spike.name = "hv1/vm1/net0";
    spike.id = 7;
    spike.mac = *Mac::parse("52:54:00:00:00:01");
    spike.device = "vnet0";
    spike.state = state;
    spike.attachment.emplace();
    spike.attachment->port = 0x2a;
    spike.attachment->half = format == Format::native ? native("vnet0") : vxlan("hv1", 0xb);
    spike.attachment->half.epoch = 6;
    spike.attachment->corm_underlay = *IpAddress::parse("192.0.2.3");
    spike.attachment->mtu = 9000;
    return spike;
}

// "bnx0000000b< -> bnc0000002a< @2": ingress "<", egress ">"; the target's side into which frames go.
std::string entries(const Plan& plan) {
    std::string out;
    for (const auto& e : plan.entries) {
        out += out.empty() ? "" : "; ";
        out += e.device + (e.direction == Direction::ingress ? "<" : ">") + " -> ";
        out += e.target.empty() ? "nothing" : e.target + (e.into == Into::ingress ? "<" : ">");
        if (!e.target.empty()) out += fmt::format(" @{}", e.generation);
        if (e.armed) out += " armed";
    }
    return out;
}

std::string links(const Plan& plan) {
    std::string out;
    for (const auto& l : plan.links) out += (out.empty() ? "" : " ") + l.name;
    return out;
}

std::string ports(const Plan& plan) {
    std::string out;
    for (const auto& p : plan.ports) {
        const auto kind = p.policy.kind;
        const char* name = kind == xconnect::PortKind::spike  ? "spike"
                           : kind == xconnect::PortKind::wire ? "wire"
                                                              : "corm";
        out += fmt::format("{}{}{} {}", out.empty() ? "" : "; ", p.device,
                           p.direction == Direction::ingress ? "<" : ">", name);
    }
    return out;
}

}  // namespace

TEST_CASE("plan: a wire's entries in each phase: admit, flip, fence") {
    model::Wire w = wire();
    CHECK(entries(plan_wire_entries(w)) == "bnc0000002a> -> nothing");
    REQUIRE(w.open(vxlan("hv2", 0xa)).ok());
    CHECK(entries(plan_wire_entries(w)) == "bnx0000000a< -> bnc0000002a< @1; bnc0000002a> -> bnx0000000a> @1");
    REQUIRE(w.prepare(vxlan("hv3", 0xb)).ok());
    CHECK(entries(plan_wire_entries(w)) ==
          "bnx0000000a< -> bnc0000002a< @1; bnc0000002a> -> bnx0000000a> @1; bnx0000000b< -> nothing");
    REQUIRE(w.flip(2).ok());
    CHECK(entries(plan_wire_entries(w)) ==
          "bnx0000000a< -> bnc0000002a< @1; bnx0000000b< -> bnc0000002a< @2; bnc0000002a> -> bnx0000000b> @2");
    const auto retired = w.activate(2);
    REQUIRE((retired.ok() && retired->has_value()));
    CHECK(entries(plan_wire_entries(w, {**retired})) ==
          "bnx0000000b< -> bnc0000002a< @2; bnc0000002a> -> bnx0000000b> @2; bnx0000000a< -> nothing");
    const model::Half last = end(w);
    CHECK(entries(plan_wire_entries(w, {last})) == "bnc0000002a> -> nothing; bnx0000000b< -> nothing");
}

TEST_CASE("plan: a native half's entries are the Corm's side's, once its device is known") {
    model::Wire w = wire();
    REQUIRE(w.open(native("")).ok());
    CHECK(entries(plan_wire_entries(w)) == "bnc0000002a> -> nothing");
    w.active->device = "vnet0";
    CHECK(entries(plan_wire_entries(w)) == "vnet0< -> bnc0000002a< @1; bnc0000002a> -> vnet0> @1");
    CHECK(ports(plan_wire(site, corm(), w)) == "bnc0000002a> corm; vnet0< spike");
    REQUIRE(w.prepare(vxlan("hv2", 0xb)).ok());
    REQUIRE(w.flip(2).ok());
    CHECK(entries(plan_wire_entries(w)) ==
          "vnet0< -> bnc0000002a< @1; bnx0000000b< -> bnc0000002a< @2; bnc0000002a> -> bnx0000000b> @2");
    const auto retired = w.activate(2);
    CHECK(entries(plan_wire_entries(w, {**retired})) ==
          "bnx0000000b< -> bnc0000002a< @2; bnc0000002a> -> bnx0000000b> @2; vnet0< -> nothing");
    // On its own host the Spike's side adds a port, no entry: or the fence could be undone there.
    CHECK(entries(plan_spike(site, spike(Format::native, model::SpikeState::wired))) == "");
    CHECK(ports(plan_spike(site, spike(Format::native, model::SpikeState::wired))) == "vnet0< spike");
}

TEST_CASE("plan: a native half that follows another on one device is not fenced with it") {
    model::Wire w = wire();
    REQUIRE(w.open(native("eth7")).ok());
    const model::Half before = *w.active;
    REQUIRE(w.open(native("eth7")).ok());
    CHECK(entries(plan_wire_entries(w, {before})) == "eth7< -> bnc0000002a< @2; bnc0000002a> -> eth7> @2");
    const model::Half last = end(w);
    CHECK(entries(plan_wire_entries(w, {last, before})) == "bnc0000002a> -> nothing; eth7< -> nothing");
}

TEST_CASE("plan: what a wire consists of at the Corm's host") {
    model::Wire w = wire();
    REQUIRE(w.open(vxlan("hv2", 0xab00000a)).ok());
    REQUIRE(w.prepare(vxlan("hv3", 0xb)).ok());
    const Plan plan = plan_wire(site, corm(), w);
    CHECK(links(plan) == "bnc0000002a bnxab00000a bnx0000000b");
    CHECK(ports(plan) == "bnc0000002a> corm; bnxab00000a< wire; bnx0000000b< wire");
    CHECK(plan.peers == std::vector<VxlanPeer>{{0xa, w.active->underlay}, {0xb, w.standby->underlay}});
    CHECK(std::holds_alternative<IfbKind>(plan.links[0].kind));
    CHECK(plan.links[0].master == "bnb00000001");
    CHECK(std::get<VxlanKind>(plan.links[1].kind) == VxlanKind{0xa, site.underlay, w.active->underlay, 4789});
    for (const auto& link : plan.links) {
        CHECK(link.mtu == 9000);
        CHECK(link.up == true);
        CHECK(link.alias.ends_with(" hv1/vm1/net0"));
    }
    const Plan gone = plan_wire_gone(w);
    CHECK(gone.absent == std::vector<std::string>{"bnxab00000a", "bnx0000000b", "bnc0000002a"});
    CHECK(gone.absent_vnis == std::vector<uint32_t>{0xa, 0xb});
    CHECK(plan_half_gone(native("vnet0")).absent.empty());  // the tap is libvirt's
}

TEST_CASE("plan: a DTLS wire is a tap at both ends, and flips as any other") {
    model::Wire w = wire();
    model::Half first = vxlan("hv2", 0xab00000a);
    first.format = Format::dtls;
    model::Half second = vxlan("hv3", 0xb);
    second.format = Format::dtls;
    REQUIRE(w.open(first).ok());
    REQUIRE(w.prepare(second).ok());
    const Plan plan = plan_wire(site, corm(), w);
    CHECK(links(plan) == "bnc0000002a bndab00000a bnd0000000b");
    CHECK(ports(plan) == "bnc0000002a> corm; bndab00000a< wire; bnd0000000b< wire");
    CHECK(plan.peers.empty());  // no VXLAN
    CHECK(plan.tunnel_wires ==
          std::vector<TunnelWire>{{0xab00000a, "bndab00000a", "hv2", 9000}, {0xb, "bnd0000000b", "hv3", 9000}});
    CHECK(std::holds_alternative<TapKind>(plan.links[1].kind));
    CHECK(plan.links[1].up == true);
    CHECK(plan.links[1].alias == "banana wire hv1/vm1/net0");
    // A standby half's tap passes nothing.
    CHECK(entries(plan) == "bndab00000a< -> bnc0000002a< @1; bnc0000002a> -> bndab00000a> @1; bnd0000000b< -> nothing");
    REQUIRE(w.flip(2).ok());
    CHECK(entries(plan_wire_entries(w)) ==
          "bndab00000a< -> bnc0000002a< @1; bnd0000000b< -> bnc0000002a< @2; bnc0000002a> -> bnd0000000b> @2");
    const Plan gone = plan_wire_gone(w);
    CHECK(gone.absent == std::vector<std::string>{"bndab00000a", "bnd0000000b", "bnc0000002a"});
    CHECK(gone.absent_tunnel_wires == std::vector<uint32_t>{0xab00000a, 0xb});
    CHECK(gone.absent_vnis.empty());

    model::Spike s = spike(Format::vxlan, model::SpikeState::wired);
    s.attachment->half.format = Format::dtls;
    s.attachment->corm_host = "hv4";
    const Plan here = plan_spike(site, s);
    CHECK(links(here) == "bnd0000000b vnet0");
    CHECK(here.tunnel_wires == std::vector<TunnelWire>{{0xb, "bnd0000000b", "hv4", 9000}});
    CHECK(entries(here) == "vnet0< -> bnd0000000b> @6; bnd0000000b< -> vnet0> @6");
    Plan both = plan_spike_gone(s);
    both += here;
    CHECK(both.absent_tunnel_wires == std::vector<uint32_t>{0xb});
    CHECK(both.tunnel_wires.size() == 1);
}

TEST_CASE("plan: a Corm by its kind; what is somebody else's is never made or deleted") {
    const Plan stub = plan_corm(corm());
    CHECK(links(stub) == "bnb00000001");
    CHECK(stub.links[0].up == true);
    const Plan uplink = plan_corm(corm(model::CormKind::uplink));
    CHECK(links(uplink) == "bnb00000001 eth1");
    CHECK(std::holds_alternative<AdoptedKind>(uplink.links[1].kind));
    CHECK(uplink.links[1].master == "bnb00000001");
    CHECK(uplink.links[1].mtu == 0);
    const Plan adopted = plan_corm(corm(model::CormKind::bridge));
    CHECK(links(adopted) == "br0");
    CHECK(std::holds_alternative<AdoptedKind>(adopted.links[0].kind));
    CHECK_FALSE(adopted.links[0].up.has_value());
    CHECK(adopted.links[0].mtu == 0);
    const Plan anchor = plan_anchor(corm());
    CHECK(links(anchor) == "bn-lab");
    CHECK(anchor.links[0].up == false);
    CHECK(plan_corm_gone(corm(model::CormKind::uplink)).absent ==
          std::vector<std::string>{"bn-lab", "bnh00000001", "bnb00000001"});
    CHECK(plan_corm_gone(corm(model::CormKind::bridge)).absent == std::vector<std::string>{"bn-lab"});
}

TEST_CASE("plan: the Spike's side of a VXLAN wire") {
    model::Spike s = spike(Format::vxlan, model::SpikeState::wired);
    s.old_txqueuelen = 1000;
    Plan plan = plan_spike(site, s);
    CHECK(links(plan) == "bnx0000000b vnet0");
    CHECK(std::get<VxlanKind>(plan.links[0].kind).remote == s.attachment->corm_underlay);
    CHECK(plan.peers == std::vector<VxlanPeer>{{0xb, s.attachment->corm_underlay}});
    CHECK(entries(plan) == "vnet0< -> bnx0000000b> @6; bnx0000000b< -> vnet0> @6");
    CHECK(plan.links[1].txqueuelen == 1000);
    CHECK(plan.links[1].mtu == 0);  // a tap's MTU is libvirt's matter

    s.state = model::SpikeState::incoming;
    plan = plan_spike(site, s);
    CHECK(entries(plan) == "vnet0< -> bnx0000000b> @6 armed; bnx0000000b< -> vnet0> @6");
    CHECK(plan.links[1].txqueuelen == 10000);

    s.device = "";  // between `prepare` and `start`
    plan = plan_spike(site, s);
    CHECK(links(plan) == "bnx0000000b");
    CHECK(entries(plan) == "");

    s = spike(Format::vxlan, model::SpikeState::wired);
    s.kind = model::SpikeKind::netdev;
    CHECK(plan_spike(site, s).links[1].txqueuelen == 0);
    s.kind = model::SpikeKind::macvtap;
    CHECK(plan_spike(site, s).links[1].mtu == 9000);
    const Plan gone = plan_spike_gone(s);
    CHECK(entries(gone) == "vnet0< -> nothing");
    CHECK(gone.absent == std::vector<std::string>{"bnx0000000b"});
    CHECK(gone.absent_vnis == std::vector<uint32_t>{0xb});
    s.attachment.reset();
    CHECK(links(plan_spike(site, s)) == "");
    CHECK(plan_spike_gone(s).absent.empty());

    const Plan lower = plan_macvtap(s, 1400);
    CHECK(links(lower) == "bne00000007");
    CHECK(std::get<VethKind>(lower.links[0].kind).peer == "bnf00000007");
    CHECK(lower.links[0].mac == s.mac);
    CHECK(plan_macvtap_gone(s).absent == std::vector<std::string>{"bne00000007"});
}

TEST_CASE("plan: headroom is a VXLAN that is never up, in our bridges alone") {
    CHECK(links(plan_headroom(site, corm(model::CormKind::bridge))) == "");
    for (const auto kind : {model::CormKind::etherstub, model::CormKind::uplink}) {
        const Plan plan = plan_headroom(site, corm(kind));
        REQUIRE(links(plan) == "bnh00000001");
        const LinkWant& link = plan.links[0];
        CHECK(link.master == "bnb00000001");
        CHECK(link.up == false);
        CHECK(link.alias == "banana headroom hv1/lab");
        // No wire's, whatever its VNI: another UDP port. The filter has no leave for it.
        CHECK(std::get<VxlanKind>(link.kind) == VxlanKind{1, {}, *IpAddress::parse("127.0.0.1"), 9});
        CHECK(plan.peers.empty());
        CHECK(ports(plan) == "");
        CHECK(entries(plan) == "");
    }
    model::Corm other = corm();
    other.id = 0xab000000;  // VNI 0 is none
    CHECK(std::get<VxlanKind>(plan_headroom(site, other).links[0].kind).vni == 1);
    // IPv6's header is longer.
    const Site six{"hv1", *IpAddress::parse("2001:db8::1"), 4789};
    CHECK(std::get<VxlanKind>(plan_headroom(six, corm()).links[0].kind).remote == *IpAddress::parse("::1"));
    CHECK(reserved_ports(corm()) == 1);
    CHECK(reserved_ports(corm(model::CormKind::uplink)) == 2);
    CHECK(reserved_ports(corm(model::CormKind::bridge)) == 0);
}

TEST_CASE("plan: an adopted netdev on its stage") {
    model::Spike s;
    s.kind = model::SpikeKind::netdev;
    s.device = "eth7";
    CHECK(links(plan_staged(s)) == "");
    CHECK(plan_unstaged(s).loose.empty());
    s.stage = 2;
    Plan plan = plan_stage(site, 2);
    plan += plan_staged(s);
    REQUIRE(links(plan) == "bns00000002 bng00000002 eth7");
    CHECK(plan.links[0].up == false);
    CHECK(plan.links[1].up == false);
    CHECK(plan.links[1].master == "bns00000002");
    CHECK(std::holds_alternative<AdoptedKind>(plan.links[2].kind));
    CHECK(plan.links[2].master == "bns00000002");
    CHECK(plan.links[2].only_if_free);
    CHECK_FALSE(plan.links[2].up.has_value());
    // Two stages' VNIs are not the same, nor 0.
    const auto vni = [](uint32_t n) { return std::get<VxlanKind>(plan_stage(site, n).links[1].kind).vni; };
    CHECK(vni(1) == 0xfffffe);
    CHECK(vni(2) == 0xfffffd);
    const Plan loose = plan_unstaged(s);
    CHECK(links(loose) == "");
    REQUIRE(loose.loose.size() == 1);
    CHECK(loose.loose[0].name == "eth7");
    CHECK(loose.loose[0].master == "bns00000002");
    CHECK(plan_stage_gone(2).absent == std::vector<std::string>{"bng00000002", "bns00000002"});
    for (const auto& name : plan_stage_gone(2).absent) CHECK(model::is_own_device(name));
    CHECK(model::is_own_device(model::headroom_device(1)));
    Plan sum = loose;
    sum += loose;
    CHECK(sum.loose.size() == 2);
}
