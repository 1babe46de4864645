#include "controller/guests.h"

#include <fmt/core.h>

#include <algorithm>
#include <asio/redirect_error.hpp>
#include <asio/use_awaitable.hpp>

#include "base/clock.h"
#include "model/names.h"

namespace banana::controller {

using hooks::DomainFacts;
using hooks::Interface;
using hooks::SpikeMeta;
using model::Spike;
using model::SpikeKind;
using model::SpikeState;

namespace {

constexpr int64_t incoming_life_ns = 30'000'000'000;
constexpr milliseconds change_retry_min{1000}, change_retry_max{30'000};

// libvirt polices at the tap's ingress qdisc, which the cross-connect's frames never reach (tcx) or would end in
// (clsact): the limit would silently not hold, or the wire would be cut.
Error outbound_limit(const std::string& interface, const std::string& domain) {
    return {Errc::unsupported,
            fmt::format("interface {} of domain {}: <bandwidth> with <outbound> cannot limit a banana "
                        "interface; remove <outbound> (<inbound> works)",
                        interface, domain)};
}

}  // namespace

Guests::Guests(Node& node, Corms& corms, Spikes& spikes, Handover& handover)
    : node_(node), corms_(corms), spikes_(spikes), handover_(handover) {}

void Guests::serve() {
    using rpc::Context;
    node_.control.on("hook.qemu",
                     [this](Context&, Json p) -> Async<Json> { co_return co_await hook_qemu(std::move(p)); });
    node_.control.on("hook.network",
                     [this](Context&, Json p) -> Async<Json> { co_return co_await hook_network(std::move(p)); });
    node_.dispatcher.on("spike.moved", [this](Context& c, Json p) -> Async<Json> {
        // A hint; nothing is decided by it, and nothing keeps it yet.
        CO_TRY_SET(const std::string name, p.string("name"));
        if (model::name_home(name) != node_.config.host || !model::check_spike_name(name))
            co_return Error(Errc::refused, "this host is not the home of " + printable(name, 80));
        log::debug("Spike {}: on host {} now (epoch {})", name, caller(node_, c), p.get("epoch").as_int());
        co_return Json::object();
    });
}

Async<Json> Guests::hook_qemu(Json params) {
    CO_TRY_SET(const std::string operation, params.string("operation"));
    CO_TRY_SET(const Json domain, params.object_at("domain"));
    CO_TRY_SET(const DomainFacts facts, DomainFacts::from_json(domain));
    log::debug("hook qemu {} of domain {}", operation, facts.name);
    if (operation == "migrate") {
        CO_TRY(hooks::check(facts));
        incoming_[facts.uuid] = monotonic_ns();
    } else if (operation == "prepare") {
        const Status done = co_await prepare_in_time(facts, is_incoming(facts.uuid));
        // Without a grant of anybody's it is a plain start, whose `started` ends it.
        if (!done || !comes_by_grant(facts.uuid)) incoming_.erase(facts.uuid);
        if (!done) {
            log::warning("domain {}: refused: {}", facts.name, done.error().message());
            co_return done.error();
        }
    } else if (operation == "start") {
        CO_TRY(co_await start(facts));
    } else if (operation == "started") {
        if (!incoming_.contains(facts.uuid)) settled(facts.uuid);
    } else if (operation == "stopped" || operation == "release") {
        // libvirt waits for the answer; the Corm's host may be slow to give its own.
        node_.spawn(end(facts.uuid, operation == "release"), "ending a guest");
    } else if (operation == "reconnect") {
        node_.spawn(adopt(facts), "adopting a guest");
    }
    co_return Json::object();
}

// ---- Who is an interface's Spike? ----

// A bridge may be called like an anchor and be none: then its guest is nobody's business here.
bool Guests::is_ours(const Interface& interface) const {
    if (!hooks::is_banana(interface)) return false;
    const bool by_bridge = interface.type == "bridge" && interface.network.empty();
    return !by_bridge || corms_.by_short(hooks::corm_of(interface)) != nullptr;
}

Result<Spike> Guests::macvtap_of(const DomainFacts& facts, const Interface& interface, const SpikeMeta* meta) const {
    const auto id = parse_hex32(interface.dev.substr(std::string(model::macvtap_prefix).size()));
    const Spike* found = nullptr;
    spikes_.table().each([&](const Spike& s) {
        if (id && s.kind == SpikeKind::macvtap && s.id == *id) found = &s;
    });
    Spike spike;
    if (found != nullptr) {
        spike = *found;
    } else {
        // On a migration's destination the endpoint is known from the hints that its host wrote.
        const bool hinted =
            id && meta != nullptr && meta->uuid == facts.uuid && meta->name.find("/dev/") != std::string::npos;
        if (!hinted)
            return Error(Errc::not_found,
                         fmt::format("interface {} of domain {}: host {} has no macvtap Spike on device {} "
                                     "(banana spike create NAME --macvtap)",
                                     interface.name, facts.name, node_.config.host, interface.dev));
        spike.kind = SpikeKind::macvtap;
        spike.id = *id;
        spike.name = meta->name;
        spike.key = meta->name;
        spike.home = model::name_home(meta->name);
        spike.device = model::lower_stub_device(*id);
        spike.corm = meta->corm;
    }
    if (spike.corm.empty())
        return Error(Errc::refused, fmt::format("Spike {} (device {}) has no Corm yet: banana connect {} CORM",
                                                spike.name, interface.dev, spike.name));
    if (corms_.by_name(spike.corm) == nullptr) {
        TRY(corms_.resolve(spike.corm));
    }
    return spike;
}

Result<Spike> Guests::spike_of(const DomainFacts& facts, const Interface& interface) const {
    const SpikeMeta* meta = facts.meta_of(interface);
    // A clone carries its original's hints; they are not about it.
    const bool own_hints = meta != nullptr && meta->uuid == facts.uuid;
    TRY_SET(const Mac mac, Mac::parse(interface.mac).context("interface " + interface.name));
    Spike spike;
    if (interface.dev.rfind(model::macvtap_prefix, 0) == 0 && interface.network.empty()) {
        TRY_SET(spike, macvtap_of(facts, interface, meta));
    } else {
        spike.key = model::guest_key(facts.uuid, mac);
        if (const Spike* known = spikes_.table().find(spike.key)) spike = *known;
        spike.kind = SpikeKind::tap;
        auto corm = corms_.resolve(hooks::corm_of(interface));
        if (!corm) return corm.error().context(fmt::format("interface {} of domain {}", interface.name, facts.name));
        spike.corm = corm->full_name();
        if (spike.name.empty()) {
            spike.home = own_hints && !meta->home.empty() ? meta->home : node_.config.host;
            // A Spike keeps its name. Hints are whoever's: what cannot be one is not taken.
            const bool named = own_hints && model::check_spike_name(meta->name).ok();
            spike.name = spikes_.unique_name(
                named ? meta->name : model::spike_name(spike.home, facts.name, interface.name), spike.key);
        }
    }
    spike.mac = mac;
    spike.domain = facts.name;
    spike.uuid = facts.uuid;
    spike.interface = interface.name;
    if (meta != nullptr && !meta->wire.empty()) {
        TRY_SET(spike.preference, model::parse_preference(meta->wire));
    } else if (spike.kind == SpikeKind::tap) {
        spike.preference = "auto";
    }
    if (meta != nullptr && meta->allow_any_mac) spike.allow_any_mac = *meta->allow_any_mac;
    return spike;
}

Status Guests::check_interface(const Interface& interface, const Spike& spike) const {
    const model::Corm* corm = corms_.by_name(spike.corm);
    if (corm != nullptr && interface.mtu > corm->mtu)
        return Error(Errc::invalid,
                     fmt::format("interface {} of domain {}: its MTU {} is larger than that of Corm {}, {}",
                                 interface.name, spike.domain, interface.mtu, spike.corm, corm->mtu));
    if (corm != nullptr && interface.mtu == 0 && corm->mtu < 1500)
        log::warning("domain {}, interface {}: Corm {} has MTU {}; <mtu size='{}'/> in the interface tells the guest",
                     spike.domain, interface.name, spike.corm, corm->mtu, corm->mtu);
    if (interface.bandwidth_outbound) return outbound_limit(interface.name, spike.domain);
    return {};
}

// The Corm's host decides; but only here is it known which line of the user's XML asked for that format.
Status Guests::check_wanted_wire(const SpikeMeta* meta, const Spike& spike) const {
    if (meta == nullptr || meta->wire.empty()) return {};
    const model::Corm* corm = corms_.by_name(spike.corm);
    const auto corm_host = node_.host(model::corm_host(spike.corm));
    if (corm == nullptr || !corm_host) return {};
    const auto choice = model::choose_format(spike.preference, corm->formats, node_.self(), *corm_host);
    if (choice) return {};
    return choice.error().context(fmt::format("metadata of domain {}: line {}: <banana:spike interface='{}'>: Corm {}",
                                              spike.domain, meta->line, meta->interface, spike.corm));
}

// ---- Starting ----

// Null: nobody owns it, so there is nobody whose word is needed. So it is after an offline migration, which has a
// `migrate` hook, too, and with a guest that was started without bananad. Or this host does: of a run here, of whose
// end the Corm's host was not told. (To ask itself, it would wait for the lock that it holds.)
Async<Json> Guests::obtain_grant(const Spike& spike) {
    const std::string corm_host = model::corm_host(spike.corm);
    Json params = Json::object({{"spike", spike.key}});
    CO_TRY_SET(const Json owner, co_await node_.call(corm_host, "wire.owner", params));
    const std::string host = owner.get("owner").as_string();
    if (host.empty() || host == node_.config.host) {
        log::info("Spike {}: wired {}, so nobody is asked for it", spike.name,
                  host.empty() ? "nowhere" : "to this host");
        co_return Json();
    }
    const auto grant = co_await node_.call(host, "spike.grant", params);
    if (!grant) co_return grant.error().context(fmt::format("grant of host {}", host));
    co_return *grant;
}

Async<Spikes::Wiring> Guests::prepare_one(const DomainFacts& facts, const Interface& interface, bool incoming) {
    CO_TRY_SET(Spike spike, spike_of(facts, interface));
    CO_TRY(check_interface(interface, spike));
    CO_TRY(check_wanted_wire(facts.meta_of(interface), spike));
    const auto guard = co_await spikes_.lock(spike.key);
    const Spike* known = spikes_.table().find(spike.key);
    if (known != nullptr && known->state != SpikeState::unwired && known->uuid != facts.uuid)
        co_return Error(Errc::refused,
                        fmt::format("interface {} of domain {}: device {} is Spike {}, which domain {} uses",
                                    interface.name, facts.name, interface.dev, known->name, known->domain));
    if (known != nullptr && known->attachment) {
        // A run whose end was not told.
        CO_TRY(co_await spikes_.release(spike.key, false));
        spike.attachment.reset();
    }
    spike.granted.clear();
    if (spike.kind == SpikeKind::tap) {
        // That run's; this one's is not made yet.
        spike.device.clear();
        spike.old_txqueuelen = 0;
    }
    if (spike.kind == SpikeKind::macvtap) {
        const auto* corm = corms_.by_name(spike.corm);
        CO_TRY(node_.engine.realise(wiring::plan_macvtap(spike, corm != nullptr ? corm->mtu : 0)));
    }
    const Status built = co_await build_prepared(spike, incoming);
    const Spike* now = spikes_.table().find(spike.key);
    if (built) co_return Spikes::wiring_of(*now);
    // A visitor's endpoint was made for this visit.
    if (now == nullptr && spike.kind == SpikeKind::macvtap)
        (void)node_.engine.realise(wiring::plan_macvtap_gone(spike));
    co_return built.error();
}

Async<void> Guests::build_prepared(Spike spike, bool incoming) {
    Json grant;
    if (incoming) {
        CO_TRY_SET(grant, co_await obtain_grant(spike));
    }
    co_return co_await spikes_.build(std::move(spike), grant);
}

Async<void> Guests::prepare(const DomainFacts& facts, bool incoming, Preparation& run) {
    CO_TRY(hooks::check(facts));
    std::set<std::string> macs;
    for (const auto& interface : facts.interfaces)
        if (is_ours(interface) && !macs.insert(interface.mac).second)
            co_return Error(Errc::invalid,
                            fmt::format("domain {}: two interfaces have MAC {}", facts.name, interface.mac));
    for (const auto& interface : facts.interfaces) {
        if (!is_ours(interface)) continue;
        CO_TRY_SET(auto built, co_await prepare_one(facts, interface, incoming));
        run.built.push_back(std::move(built));
        if (run.abandoned) co_return Error(Errc::timeout, "abandoned");
    }
    co_return Status();
}

asio::awaitable<void> Guests::run_preparation(DomainFacts facts, bool incoming, std::shared_ptr<Preparation> run) {
    const Status done = co_await prepare(facts, incoming, *run);
    if (!done || run->abandoned)  // all of a guest's NICs or none
        for (const auto& wiring : run->built) co_await release(wiring, true);
    run->result = done;
    run->timer->cancel();
    if (const auto it = preparing_.find(facts.uuid); it != preparing_.end() && it->second == run) preparing_.erase(it);
}

// banana-hook waits for 7.5 s, whatever peers and probes take: what comes later is given up, not left behind.
Async<void> Guests::prepare_in_time(DomainFacts facts, bool incoming) {
    auto run = std::make_shared<Preparation>();
    run->timer = std::make_shared<asio::steady_timer>(node_.io, node_.config.limits.hook_timeout);
    if (const auto it = preparing_.find(facts.uuid); it != preparing_.end()) it->second->abandoned = true;
    preparing_[facts.uuid] = run;
    node_.spawn(run_preparation(facts, incoming, run), "preparing a guest");
    // What needs no peer is done by now.
    asio::error_code ignored;
    if (!run->result) co_await run->timer->async_wait(asio::redirect_error(asio::use_awaitable, ignored));
    if (run->result) co_return *run->result;
    run->abandoned = true;
    co_return Error(Errc::timeout,
                    fmt::format("domain {}: its wires could not be built within {} ms (banana peer list)", facts.name,
                                node_.config.limits.hook_timeout.count()));
}

Async<void> Guests::start(const DomainFacts& facts) {
    for (const auto& interface : facts.interfaces) {
        if (!is_ours(interface)) continue;
        CO_TRY_SET(const Spike spike, spike_of(facts, interface));
        const std::string device = spike.kind == SpikeKind::macvtap ? spike.device : interface.target;
        if (device.empty())
            co_return Error(
                fmt::format("interface {} of domain {}: libvirt made no tap for it", interface.name, facts.name));
        const auto guard = co_await spikes_.lock(spike.key);
        CO_TRY(co_await spikes_.attach(spike.key, device));
    }
    co_return Status();
}

// ---- Ending ----

asio::awaitable<void> Guests::end(std::string uuid, bool over) {
    incoming_.erase(uuid);
    if (const auto it = preparing_.find(uuid); it != preparing_.end()) it->second->abandoned = true;
    std::vector<Spikes::Wiring> wirings;
    for (const auto& spike : spikes_.of_domain(uuid)) wirings.push_back(Spikes::wiring_of(spike));
    for (const auto& wiring : wirings) co_await release(wiring, over);
}

// The guest may be started again, or prepared again, meanwhile: what that builds stays.
asio::awaitable<void> Guests::release(Spikes::Wiring wiring, bool over) {
    const auto guard = co_await spikes_.lock(wiring.key);
    if (!spikes_.stands(wiring)) co_return;
    const Spike spike = *spikes_.table().find(wiring.key);
    handover_.ended(spike);
    const bool visitor = spike.kind == SpikeKind::macvtap && spikes_.goes_with_guest(spike);
    const bool forget = visitor ? over : spikes_.goes_with_guest(spike);
    Status done = co_await spikes_.release(spike.key, forget);
    if (done && visitor && over) done = node_.engine.realise(wiring::plan_macvtap_gone(spike));
    if (!done) log::error("{}", done.error().message());
}

asio::awaitable<void> Guests::unplugged(std::string key, std::string device) {
    const auto guard = co_await spikes_.lock(key);
    const Spike* spike = spikes_.table().find(key);
    // Its place may have been taken meanwhile, by a tap of the same guest's next start.
    if (spike == nullptr || spike->kind != SpikeKind::tap || spike->device != device) co_return;
    if (node_.engine.ifindex(device)) co_return;
    handover_.ended(*spike);
    const auto released = co_await spikes_.release(key, true);
    if (!released) log::error("{}", released.error().message());
}

void Guests::link_deleted(const std::string& name) {
    const Spike* spike = spikes_.by_device(name);
    if (spike != nullptr && spike->kind == SpikeKind::tap) node_.spawn(unplugged(spike->key, name), "unplugging");
}

void Guests::stopped(const Domain& domain) { node_.spawn(end_if_over(domain.uuid), "ending a guest"); }

bool Guests::comes_by_grant(const std::string& uuid) const {
    const auto spikes = spikes_.of_domain(uuid);
    return std::any_of(spikes.begin(), spikes.end(), [](const auto& s) { return s.state == SpikeState::incoming; });
}

bool Guests::is_incoming(const std::string& uuid) const {
    // `prepare` follows `migrate` at once, or, if the guest is off, not at all.
    const auto it = incoming_.find(uuid);
    return it != incoming_.end() && monotonic_ns() - it->second < incoming_life_ns;
}

// ---- Hotplug, and changes of Corm ----

Async<Json> Guests::hook_network(Json params) {
    CO_TRY_SET(const std::string operation, params.string("operation"));
    if (operation != "port-created") co_return Json::object();
    CO_TRY_SET(const Json port, params.object_at("port"));
    CO_TRY_SET(const auto facts, hooks::NetworkPortFacts::from_json(port));
    CO_TRY_SET(const Mac mac, Mac::parse(facts.mac));
    CO_TRY_SET(const model::Corm corm,
               corms_.resolve(facts.network.name.substr(std::string(model::network_prefix).size())));
    const std::string key = model::guest_key(facts.owner_uuid, mac);
    const Spike* known = spikes_.table().find(key);
    if (known != nullptr && known->corm == corm.full_name() && known->state != SpikeState::unwired)
        co_return Json::object();  // a start: `prepare` has built it
    if (facts.bandwidth_outbound) co_return outbound_limit(facts.mac, facts.owner_name);
    Json question = Json::object({{"spike", key}, {"corm", corm.full_name()}, {"mac", mac.text()}});
    if (known != nullptr) question.set("preference", known->preference);  // it is moved here from another Corm
    const auto answer = co_await node_.call(corm.host, "wire.check", question);
    if (!answer) co_return answer.error().context("interface " + facts.mac + " of domain " + facts.owner_name);
    co_return Json::object();  // the wire is made when the tap appears in the anchor
}

void Guests::link_set(const netlink::Link& link) {
    if (link.master == 0 || link.kind != "tun") return;
    const model::Corm* corm = nullptr;
    for (const auto& known : corms_.all()) {
        const auto anchor = node_.engine.ifindex(model::anchor_device(known.name));
        if (anchor && *anchor == link.master) corm = corms_.by_short(known.name);
    }
    if (corm == nullptr) return;
    const Spike* spike = spikes_.by_device(link.name);
    if (spike != nullptr) {
        if (spike->corm != corm->full_name() && spike->state == SpikeState::wired)
            node_.spawn(change_corm(spike->key, corm->full_name()), "changing a Corm");
        return;
    }
    // libvirt gives a tap the guest's MAC with first byte fe. A Spike that is built waits for its `start` hook.
    bool expected = false;
    spikes_.table().each([&](const Spike& s) {
        const bool same = std::equal(s.mac.bytes.begin() + 1, s.mac.bytes.end(), link.mac.bytes.begin() + 1);
        expected = expected || (same && s.corm == corm->full_name() &&
                                (s.state == SpikeState::built || s.state == SpikeState::incoming));
    });
    if (!expected && node_.libvirt.connected()) look_again();
}

bool Guests::is_in_anchor(const std::string& device, const std::string& corm) const {
    const auto link = netlink::link(node_.engine.socket(), device);
    const auto anchor = node_.engine.ifindex(model::anchor_device(model::corm_short_name(corm)));
    return link && anchor && link->master == *anchor;
}

// libvirt has moved the interface already: what fails is tried again for as long as the tap stays in that anchor.
asio::awaitable<void> Guests::change_corm(std::string key, std::string corm) {
    auto first = co_await spikes_.lock(key);
    std::optional<KeyLock::Guard> guard(std::move(first));
    const Spike* known = spikes_.table().find(key);
    if (known == nullptr || known->corm == corm || known->state != SpikeState::wired) co_return;
    log::notice("Spike {}: its interface was moved from Corm {} to Corm {}", known->name, known->corm, corm);
    const std::string device = known->device;
    Spike spike = *known;
    const auto released = co_await spikes_.release(key, false);
    if (!released) log::error("{}", released.error().message());
    spike.corm = corm;
    for (milliseconds pause = change_retry_min;; pause = std::min(pause * 2, change_retry_max)) {
        const Status wired = co_await spikes_.wire(spike, device);
        if (wired) break;
        log::error(
            "Spike {}: its guest is cut off: device {} is in Corm {} now, but cannot be wired to it: {}; tried "
            "again in {} s",
            spike.name, device, corm, wired.error().message(), pause.count() / 1000);
        guard.reset();
        co_await node_.sleep(pause);
        auto again = co_await spikes_.lock(key);
        guard.emplace(std::move(again));
        known = spikes_.table().find(key);
        if (known == nullptr || known->state != SpikeState::unwired || !is_in_anchor(device, corm)) co_return;
    }
    log::info("Spike {}: wired to Corm {}", spike.name, corm);
    settled(spike.uuid);
}

}  // namespace banana::controller
