// diff: what has to be done so that the kernel is as a plan says.
//
// Concepts: Observed is what the kernel reports about the devices that a plan names; diff() is pure. A plan that is
// fulfilled already gives no steps. A link of ours that is not what it ought to be (another kind, another peer) is
// deleted and made anew: names are random ids, so this is never somebody else's.
// Threading: values and pure functions.
// Errors: an adopted device that is not there; a device that is not ours where one of ours ought to be.
#pragma once

#include <map>
#include <set>

#include "netlink/change.h"
#include "netlink/link.h"
#include "wiring/plan.h"

namespace banana::wiring {

struct ObservedPort {
    bool attached = false;  // our current program is there
    std::optional<xconnect::Policy> policy;
    std::optional<xconnect::Entry> entry;
};

using PortName = std::pair<std::string, Direction>;

struct Observed {
    std::map<std::string, netlink::Link> links;
    std::map<PortName, ObservedPort> ports;
    std::set<VxlanPeer> peers;                    // of the plan's VNIs
    std::map<uint32_t, TunnelWire> tunnel_wires;  // of the plan's connectors: what the sink is told to want

    uint32_t index_of(const std::string& name) const;  // 0: not there
};

struct MakeLink {
    LinkWant want;
    std::vector<PortWant> ports;  // quick ones: the program is there before the link is up
};
struct ChangeLink {
    std::string name;
    std::string master;  // by name; "": unchanged
    netlink::LinkChange change, undo;
};
struct DeleteLinks {  // together: the kernel waits for its readers once, not once per link
    std::vector<std::string> names;
};
struct AttachPort {
    PortWant want;
    bool attached = false;  // before
    std::optional<xconnect::Policy> before;
};
struct SetEntry {
    EntryWant want;
    std::optional<xconnect::Entry> before;
};
struct AllowPeers {
    std::vector<VxlanPeer> peers;
};
struct RemovePeers {
    std::vector<uint32_t> vnis;
};

struct AddTunnelWire {
    TunnelWire want;
    std::optional<TunnelWire> before;
};
struct RemoveTunnelWires {  // before the taps under them go
    std::vector<TunnelWire> before;
};

using Step = std::variant<AllowPeers, MakeLink, ChangeLink, AttachPort, SetEntry, AddTunnelWire, RemoveTunnelWires,
                          DeleteLinks, RemovePeers>;

std::string describe(const Step& step);  // "create vxlan bnx0000002a"

Result<std::vector<Step>> diff(const Plan& plan, const Observed& observed);

}  // namespace banana::wiring
