// Plan: which links, ports, cross-connect entries and filters ought to be, as pure data.
//
// Concepts: plans are made from the model's records alone, without looking at the kernel; diff() (diff.h) compares one
// with what is there, apply() (apply.h) makes the difference go away. Plans add up: that of a whole host is the sum of
// those of its Corms, wires and Spikes. Devices are named, never numbered, as a plan may be made before they exist.
// Threading: values and pure functions.
#pragma once

#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "base/bytes.h"
#include "model/corm.h"
#include "model/spike.h"
#include "model/wire.h"
#include "wiring/tunnel_sink.h"
#include "wiring/vxlan_filter.h"
#include "xconnect/crossconnect.h"

namespace banana::wiring {

using xconnect::Direction;
using xconnect::Into;

struct VethKind {
    std::string peer;
    bool operator==(const VethKind&) const = default;
};
struct BridgeKind {
    bool operator==(const BridgeKind&) const = default;
};
struct VxlanKind {
    uint32_t vni = 0;
    IpAddress local, remote;
    uint16_t port = 0;
    bool operator==(const VxlanKind&) const = default;
};
struct TapKind {  // persistent, with a queue for each lane of the tunnel process, which has it open
    bool operator==(const TapKind&) const = default;
};
struct IfbKind {  // a Corm port: all that it sends is redirected. An earlier version's is one end of a veth pair, and
                  // stays
    bool operator==(const IfbKind&) const = default;
};
struct AdoptedKind {  // somebody else's: it must be there, and is never made or deleted
    bool operator==(const AdoptedKind&) const = default;
};

struct LinkWant {
    std::string name;
    std::variant<AdoptedKind, BridgeKind, VethKind, VxlanKind, TapKind, IfbKind> kind;
    std::string alias;        // "": left alone
    uint32_t mtu = 0;         // 0: left alone
    uint32_t txqueuelen = 0;  // 0: left alone
    std::string master;       // "": left alone
    std::optional<bool> up;   // absent: left alone
    std::optional<Mac> mac;
    bool only_if_free = false;  // `master` is for a link that has none; another's port stays that
};

struct LooseWant {  // a link that must not be a port of that bridge; of another's it may be
    std::string name, master;
};

struct PortWant {
    std::string device;
    Direction direction = Direction::ingress;
    xconnect::Policy policy;
    bool quick = false;  // nobody else puts filters there (as libvirt does on taps): by a tc block, see blocks.h
};

struct EntryWant {
    std::string device;
    Direction direction = Direction::ingress;
    std::string target;  // "": no entry, frames are dropped
    Into into = Into::egress;
    uint64_t generation = 0;
    bool armed = false;
};

struct Plan {
    std::vector<VxlanPeer> peers;  // allowed before the links are made
    std::vector<LinkWant> links;   // in the order of their making: a bridge before its ports
    std::vector<PortWant> ports;
    std::vector<EntryWant> entries;
    std::vector<LooseWant> loose;
    std::vector<TunnelWire> tunnel_wires;       // after all else: no frame comes before it is known where it goes
    std::vector<std::string> absent;            // links that must not be
    std::vector<uint32_t> absent_vnis;          // filters that must not be
    std::vector<uint32_t> absent_tunnel_wires;  // connectors
    Plan& operator+=(Plan more);
};

// What the model's records mean for this host. `vxlan_port`: UDP.
struct Site {
    std::string host;
    IpAddress underlay;
    uint16_t vxlan_port = 4789;
};

Plan plan_corm(const model::Corm& corm);       // its bridge, with the uplink in it
Plan plan_anchor(const model::Corm& corm);     // the bridge that libvirt plugs taps into, on every host
Plan plan_corm_gone(const model::Corm& corm);  // bridge and anchor away; the uplink stays, on its own
Plan plan_anchor_gone(const model::Corm& corm);

// The Corm's side of a wire: port, the wires to its halves, and the entries that its phase calls for. `retired`: halves
// that are no longer the wire's; they pass nothing from here on, their devices are left for plan_half_gone().
Plan plan_wire(const Site& site, const model::Corm& corm, const model::Wire& wire,
               const std::vector<model::Half>& retired = {});
Plan plan_wire_entries(const model::Wire& wire, const std::vector<model::Half>& retired = {});  // a flip: entries alone
Plan plan_wire_gone(const model::Wire& wire);
Plan plan_half_gone(const model::Half& half);

// The Spike's side: its end of the wire, its device in the cross-connect.
Plan plan_spike(const Site& site, const model::Spike& spike);
Plan plan_spike_gone(const model::Spike& spike);  // its end of the wire; an own macvtap endpoint stays
Plan plan_macvtap(const model::Spike& spike, uint32_t mtu);
Plan plan_macvtap_gone(const model::Spike& spike);

}  // namespace banana::wiring
