// Applying: each kind of step with its undo. An undo runs only for steps that were done, in reverse; what it cannot
// restore (a deleted link) is planned last for that reason.

#include <fmt/core.h>

#include <algorithm>

#include "base/clock.h"
#include "netlink/create.h"
#include "netlink/tc.h"
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

// Its queue is closed at once: the tap is persistent, and whoever carries its frames opens the queues.
Status make_tap(const std::string& name) {
    const auto tap = netlink::create_tap({.name = name, .multi_queue = true});
    return tap ? Status() : tap.error();
}

// The first makes the link, the others are for when it is there.
netlink::Requests requests_of(const LinkWant& want, uint32_t master) {
    if (const auto* veth = std::get_if<VethKind>(&want.kind)) {
        netlink::VethSpec spec{want.name, veth->peer, options_of(want, master), options_of(want, 0)};
        spec.peer_options.mac.reset();
        return netlink::create(spec);
    }
    if (std::holds_alternative<IfbKind>(want.kind))
        return netlink::create(netlink::IfbSpec{want.name, options_of(want, master)});
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
    for (std::span<const Step> left = steps; !left.empty();) {
        const size_t together = buildable(left);
        const auto now = left.first(std::max<size_t>(together, 1));
        left = left.subspan(now.size());
        auto undo = together != 0 ? build(now) : apply(now[0]);
        if (undo) {
            done.emplace_back(describe(now[0]), std::move(*undo));
            continue;
        }
        Error error = undo.error();
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

std::vector<Status> Engine::realise_each(std::span<const Plan> plans) {
    std::vector<Status> results(plans.size());
    if (plans.size() > 1) {
        Plan all;
        for (const auto& plan : plans) all += plan;
        if (realise(all)) return results;
    }
    for (size_t i = 0; i < plans.size(); ++i) results[i] = realise(plans[i]);
    return results;
}

// How many steps, from the first, build() can take together. A link without ports of its own may be another's master.
size_t Engine::buildable(std::span<const Step> steps) const {
    const auto can_join = [this](const Step& step) {
        if (const auto* link = std::get_if<MakeLink>(&step)) return !link->ports.empty();
        const auto* port = std::get_if<AttachPort>(&step);
        return port != nullptr && port->want.quick && shares_blocks_;
    };
    size_t count = 0;
    while (count < steps.size() && can_join(steps[count])) ++count;
    return count;
}

Result<Engine::Undo> Engine::build(std::span<const Step> steps) {
    const auto done = std::make_shared<std::vector<Undo>>();
    const Undo undo = [done]() -> Status {
        Status all;
        for (auto it = done->rbegin(); it != done->rend(); ++it)
            if (const Status back = (*it)(); !back && all) all = back;
        return all;
    };
    const Status built = build(steps, *done);
    if (built) return undo;
    const Error& error = built.error();
    if (const Status back = undo(); !back)
        return Error(error.code(),
                     fmt::format("{}; undoing it failed as well: {}", error.message(), back.error().message()));
    return error;
}

// Links are made, all ports get their programs, then the links are finished: nothing speaks before its program is
// there, and the kernel waits for its readers once (blocks.h).
Status Engine::build(std::span<const Step> steps, std::vector<Undo>& done) {
    std::vector<Making> makings;
    for (const auto& step : steps)
        if (const auto* make = std::get_if<MakeLink>(&step)) makings.push_back({make, {}, 0});
    TRY(make(makings, done));
    std::vector<xconnect::PortKey> ports;
    std::vector<const PortWant*> wants;
    for (const auto& making : makings)
        for (const auto& want : making.step->ports) {
            ports.push_back({making.index, want.direction});
            wants.push_back(&want);
        }
    for (const auto& step : steps) {
        const auto* attach = std::get_if<AttachPort>(&step);
        if (attach == nullptr) continue;
        TRY_SET(const uint32_t index, ifindex(attach->want.device).context(describe(step)));
        const xconnect::PortKey port{index, attach->want.direction};
        done.push_back(undo_of(*attach, port));
        // What an earlier process attached stays where it is, and is brought up to date.
        TRY_SET(const bool there, attach->before ? refresh(port).context(describe(step)) : Result<bool>(false));
        if (there) {
            TRY(crossconnect_.prepare(port, attach->want.policy).context(describe(step)));
            continue;
        }
        ports.push_back(port);
        wants.push_back(&attach->want);
    }
    TRY(attach(ports, wants));
    for (const auto& making : makings) {
        TRY(socket_.sequence(making.rest).context(describe(*making.step)));
        remember(making.step->want.name, making.index);
    }
    return {};
}

Status Engine::attach(std::span<const xconnect::PortKey> ports, std::span<const PortWant* const> wants) {
    const auto what = [&](size_t i) { return "attach port " + wants[i]->device; };
    for (size_t i = 0; i < ports.size(); ++i) TRY(crossconnect_.prepare(ports[i], wants[i]->policy).context(what(i)));
    std::vector<bool> joined(ports.size(), false);
    if (shares_blocks_) {
        TRY_SET(joined, join_blocks(socket_, crossconnect_, ports).context("attach ports"));
    }
    for (size_t i = 0; i < ports.size(); ++i) {
        if (!joined[i] && shares_blocks_) {  // it may be in one, and the records of it be lost
            TRY_SET(joined[i], in_block(socket_, ports[i]).context(what(i)));
        }
        if (joined[i])
            joined_block(ports[i]);
        else
            TRY(crossconnect_.attach(ports[i], wants[i]->policy).context(what(i)));
    }
    return {};
}

Status Engine::make(std::vector<Making>& makings, std::vector<Undo>& done) {
    const auto is_tap = [](const Making& making) { return std::holds_alternative<TapKind>(making.step->want.kind); };
    netlink::Requests creations;
    for (auto& making : makings) {
        const LinkWant& want = making.step->want;
        uint32_t master = 0;
        if (!want.master.empty()) {
            TRY_SET(master, ifindex(want.master));
        }
        making.rest = is_tap(making) ? tap_requests(want) : requests_of(want, master);
        if (is_tap(making)) continue;
        creations.push_back(std::move(making.rest.front()));
        making.rest.erase(making.rest.begin());
    }
    const auto created = socket_.batch(creations);
    auto next = created.begin();
    Status all;
    for (auto& making : makings) {
        const std::string& name = making.step->want.name;
        // EEXIST is about somebody else's link (or VNI): that one stays.
        Status made = is_tap(making) ? make_tap(name) : *next++;
        if (made) {
            done.push_back([this, name] { return unmake(name); });
            // Asked of the kernel now, as an index remembered under this name may be of a link that is gone.
            const auto index = socket_.index(name);
            made = index ? Status() : index.error();
            making.index = index ? *index : 0;
            const bool is_port = std::holds_alternative<IfbKind>(making.step->want.kind);
            if (made && is_port) made = socket_.request(netlink::no_queue(making.index));
        }
        if (!made && all) all = made.context(describe(*making.step));
    }
    return all;
}

Status Engine::unmake(const std::string& name) {
    const auto index = socket_.index(name);
    forget_name(name);
    TRY(socket_.request(netlink::delete_link(name)));
    if (index) link_gone(*index);
    return {};
}

Result<Engine::Undo> Engine::apply(const Step& step) {
    const auto apply_one = [&](const auto& one) {
        if constexpr (std::is_same_v<decltype(one), const MakeLink&>)
            return build({&step, 1});
        else
            return apply(one).context(describe(step));
    };
    return std::visit(apply_one, step);
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

Status Engine::detach(xconnect::PortKey port) {
    looked_at_.erase(port);
    std::erase(to_settle_, port);
    TRY(crossconnect_.detach(port));
    return leave_block(socket_, port);
}

Result<bool> Engine::refresh(xconnect::PortKey port) {
    TRY_SET(const bool by_tcx, crossconnect_.refresh(port, xconnect::AttachMode::tcx));
    if (by_tcx) return true;
    TRY_SET(const bool by_block, in_block(socket_, port));
    return by_block ? true : crossconnect_.refresh(port, xconnect::AttachMode::clsact);
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

// A program that is left on a device without entries cuts that device off: what had none gets none back.
Engine::Undo Engine::undo_of(const AttachPort& step, xconnect::PortKey key) {
    return [this, key, attached = step.attached, before = step.before]() -> Status {
        if (before) TRY(crossconnect_.set_policy(key, *before));
        return attached ? Status() : detach(key);
    };
}

Result<Engine::Undo> Engine::apply(const AttachPort& step) {
    TRY_SET(const uint32_t index, ifindex(step.want.device));
    const xconnect::PortKey key{index, step.want.direction};
    TRY(crossconnect_.attach(key, step.want.policy));
    return undo_of(step, key);
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
