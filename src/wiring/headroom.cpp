// Why a device that is never up (read in the kernel's source, 6.1 to 6.18; measured by tests/bench/bench-vxlan):
//
// - A bridge takes the largest needed_headroom of its ports and tells it to all of them (br_add_if, br_del_if:
//   netdev_set_rx_headroom), whether they are up or not. A veth hands it to its peer, which whoever builds a frame for
//   it heeds (LL_RESERVED_SPACE); a tap's reader of QEMU's frames heeds it as well. A veth's own value does not count.
// - A VXLAN asks for an Ethernet, IP, UDP and VXLAN header; IPv6's is longer, hence the underlay's family. What the
//   wire's VXLAN then needs is that and the underlay device's own header, 52 or 72 bytes: the room is rounded up.
// - Down, it opens no UDP socket and its port of the bridge is disabled. Its remote is the loopback address, its UDP
//   port is nobody's, so that no wire's VNI can clash with its own: the kernel compares both.
//
// Who has room without it: taps leave 64 bytes (NET_SKB_PAD), enough over IPv4. Whom it does not help: a macvtap leaves
// 2 bytes whatever is asked.
#include "wiring/headroom.h"

#include <fmt/core.h>
#include <sys/socket.h>

#include <algorithm>

#include "model/names.h"

namespace banana::wiring {

namespace {

constexpr uint16_t no_wire_port = 9;  // "discard"; never opened
constexpr uint32_t vni_most = 0xffffff;

LinkWant room(const Site& site, const std::string& name, const std::string& bridge, uint32_t vni,
              const std::string& whose) {
    LinkWant want;
    want.name = name;
    want.kind =
        VxlanKind{vni, {}, *IpAddress::parse(site.underlay.family == AF_INET6 ? "::1" : "127.0.0.1"), no_wire_port};
    want.alias = "banana headroom " + whose;
    want.master = bridge;
    want.up = false;
    return want;
}

std::string stage_name(uint32_t number) { return fmt::format("stage {}", number); }

}  // namespace

size_t reserved_ports(const model::Corm& corm) {
    switch (corm.kind) {
        case model::CormKind::uplink: return 2;
        case model::CormKind::etherstub: return 1;
        case model::CormKind::bridge: return 0;
    }
    return 0;
}

Plan plan_headroom(const Site& site, const model::Corm& corm) {
    Plan plan;
    if (corm.kind == model::CormKind::bridge) return plan;
    const uint32_t vni = std::max(model::vni_of(corm.id), 1u);
    plan.links.push_back(room(site, model::headroom_device(corm.id), corm.bridge(), vni, corm.full_name()));
    return plan;
}

Plan plan_stage(const Site& site, uint32_t number) {
    LinkWant stage;
    stage.name = model::stage_device(number);
    stage.kind = BridgeKind{};
    stage.alias = "banana " + stage_name(number);
    stage.up = false;
    Plan plan;
    plan.links.push_back(stage);
    // Corms' VNIs are random: one that is a stage's as well is as unlikely as two Corms with the same.
    plan.links.push_back(
        room(site, model::stage_headroom_device(number), stage.name, vni_most - number % vni_most, stage_name(number)));
    return plan;
}

Plan plan_stage_gone(uint32_t number) {
    Plan plan;
    plan.absent = {model::stage_headroom_device(number), model::stage_device(number)};
    return plan;
}

Plan plan_staged(const model::Spike& spike) {
    Plan plan;
    if (spike.stage == 0 || spike.device.empty()) return plan;
    LinkWant device;
    device.name = spike.device;
    device.master = model::stage_device(spike.stage);
    device.only_if_free = true;
    plan.links.push_back(std::move(device));
    return plan;
}

Plan plan_unstaged(const model::Spike& spike) {
    Plan plan;
    if (spike.stage != 0 && !spike.device.empty())
        plan.loose.push_back({spike.device, model::stage_device(spike.stage)});
    return plan;
}

}  // namespace banana::wiring
