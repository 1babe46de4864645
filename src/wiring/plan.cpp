// What each record means in links and entries (design: data path).
//
//   Spike side                                  Corm side
//   device (tap, bnf<id>, netdev)               bnc<port>, a port of the Corm's bridge
//     ingress -> far device                       egress -> current half's device
//   far device: bnx<connector> (VXLAN),         the same
//   bnd<connector> (DTLS), or natively
//   the Corm port itself                          ingress -> into bnc<port>, if the half is admitted
//     far device ingress -> device
//
// A native half has no device of its own: the Spike's device is the half's, and both its entries are made by the Corm's
// side, which alone knows whether it is admitted and current. So the fence holds for a guest on the Corm's own host
// too.

#include "wiring/plan.h"

#include <fmt/core.h>

#include <algorithm>
#include <iterator>

#include "model/names.h"

namespace banana::wiring {

using model::Format;
using xconnect::PortKind;

namespace {

// Frames for an incoming guest wait in its tap until QEMU reads; the device's own length is restored afterwards.
constexpr uint32_t spike_queue_frames = 10000;

template <class T>
void add(std::vector<T>& all, std::vector<T>&& more) {
    all.insert(all.end(), std::make_move_iterator(more.begin()), std::make_move_iterator(more.end()));
}

LinkWant vxlan_link(const Site& site, const model::Half& half, const IpAddress& remote, uint32_t mtu,
                    const std::string& alias) {
    LinkWant want;
    want.name = model::wire_device(half.connector);
    want.kind = VxlanKind{model::vni_of(half.connector), site.underlay, remote, site.vxlan_port};
    want.alias = alias;
    want.mtu = mtu;
    want.up = true;
    return want;
}

void add_vxlan_end(Plan& plan, const Site& site, const model::Half& half, const IpAddress& remote, uint32_t mtu,
                   const std::string& alias) {
    plan.peers.push_back({model::vni_of(half.connector), remote});
    plan.links.push_back(vxlan_link(site, half, remote, mtu, alias));
    plan.ports.push_back({model::wire_device(half.connector), Direction::ingress, {PortKind::wire, {}, false}, true});
}

// Frames that wait for the tunnel process while it is off the CPU: 5 ms at 400 000 a second; 64 KB each at worst.
constexpr uint32_t tunnel_queue_frames = 2000;

// The tap of a DTLS wire: the tunnel process has it open.
void add_tunnel_end(Plan& plan, const model::Half& half, const std::string& peer, uint32_t mtu,
                    const std::string& alias) {
    LinkWant want;
    want.name = model::tunnel_device(half.connector);
    want.kind = TapKind{};
    want.alias = alias;
    want.mtu = mtu;
    want.txqueuelen = tunnel_queue_frames;
    want.up = true;
    plan.links.push_back(std::move(want));
    plan.ports.push_back({model::tunnel_device(half.connector), Direction::ingress, {PortKind::wire, {}, false}, true});
    plan.tunnel_wires.push_back({half.connector, model::tunnel_device(half.connector), peer, mtu});
}

xconnect::Policy spike_policy(const Mac& mac, bool allow_any_mac) { return {PortKind::spike, mac, allow_any_mac}; }

EntryWant admission(const model::Wire& wire, const model::Half& half, bool admitted) {
    EntryWant entry{model::end_device(half), Direction::ingress, "", Into::ingress, half.epoch, false};
    if (admitted) entry.target = model::port_device(wire.port);
    return entry;
}

}  // namespace

Plan& Plan::operator+=(Plan more) {
    add(peers, std::move(more.peers));
    add(links, std::move(more.links));
    add(ports, std::move(more.ports));
    add(entries, std::move(more.entries));
    add(loose, std::move(more.loose));
    add(tunnel_wires, std::move(more.tunnel_wires));
    add(absent, std::move(more.absent));
    add(absent_vnis, std::move(more.absent_vnis));
    add(absent_tunnel_wires, std::move(more.absent_tunnel_wires));
    return *this;
}

Plan plan_corm(const model::Corm& corm) {
    Plan plan;
    LinkWant bridge;
    bridge.name = corm.bridge();
    if (corm.kind == model::CormKind::bridge) {
        plan.links.push_back(bridge);
        return plan;
    }
    bridge.kind = BridgeKind{};
    bridge.alias = "banana Corm " + corm.full_name();
    // The bridge looks like the NIC to the rest of the network.
    if (corm.mac != Mac{}) bridge.mac = corm.mac;
    bridge.mtu = corm.mtu;
    bridge.up = true;
    plan.links.push_back(bridge);
    if (corm.kind == model::CormKind::uplink) {
        LinkWant uplink;
        uplink.name = corm.device;
        uplink.master = bridge.name;
        uplink.up = true;
        plan.links.push_back(uplink);
    }
    return plan;
}

Plan plan_anchor(const model::Corm& corm) {
    LinkWant anchor;
    anchor.name = model::anchor_device(corm.name);
    anchor.kind = BridgeKind{};
    anchor.alias = "banana anchor " + corm.full_name();
    anchor.mtu = corm.mtu;
    anchor.up = false;  // or it would forward what the cross-connect does not take
    Plan plan;
    plan.links.push_back(std::move(anchor));
    return plan;
}

Plan plan_anchor_gone(const model::Corm& corm) {
    Plan plan;
    plan.absent.push_back(model::anchor_device(corm.name));
    return plan;
}

Plan plan_corm_gone(const model::Corm& corm) {
    Plan plan = plan_anchor_gone(corm);
    if (corm.kind == model::CormKind::bridge) return plan;
    plan.absent.push_back(model::headroom_device(corm.id));
    plan.absent.push_back(corm.bridge());
    return plan;
}

Plan plan_wire_entries(const model::Wire& wire, const std::vector<model::Half>& retired) {
    Plan plan;
    const std::string port = model::port_device(wire.port);
    // Admit the new, flip, fence the old: in this order.
    for (const auto& half : {wire.active, wire.standby})
        if (half && wire.admits(*half) && !model::end_device(*half).empty())
            plan.entries.push_back(admission(wire, *half, true));
    const model::Half* current = wire.current();
    const std::string to = current != nullptr ? model::end_device(*current) : "";
    plan.entries.push_back({port, Direction::egress, to, Into::egress, current != nullptr ? current->epoch : 0, false});
    std::vector<model::Half> fenced = retired;
    for (const auto& half : {wire.active, wire.standby})
        if (half && !wire.admits(*half)) fenced.insert(fenced.begin(), *half);
    for (const auto& half : fenced) {
        const std::string device = model::end_device(half);
        // A native half may follow another on one device, in a new epoch: that device's entry is the new one's.
        const bool taken = std::any_of(plan.entries.begin(), plan.entries.end(), [&](const EntryWant& e) {
            return e.device == device && e.direction == Direction::ingress;
        });
        if (!device.empty() && !taken) plan.entries.push_back(admission(wire, half, false));
    }
    return plan;
}

Plan plan_wire(const Site& site, const model::Corm& corm, const model::Wire& wire,
               const std::vector<model::Half>& retired) {
    Plan plan;
    const std::string alias = "banana wire " + wire.name;
    LinkWant port;
    port.name = model::port_device(wire.port);
    port.kind = IfbKind{};
    port.alias = "banana port " + wire.name;
    port.mtu = corm.mtu;
    port.master = corm.bridge();
    port.up = true;
    plan.links.push_back(std::move(port));
    plan.ports.push_back({model::port_device(wire.port), Direction::egress, {PortKind::corm, {}, false}, true});
    for (const auto& half : {wire.active, wire.standby}) {
        if (!half) continue;
        if (half->format == Format::vxlan) add_vxlan_end(plan, site, *half, half->underlay, corm.mtu, alias);
        if (half->format == Format::dtls) add_tunnel_end(plan, *half, half->host, corm.mtu, alias);
        if (half->format == Format::native && !half->device.empty())
            plan.ports.push_back({half->device, Direction::ingress, spike_policy(wire.mac, wire.allow_any_mac)});
    }
    return plan += plan_wire_entries(wire, retired);
}

Plan plan_half_gone(const model::Half& half) {
    Plan plan;
    if (half.format == Format::native) return plan;
    plan.absent.push_back(model::end_device(half));
    if (half.format == Format::vxlan) plan.absent_vnis.push_back(model::vni_of(half.connector));
    if (half.format == Format::dtls) plan.absent_tunnel_wires.push_back(half.connector);
    return plan;
}

Plan plan_wire_gone(const model::Wire& wire) {
    Plan plan;
    for (const auto& half : {wire.active, wire.standby})
        if (half) plan += plan_half_gone(*half);
    plan.absent.push_back(model::port_device(wire.port));
    return plan;
}

Plan plan_spike(const Site& site, const model::Spike& spike) {
    Plan plan;
    if (!spike.attachment) return plan;
    const auto& attachment = *spike.attachment;
    const bool native = attachment.half.format == Format::native;
    const std::string alias = "banana wire " + spike.name;
    if (attachment.half.format == Format::vxlan)
        add_vxlan_end(plan, site, attachment.half, attachment.corm_underlay, attachment.mtu, alias);
    if (attachment.half.format == Format::dtls)
        add_tunnel_end(plan, attachment.half, attachment.corm_host, attachment.mtu, alias);
    if (spike.device.empty()) return plan;
    LinkWant device;
    device.name = spike.device;
    const bool incoming = spike.state == model::SpikeState::incoming;
    if (spike.kind != model::SpikeKind::netdev)
        device.txqueuelen = incoming ? spike_queue_frames : spike.old_txqueuelen;
    if (spike.kind == model::SpikeKind::macvtap) device.mtu = attachment.mtu;
    plan.links.push_back(std::move(device));
    const bool adopted = spike.kind == model::SpikeKind::netdev;
    plan.ports.push_back({spike.device, Direction::ingress, spike_policy(spike.mac, spike.allow_any_mac), adopted});
    if (native) return plan;
    const std::string far = attachment.far_device();
    // The first frame of an incoming guest is one of the signs that it runs.
    plan.entries.push_back({spike.device, Direction::ingress, far, Into::egress, attachment.half.epoch, incoming});
    plan.entries.push_back({far, Direction::ingress, spike.device, Into::egress, attachment.half.epoch, false});
    return plan;
}

Plan plan_spike_gone(const model::Spike& spike) {
    Plan plan;
    if (!spike.device.empty()) plan.entries.push_back({spike.device, Direction::ingress, "", Into::egress, 0, false});
    if (spike.attachment) plan += plan_half_gone(spike.attachment->half);
    return plan;
}

Plan plan_macvtap(const model::Spike& spike, uint32_t mtu) {
    LinkWant lower;
    lower.name = model::lower_device(spike.id);
    lower.kind = VethKind{model::lower_stub_device(spike.id)};
    lower.alias = "banana Spike " + spike.name;
    lower.mtu = mtu;
    lower.up = true;
    lower.mac = spike.mac;
    Plan plan;
    plan.links.push_back(std::move(lower));
    return plan;
}

Plan plan_macvtap_gone(const model::Spike& spike) {
    Plan plan;
    plan.absent.push_back(model::lower_device(spike.id));
    return plan;
}

}  // namespace banana::wiring
