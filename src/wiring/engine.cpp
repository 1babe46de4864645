// Observing. What a plan names is looked up by one send; a plan of entries alone (a flip) needs no netlink at all when
// the indexes are known, so that a hand-over does not wait for the RTNL lock that somebody's link churn holds.

#include "wiring/engine.h"

#include <fmt/core.h>

#include <algorithm>

#include "model/names.h"
#include "netlink/link.h"
#include "wiring/blocks.h"

namespace banana::wiring {

Result<Engine> Engine::open(const EngineOptions& options) {
    TRY_SET(auto socket, netlink::Socket::open());
    TRY_SET(auto crossconnect, xconnect::CrossConnect::open(options.bpf_dir, options.xconnect));
    TRY_SET(auto filter, VxlanFilter::open(options.vxlan_port));
    const bool shares_blocks = !options.xconnect.mode;
    if (shares_blocks) TRY(refresh_blocks(socket, crossconnect));
    Engine engine(std::move(socket), std::move(crossconnect), std::move(filter), shares_blocks);
    TRY_SET(const auto peers, engine.filter_.list());
    engine.peers_ = {peers.begin(), peers.end()};
    return engine;
}

Result<uint32_t> Engine::ifindex(const std::string& device) {
    if (const auto it = indexes_.find(device); it != indexes_.end()) return it->second;
    TRY_SET(const auto link, netlink::link(socket_, device));
    remember(device, link.index);
    return link.index;
}

bool Engine::has_vni(uint32_t vni) const {
    const auto it = peers_.lower_bound(VxlanPeer{vni, {}});
    return it != peers_.end() && it->vni == vni;
}

Status Engine::let_go(const std::string& device) {
    const auto index = ifindex(device);
    if (!index) return index.error().code() == Errc::not_found ? Status() : index.error();
    TRY(detach({*index, Direction::ingress}));
    return crossconnect_.forget(*index);
}

void Engine::remember(const std::string& device, uint32_t index) {
    const auto known = indexes_.find(device);
    if (known != indexes_.end() && known->second == index) return;
    forget_name(device);
    indexes_[device] = index;
    names_.emplace(index, device);
}

void Engine::forget_name(const std::string& device) {
    const auto known = indexes_.find(device);
    if (known == indexes_.end()) return;
    const auto [first, last] = names_.equal_range(known->second);
    const auto it = std::find_if(first, last, [&](const auto& entry) { return entry.second == device; });
    if (it != last) names_.erase(it);
    indexes_.erase(known);
}

void Engine::forget_names() {
    indexes_.clear();
    names_.clear();
}

void Engine::link_gone(uint32_t index) {
    const auto [first, last] = names_.equal_range(index);
    for (auto it = first; it != last; ++it) indexes_.erase(it->second);
    names_.erase(first, last);
    looked_at_.erase({index, Direction::ingress});
    looked_at_.erase({index, Direction::egress});
    std::erase_if(to_settle_, [index](const xconnect::PortKey& port) { return port.ifindex == index; });
    // An index that is used again must inherit nothing; a device that was never a port has nothing to forget.
    (void)crossconnect_.forget(index);
}

Status Engine::observe_links(const std::vector<std::string>& names, Observed& observed) {
    const std::vector<netlink::LinkRef> refs(names.begin(), names.end());
    const auto found = netlink::links_of(socket_, refs);
    for (size_t i = 0; i < names.size(); ++i) {
        if (found[i]) {
            remember(names[i], found[i]->index);
            observed.links[names[i]] = *found[i];
        } else if (found[i].error().code() == Errc::not_found) {
            forget_name(names[i]);
        } else {
            return found[i].error();
        }
    }
    return {};
}

Result<bool> Engine::attached(xconnect::PortKey port) {
    // One look-up for most; CrossConnect's own takes three, and libbpf a socket. An old program of a port's own stands
    // before the block's, so the first look is for that.
    if (looked_at_.contains(port)) {
        TRY_SET(const bool joined, in_block(socket_, port));
        if (joined) return true;
    }
    TRY_SET(const auto own, crossconnect_.attached(port));
    if (own) {
        if (own->current) looked_at_.insert(port);
        return own->current;
    }
    TRY_SET(const bool joined, in_block(socket_, port));
    if (joined) joined_block(port);
    return joined;
}

void Engine::joined_block(xconnect::PortKey port) {
    looked_at_.insert(port);
    if (crossconnect_.mode() == xconnect::AttachMode::tcx) to_settle_.push_back(port);
}

Result<bool> Engine::settle_port(int64_t now) {
    if (to_settle_.empty() || now - changed_ns_ < quiet_ns) return false;
    const auto port = to_settle_.front();
    to_settle_.pop_front();
    TRY_SET(const auto policy, crossconnect_.policy(port));
    if (policy) TRY(crossconnect_.attach_in_front(port));  // else it is gone, and that is not told yet
    return true;
}

Result<Observed> Engine::observe(const Plan& plan) {
    Observed observed;
    // Those of the plan's VNIs alone: a flip must not cost more for every wire that there is.
    const auto peers_of = [&](uint32_t vni) {
        for (auto it = peers_.lower_bound({vni, {}}); it != peers_.end() && it->vni == vni; ++it)
            observed.peers.insert(*it);
    };
    for (const auto& peer : plan.peers) peers_of(peer.vni);
    for (const uint32_t vni : plan.absent_vnis) peers_of(vni);
    const auto tunnel_wire_of = [&](uint32_t connector) {
        const TunnelWire* wire = tunnel_ != nullptr ? tunnel_->wanted(connector) : nullptr;
        if (wire != nullptr) observed.tunnel_wires[connector] = *wire;
    };
    for (const auto& want : plan.tunnel_wires) tunnel_wire_of(want.connector);
    for (const uint32_t connector : plan.absent_tunnel_wires) tunnel_wire_of(connector);
    std::set<std::string> ask;
    for (const auto& want : plan.links) {
        ask.insert(want.name);
        if (!want.master.empty()) ask.insert(want.master);
        if (const auto* veth = std::get_if<VethKind>(&want.kind)) ask.insert(veth->peer);
    }
    for (const auto& want : plan.loose) ask.insert({want.name, want.master});
    for (const auto& name : plan.absent) ask.insert(name);
    // Entries and ports need no more than an index.
    const auto name_only = [&](const std::string& name) {
        if (name.empty() || ask.contains(name)) return;
        if (const auto it = indexes_.find(name); it != indexes_.end())
            observed.links[name].index = it->second;
        else
            ask.insert(name);
    };
    for (const auto& want : plan.ports) name_only(want.device);
    for (const auto& want : plan.entries) {
        name_only(want.device);
        name_only(want.target);
    }
    TRY(observe_links({ask.begin(), ask.end()}, observed));
    const auto look = [&](const std::string& device, Direction direction) -> Status {
        const xconnect::PortKey key{observed.index_of(device), direction};
        if (key.ifindex == 0 || observed.ports.contains({device, direction})) return {};
        ObservedPort& port = observed.ports[{device, direction}];
        TRY_SET(port.policy, crossconnect_.policy(key));
        TRY_SET(port.entry, crossconnect_.get(key));
        return {};
    };
    for (const auto& want : plan.ports) {
        TRY(look(want.device, want.direction));
        // Asked for ports alone: it takes the RTNL lock. What has no policy was never attached.
        const auto port = observed.ports.find({want.device, want.direction});
        if (port == observed.ports.end() || !port->second.policy) continue;
        TRY_SET(port->second.attached, attached({observed.index_of(want.device), want.direction}));
    }
    for (const auto& want : plan.entries) TRY(look(want.device, want.direction));
    return observed;
}

Result<std::vector<Step>> Engine::difference(const Plan& plan) {
    TRY_SET(const auto observed, observe(plan));
    return diff(plan, observed);
}

Result<std::vector<std::string>> Engine::sweep(const Plan& everything) {
    TRY_SET(const auto all, netlink::links(socket_, {0, "", false}));
    std::set<std::string> wanted;
    for (const auto& want : everything.links) wanted.insert(want.name);
    std::set<uint32_t> kept;
    for (const auto& link : all)
        if (wanted.contains(link.name)) kept.insert(link.index);
    std::vector<std::string> removed;
    std::vector<uint32_t> alive, doomed;
    for (const auto& link : all) {
        const bool ours =
            link.alias.rfind("banana ", 0) == 0 && (model::is_own_device(link.name) || link.name.rfind("bn-", 0) == 0);
        // The other end of a pair that is wanted is not always named by the plan (IfbKind).
        if (!ours || wanted.contains(link.name) || (link.kind == "veth" && kept.contains(link.peer))) {
            alive.push_back(link.index);
            continue;
        }
        doomed.push_back(link.index);
        removed.push_back(link.name);
        forget_name(link.name);
        if (tunnel_ != nullptr)
            if (const auto connector = model::tunnel_connector(link.name)) tunnel_->unwant(*connector);
    }
    if (!doomed.empty()) TRY(netlink::delete_links(socket_, doomed));
    std::sort(alive.begin(), alive.end());
    TRY_SET(const size_t entries, crossconnect_.sweep(alive));
    if (entries != 0) removed.push_back(fmt::format("{} cross-connect entries", entries));
    TRY(filter_.sync(everything.peers));
    peers_ = {everything.peers.begin(), everything.peers.end()};
    return removed;
}

Result<xconnect::Counters> Engine::counters(const std::string& device, Direction direction) {
    TRY_SET(const uint32_t index, ifindex(device));
    return crossconnect_.counters({index, direction});
}

}  // namespace banana::wiring
