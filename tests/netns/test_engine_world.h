// The wiring engine in a real kernel, one namespace a test (test_xconnect_lab.h):
//
//   eth1 --- (uplink of Corm hv1/lab)          eth7 --- (an adopted Spike's device)
//
//   bn-lab (anchor, down)    bnb00000001 (Corm): eth1, bnc00000021 (wire A), bnc00000022 (wire B)
//   wire A: eth7 natively    wire B: bnx0000000b to 192.0.2.2    Spike C of Corm hv2/far: eth8 - bnx0000000c
//
// eth1, eth7 and eth8 are veth ends; their other ends stand beside them and do nothing.
#pragma once

#include <doctest/doctest.h>
#include <fmt/core.h>
#include <net/if.h>

#include "test_xconnect_lab.h"
#include "wiring/engine.h"

namespace banana::testengine {

using namespace banana::testlab;
using namespace banana::wiring;
using model::Format;

inline const Site site{"hv1", *IpAddress::parse("192.0.2.1"), 4789};

inline Engine open_engine() { return must(Engine::open({"/sys/fs/bpf/banana", 4789, {}})); }

inline void arrange() {
    sh("for d in eth1 eth7 eth8; do ip link add $d type veth peer name $d.far; done; ip link add other type bridge");
}

inline model::Corm corm() {
    model::Corm corm;
    corm.id = 1;
    corm.name = "lab";
    corm.host = "hv1";
    corm.kind = model::CormKind::uplink;
    corm.device = "eth1";
    corm.mtu = 1400;
    return corm;
}

inline model::Half native(const std::string& device) {
    model::Half half;
    half.host = "hv1";
    half.device = device;
    return half;
}
inline model::Half vxlan(const std::string& host, uint32_t connector, const char* underlay = "192.0.2.2") {
    model::Half half;
    half.host = host;
    half.format = Format::vxlan;
    half.connector = connector;
    half.underlay = *IpAddress::parse(underlay);
    return half;
}

inline model::Wire wire(uint32_t port, const std::string& name, model::Half half) {
    model::Wire wire;
    wire.port = port;
    wire.name = name;
    wire.mac = mac("52:54:00:00:00:01");
    wire.corm = "hv1/lab";
    REQUIRE(wire.open(std::move(half)).ok());
    return wire;
}
inline model::Wire wire_a() { return wire(0x21, "hv1/dev/eth7", native("eth7")); }
inline model::Wire wire_b() { return wire(0x22, "hv2/vm1/net0", vxlan("hv2", 0xb)); }

inline model::Spike spike_c(model::SpikeState state = model::SpikeState::wired) {
    model::Spike spike;
    spike.name = "hv1/vm2/net0";
    spike.mac = mac("52:54:00:00:00:02");
    spike.device = "eth8";
    spike.state = state;
    spike.attachment.emplace();
    spike.attachment->half = vxlan("hv1", 0xc);
    spike.attachment->half.epoch = 9;
    spike.attachment->corm_underlay = *IpAddress::parse("192.0.2.3");
    spike.attachment->mtu = 1400;
    return spike;
}

inline model::Spike macvtap() {
    model::Spike spike;
    spike.name = "hv1/dev/mv";
    spike.id = 0x31;
    spike.mac = mac("52:54:00:00:00:03");
    return spike;
}

inline Plan everything() {
    Plan plan = plan_corm(corm());
    plan += plan_anchor(corm());
    plan += plan_wire(site, corm(), wire_a());
    plan += plan_wire(site, corm(), wire_b());
    plan += plan_spike(site, spike_c());
    return plan += plan_macvtap(macvtap(), 1400);
}

inline std::string steps(Engine& engine, const Plan& plan) {
    std::string out;
    for (const auto& step : must(engine.difference(plan))) out += describe(step) + "; ";
    return out;
}

}  // namespace banana::testengine
