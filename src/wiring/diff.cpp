#include "wiring/diff.h"

#include <fmt/format.h>

#include <algorithm>

#include "model/names.h"

namespace banana::wiring {

namespace {

const char* kind_name(const LinkWant& want) {
    constexpr const char* names[] = {"device", "bridge", "veth", "vxlan", "tun", "ifb"};  // as the kernel calls them
    return names[want.kind.index()];
}

bool is_ours(const netlink::Link& link) {
    return model::is_own_device(link.name) || link.alias.rfind("banana ", 0) == 0;
}

// A bridge that was just made and has no alias yet, by a run that ended there. Only an anchor's name is not an id, and
// an anchor is down.
bool may_be_ours(const LinkWant& want, const netlink::Link& link) {
    return is_ours(link) || (link.kind == kind_name(want) && link.alias.empty() && !link.up);
}

// Whether `link` is the thing wanted, apart from what ChangeLink can change.
bool same_thing(const LinkWant& want, const netlink::Link& link, const Observed& observed) {
    if (std::holds_alternative<AdoptedKind>(want.kind)) return true;
    if (std::holds_alternative<IfbKind>(want.kind) && link.kind == "veth" && is_ours(link)) return true;
    if (link.kind != kind_name(want)) return false;
    if (const auto* veth = std::get_if<VethKind>(&want.kind)) return observed.index_of(veth->peer) == link.peer;
    const auto* vxlan = std::get_if<VxlanKind>(&want.kind);
    if (vxlan == nullptr) return true;
    return link.vxlan && VxlanKind{link.vxlan->vni, link.vxlan->local, link.vxlan->remote, link.vxlan->port} == *vxlan;
}

// The properties that differ, and their present values for an undo; nothing when none does.
std::optional<ChangeLink> change_of(const LinkWant& want, const netlink::Link& link, const Observed& observed) {
    ChangeLink step{want.name, "", {}, {}};
    bool any = false;
    const auto differ = [&](auto netlink::LinkChange::*field, const auto& now, const auto& wanted) {
        if (now == wanted) return;
        step.change.*field = wanted;
        step.undo.*field = now;
        any = true;
    };
    if (want.up) differ(&netlink::LinkChange::up, link.up, *want.up);
    if (want.mtu != 0) differ(&netlink::LinkChange::mtu, link.mtu, want.mtu);
    if (want.txqueuelen != 0) differ(&netlink::LinkChange::txqueuelen, link.txqueuelen, want.txqueuelen);
    if (!want.alias.empty()) differ(&netlink::LinkChange::alias, link.alias, want.alias);
    const bool taken = want.only_if_free && link.master != 0;
    if (!want.master.empty() && !taken && (link.master == 0 || link.master != observed.index_of(want.master))) {
        step.master = want.master;
        step.undo.master = link.master;
        any = true;
    }
    return any ? std::optional<ChangeLink>(step) : std::nullopt;
}

MakeLink make_link(const LinkWant& want, const std::vector<PortWant>& ports) {
    MakeLink step{want, {}};
    for (const auto& port : ports)
        if (port.quick && port.device == want.name) step.ports.push_back(port);
    return step;
}

Status diff_link(const LinkWant& want, const std::vector<PortWant>& ports, const Observed& observed,
                 std::vector<Step>& steps) {
    const auto found = observed.links.find(want.name);
    if (found == observed.links.end()) {
        if (std::holds_alternative<AdoptedKind>(want.kind))
            return Error(Errc::not_found, fmt::format("device {}: there is no such device on this host", want.name));
        steps.push_back(make_link(want, ports));
        return {};
    }
    const netlink::Link& link = found->second;
    if (!std::holds_alternative<AdoptedKind>(want.kind) && !may_be_ours(want, link))
        return Error(Errc::exists, fmt::format("create {} {}: a {} of that name is there that is not Banana's",
                                               kind_name(want), want.name, link.kind.empty() ? "device" : link.kind));
    if (!same_thing(want, link, observed)) {
        steps.push_back(DeleteLinks{{want.name}});
        steps.push_back(make_link(want, ports));
        return {};
    }
    if (auto change = change_of(want, link, observed)) steps.push_back(std::move(*change));
    return {};
}

bool entry_differs(const EntryWant& want, const std::optional<xconnect::Entry>& now, const Observed& observed) {
    if (want.target.empty()) return now.has_value();
    if (!now) return true;
    return now->armed != want.armed || now->target != observed.index_of(want.target) || now->into != want.into ||
           now->generation != want.generation || now->target == 0;
}

template <class Made>
void diff_tunnel(const Plan& plan, const Observed& observed, Made made, std::vector<Step>& steps) {
    for (const auto& want : plan.tunnel_wires) {
        const auto now = observed.tunnel_wires.find(want.connector);
        const bool there = now != observed.tunnel_wires.end();
        // A tap that is made anew has none of the old one's queues.
        if (!there || now->second != want || made(want.device))
            steps.push_back(AddTunnelWire{want, there ? std::optional(now->second) : std::nullopt});
    }
    RemoveTunnelWires remove;
    for (const uint32_t connector : plan.absent_tunnel_wires)
        if (const auto now = observed.tunnel_wires.find(connector); now != observed.tunnel_wires.end())
            remove.before.push_back(now->second);
    if (!remove.before.empty()) steps.push_back(std::move(remove));
}

}  // namespace

uint32_t Observed::index_of(const std::string& name) const {
    const auto it = links.find(name);
    return it == links.end() ? 0 : it->second.index;
}

std::string describe(const Step& step) {
    struct Visitor {
        std::string operator()(const AllowPeers& s) const {
            return fmt::format("allow {} VXLAN peers", s.peers.size());
        }
        std::string operator()(const RemovePeers& s) const {
            return fmt::format("remove {} VXLAN filters", s.vnis.size());
        }
        std::string operator()(const AddTunnelWire& s) const {
            return fmt::format("join {} to host {}'s tunnel", s.want.device, s.want.peer);
        }
        std::string operator()(const RemoveTunnelWires& s) const {
            return fmt::format("take {} wires off the tunnel", s.before.size());
        }
        std::string operator()(const MakeLink& s) const {
            return fmt::format("create {} {}", kind_name(s.want), s.want.name);
        }
        std::string operator()(const ChangeLink& s) const { return "change link " + s.name; }
        std::string operator()(const DeleteLinks& s) const {
            return fmt::format("delete {}", fmt::join(s.names, ", "));
        }
        std::string operator()(const AttachPort& s) const {
            return fmt::format("attach port {} {}", s.want.device, xconnect::direction_name(s.want.direction));
        }
        std::string operator()(const SetEntry& s) const {
            return fmt::format("connect {} {} to {}", s.want.device, xconnect::direction_name(s.want.direction),
                               s.want.target.empty() ? "nothing" : s.want.target);
        }
    };
    return std::visit(Visitor{}, step);
}

Result<std::vector<Step>> diff(const Plan& plan, const Observed& observed) {
    std::vector<Step> steps;
    AllowPeers allow;
    for (const auto& peer : plan.peers)
        if (!observed.peers.contains(peer)) allow.peers.push_back(peer);
    if (!allow.peers.empty()) steps.push_back(std::move(allow));
    for (const auto& want : plan.links) TRY(diff_link(want, plan.ports, observed, steps));
    const auto made = [&](const std::string& device) {
        return std::any_of(steps.begin(), steps.end(), [&](const Step& step) {
            const auto* make = std::get_if<MakeLink>(&step);
            return make != nullptr && make->want.name == device;
        });
    };
    const auto port_of = [&](const std::string& device, Direction direction) {
        const auto it = observed.ports.find({device, direction});
        return it == observed.ports.end() || made(device) ? ObservedPort{} : it->second;
    };
    for (const auto& want : plan.ports) {
        if (want.quick && made(want.device)) continue;  // with the link
        const ObservedPort now = port_of(want.device, want.direction);
        if (!now.attached || now.policy != want.policy) steps.push_back(AttachPort{want, now.attached, now.policy});
    }
    for (const auto& want : plan.entries) {
        const ObservedPort now = port_of(want.device, want.direction);
        // What is not there passes nothing already.
        if (want.target.empty() && observed.index_of(want.device) == 0) continue;
        if (entry_differs(want, now.entry, observed) || made(want.target)) steps.push_back(SetEntry{want, now.entry});
    }
    for (const auto& want : plan.loose) {
        const auto link = observed.links.find(want.name);
        if (link == observed.links.end() || link->second.master == 0 ||
            link->second.master != observed.index_of(want.master))
            continue;
        ChangeLink step{want.name, "", {}, {}};
        step.change.master = 0;
        step.undo.master = link->second.master;
        steps.push_back(std::move(step));
    }
    diff_tunnel(plan, observed, made, steps);
    DeleteLinks gone;
    for (const auto& name : plan.absent)
        if (const auto it = observed.links.find(name); it != observed.links.end() && is_ours(it->second))
            gone.names.push_back(name);
    if (!gone.names.empty()) steps.push_back(std::move(gone));
    RemovePeers remove;
    for (uint32_t vni : plan.absent_vnis)
        if (std::any_of(observed.peers.begin(), observed.peers.end(), [&](const auto& p) { return p.vni == vni; }))
            remove.vnis.push_back(vni);
    if (!remove.vnis.empty()) steps.push_back(std::move(remove));
    return steps;
}

}  // namespace banana::wiring
