// Applying: each kind of step with its undo. An undo runs only for steps that were done, in reverse; what it cannot
// restore (a deleted link) is planned last for that reason.

#include <fmt/core.h>

#include <algorithm>

#include "base/clock.h"
#include "netlink/create.h"
#include "wiring/blocks.h"
#include "wiring/engine.h"

namespace banana::wiring {

namespace {

netlink::LinkOptions options_of(const LinkWant& want, uint32_t master) {
    netlink::LinkOptions options;
    options.alias = want.alias;
    options.mac = want.mac;
    options.mtu = want.mtu;
    options.txqueuelen = want.txqueuelen;
    options.master = master;
    options.up = want.up.value_or(false);
    return options;
}

// A tap is not made by netlink; what follows its making is. It speaks no sooner than it is up.
netlink::Requests tap_requests(const LinkWant& want) {
    netlink::LinkChange change;
    change.alias = want.alias;
    change.mtu = want.mtu;
    if (want.txqueuelen != 0) change.txqueuelen = want.txqueuelen;
    change.up = want.up;
    netlink::Requests steps;
    steps.push_back(netlink::disable_ipv6(want.name));
    steps.push_back(netlink::set_link(want.name, change));
    return steps;
}

// The first makes the link, the others are for when it is there.
netlink::Requests requests_of(const LinkWant& want, uint32_t master) {
    if (const auto* veth = std::get_if<VethKind>(&want.kind)) {
        netlink::VethSpec spec{want.name, veth->peer, options_of(want, master), options_of(want, 0)};
        spec.peer_options.mac.reset();
        if (veth->peer_mtu != 0) spec.peer_options.mtu = veth->peer_mtu;
        return netlink::create(spec);
    }
    if (const auto* vxlan = std::get_if<VxlanKind>(&want.kind)) {
        netlink::VxlanSpec spec;
        spec.name = want.name;
        spec.options = options_of(want, master);
        spec.vni = vxlan->vni;
        spec.local = vxlan->local;
        spec.remote = vxlan->remote;
        spec.port = vxlan->port;
        return netlink::create(spec);
    }
    netlink::BridgeSpec spec;
    spec.name = want.name;
    spec.options = options_of(want, master);
    return netlink::create(spec);
}

}  // namespace

Status Engine::realise(const Plan& plan) {
    TRY_SET(const auto steps, difference(plan));
    std::vector<std::pair<std::string, Undo>> done;
    if (!steps.empty()) changed_ns_ = monotonic_ns();
    for (const auto& step : steps) {
        auto undo = apply(step);
        if (undo) {
            done.emplace_back(describe(step), std::move(*undo));
            continue;
        }
        Error error = undo.error().context(describe(step));
        for (auto it = done.rbegin(); it != done.rend(); ++it) {
            if (!it->second) continue;
            if (const Status back = it->second(); !back)
                error = Error(error.code(), fmt::format("{}; undo of '{}' failed as well: {}", error.message(),
                                                        it->first, back.error().message()));
        }
        return error;
    }
    return {};
}

Result<Engine::Undo> Engine::apply(const Step& step) {
    return std::visit([this](const auto& s) { return apply(s); }, step);
}

Result<Engine::Undo> Engine::apply(const AllowPeers& step) {
    TRY(filter_.allow(step.peers));
    peers_.insert(step.peers.begin(), step.peers.end());
    // Not remove(): it takes a VNI's other peers too.
    return Undo([this, peers = step.peers]() -> Status {
        for (const auto& peer : peers) peers_.erase(peer);
        return filter_.sync(std::vector(peers_.begin(), peers_.end()));
    });
}

Result<Engine::Undo> Engine::apply(const RemovePeers& step) {
    TRY(filter_.remove(step.vnis));
    std::erase_if(peers_, [&](const VxlanPeer& p) {
        return std::find(step.vnis.begin(), step.vnis.end(), p.vni) != step.vnis.end();
    });
    return Undo();
}

Result<Engine::Undo> Engine::apply(const AddTunnelWire& step) {
    if (tunnel_ == nullptr) return Error(Errc::unsupported, "this host has no tunnel");
    tunnel_->want(step.want);
    return Undo([this, step]() -> Status {
        if (step.before)
            tunnel_->want(*step.before);
        else
            tunnel_->unwant(step.want.connector);
        return {};
    });
}

Result<Engine::Undo> Engine::apply(const RemoveTunnelWires& step) {
    for (const auto& wire : step.before) tunnel_->unwant(wire.connector);
    return Undo([this, step]() -> Status {
        for (const auto& wire : step.before) tunnel_->want(wire);
        return {};
    });
}

Result<Engine::Undo> Engine::apply(const MakeLink& step) {
    uint32_t master = 0;
    if (!step.want.master.empty()) {
        TRY_SET(master, ifindex(step.want.master));
    }
    const auto remove = [this, name = step.want.name]() -> Status {
        const auto index = socket_.index(name);
        forget_name(name);
        TRY(socket_.request(netlink::delete_link(name)));
        if (index) link_gone(*index);
        return {};
    };
    const bool is_tap = std::holds_alternative<TapKind>(step.want.kind);
    const auto requests = is_tap ? tap_requests(step.want) : requests_of(step.want, master);
    // A tap's queue is closed at once: the tap is persistent, and whoever carries its frames opens the queues.
    if (is_tap) TRY(netlink::create_tap({.name = step.want.name, .multi_queue = true}));
    if (!is_tap)
        TRY(socket_.request(requests.front()));  // EEXIST is about somebody else's link (or VNI): that one stays
    // Asked of the kernel now, as an index remembered under this name may be of a link that is gone.
    const auto index = socket_.index(step.want.name);
    Status made = index ? attach_made(*index, step.ports) : index.error();
    if (made) made = socket_.sequence(std::span(requests).subspan(is_tap ? 0 : 1));
    if (!made) {
        (void)remove();
        return made.error();
    }
    remember(step.want.name, *index);
    return Undo(remove);
}

Status Engine::attach_made(uint32_t index, const std::vector<PortWant>& ports) {
    for (const auto& want : ports) {
        const xconnect::PortKey key{index, want.direction};
        if (!shares_blocks_) {
            TRY(crossconnect_.attach(key, want.policy));
            continue;
        }
        TRY(crossconnect_.prepare(key, want.policy));
        TRY_SET(const bool joined, join_block(socket_, crossconnect_, key));
        if (joined)
            joined_block(key);
        else
            TRY(crossconnect_.attach(key, want.policy));
    }
    return {};
}

// What an earlier version attached one by one stays so, and is brought up to date.
Status Engine::attach(xconnect::PortKey port, const PortWant& want) {
    if (!want.quick || !shares_blocks_) return crossconnect_.attach(port, want.policy);
    TRY(crossconnect_.prepare(port, want.policy));
    TRY_SET(const bool by_tcx, crossconnect_.refresh(port, xconnect::AttachMode::tcx));
    if (by_tcx) return {};
    TRY_SET(const bool joined, join_block(socket_, crossconnect_, port));
    if (joined) {
        joined_block(port);
        return {};
    }
    TRY_SET(const bool by_clsact, crossconnect_.refresh(port, xconnect::AttachMode::clsact));
    return by_clsact ? Status() : crossconnect_.attach(port, want.policy);
}

Status Engine::detach(xconnect::PortKey port) {
    TRY(crossconnect_.detach(port));
    return leave_block(socket_, port);
}

Result<Engine::Undo> Engine::apply(const ChangeLink& step) {
    netlink::LinkChange change = step.change;
    if (!step.master.empty()) {
        TRY_SET(change.master, ifindex(step.master));
    }
    TRY_SET(const uint32_t index, ifindex(step.name));
    TRY(socket_.request(netlink::set_link(index, change)));
    return Undo([this, index, undo = step.undo] { return socket_.request(netlink::set_link(index, undo)); });
}

Result<Engine::Undo> Engine::apply(const DeleteLinks& step) {
    std::vector<uint32_t> indexes;
    for (const auto& name : step.names) {
        TRY_SET(const uint32_t index, ifindex(name));
        indexes.push_back(index);
    }
    TRY(netlink::delete_links(socket_, indexes));
    for (uint32_t index : indexes) link_gone(index);
    return Undo();
}

Result<Engine::Undo> Engine::apply(const AttachPort& step) {
    TRY_SET(const uint32_t index, ifindex(step.want.device));
    const xconnect::PortKey key{index, step.want.direction};
    TRY(attach(key, step.want));
    // A program that is left on a device without entries cuts that device off: what had none gets none back.
    return Undo([this, key, attached = step.attached, before = step.before]() -> Status {
        if (before) TRY(crossconnect_.set_policy(key, *before));
        return attached ? Status() : detach(key);
    });
}

Result<Engine::Undo> Engine::apply(const SetEntry& step) {
    TRY_SET(const uint32_t index, ifindex(step.want.device));
    const xconnect::PortKey key{index, step.want.direction};
    const auto back = [this, key, before = step.before]() -> Status {
        return before ? crossconnect_.set(key, *before) : crossconnect_.erase(key);
    };
    if (step.want.target.empty()) {
        TRY(crossconnect_.erase(key));
        return Undo(back);
    }
    TRY_SET(const uint32_t target, ifindex(step.want.target));
    TRY(crossconnect_.set(key, {target, step.want.into, step.want.generation, step.want.armed}));
    return Undo(back);
}

}  // namespace banana::wiring
