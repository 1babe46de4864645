#include "controller/spikes.h"

#include <fmt/core.h>

#include <algorithm>

#include "base/mtu.h"
#include "model/names.h"
#include "netlink/change.h"
#include "netlink/link.h"
#include "wiring/headroom.h"

namespace banana::controller {

using model::Attachment;
using model::Format;
using model::Spike;
using model::SpikeKind;
using model::SpikeState;

namespace {

constexpr milliseconds probe_patience{1500};
constexpr milliseconds tunnel_patience{2500};  // with the probes, less than a hook waits
constexpr int vni_attempts = 4;                // a VNI that the Corm's host chose may be taken on this host

}  // namespace

Spikes::Spikes(Node& node, Corms& corms, Wires& wires)
    : node_(node), corms_(corms), wires_(wires), table_(node.store, "spike") {}

Status Spikes::load() {
    TRY(table_.load([&](const Error& error) {
        node_.records_ignored = true;
        log::error("ignored record: {}", error.message());
    }));
    table_.each([&](const Spike& spike) {
        if (!spike.device.empty()) by_device_[spike.device] = spike.key;
        by_name_.emplace(spike.name, spike.key);
    });
    return {};
}

Status Spikes::save(const Spike& spike) {
    const Spike* old = table_.find(spike.key);
    const std::string device = old != nullptr ? old->device : "";
    const std::string name = old != nullptr ? old->name : "";
    TRY(table_.save(spike.key, spike));
    if (name != spike.name) {
        by_name_.erase({name, spike.key});
        by_name_.emplace(spike.name, spike.key);
    }
    const auto mapped = by_device_.find(device);
    if (device != spike.device && mapped != by_device_.end() && mapped->second == spike.key) by_device_.erase(mapped);
    if (!spike.device.empty()) by_device_[spike.device] = spike.key;
    return {};
}

Status Spikes::erase(const std::string& key) {
    const Spike* old = table_.find(key);
    const Spike was = old != nullptr ? *old : Spike{};
    TRY(table_.erase(key));
    if (owns_device(was)) by_device_.erase(was.device);
    by_name_.erase({was.name, key});
    return {};
}

// libvirt uses tap names again; an older record may still bear one that is another Spike's now.
bool Spikes::owns_device(const Spike& spike) const {
    const auto it = by_device_.find(spike.device);
    return it != by_device_.end() && it->second == spike.key;
}

void Spikes::drop_stale_devices() {
    for (const auto& key : table_.keys()) {
        Spike spike = *table_.find(key);
        if (spike.kind != SpikeKind::tap || spike.device.empty()) continue;
        const auto link = netlink::link(node_.engine.socket(), spike.device);
        if (link && is_device_of(*link, spike.mac)) continue;
        spike.device.clear();
        if (const Status saved = save(spike); !saved) log::error("{}", saved.error().message());
    }
}

wiring::Plan Spikes::plan() const {
    wiring::Plan plan;
    std::set<uint32_t> stages;
    table_.each([&](const Spike& spike) {
        if (spike.stage != 0 && stages.insert(spike.stage).second)
            plan += wiring::plan_stage(node_.site(), spike.stage);
        if (spike.kind == SpikeKind::macvtap)
            plan += wiring::plan_macvtap(spike, spike.attachment ? spike.attachment->mtu : 0);
        if (spike.state == SpikeState::unwired) return;
        Spike here = spike;
        // A tap that is gone must not fail the whole plan; Guests::resync() sees to it.
        if (!here.device.empty() && !node_.engine.ifindex(here.device)) here.device.clear();
        plan += wiring::plan_spike(node_.site(), here);
    });
    return plan;
}

const Spike* Spikes::by_name(const std::string& name) const {
    const auto it = by_name_.lower_bound({name, ""});
    return it == by_name_.end() || it->first != name ? nullptr : table_.find(it->second);
}

Result<const Spike*> Spikes::resolve(const std::string& name) const {
    const Spike* found = by_name(name);
    if (found == nullptr) found = by_name(model::netdev_spike_name(node_.config.host, name));
    if (found != nullptr) return found;
    return Error(Errc::not_found,
                 fmt::format("host {} has no Spike '{}' (banana spike list)", node_.config.host, printable(name, 80)));
}

const Spike* Spikes::by_device(const std::string& device) const {
    const auto it = by_device_.find(device);
    return it == by_device_.end() ? nullptr : table_.find(it->second);
}

std::vector<Spike> Spikes::of_domain(const std::string& uuid) const {
    std::vector<Spike> out;
    table_.each([&](const Spike& spike) {
        if (!uuid.empty() && spike.uuid == uuid) out.push_back(spike);
    });
    return out;
}

bool Spikes::handing_over() const {
    bool found = false;
    table_.each([&](const Spike& spike) {
        // One that is unwired and granted is over: its Corm's host is to be told, when it is back.
        found = found || (!spike.granted.empty() && spike.state != SpikeState::unwired) ||
                spike.state == SpikeState::leaving || spike.state == SpikeState::incoming;
    });
    return found;
}

std::vector<std::string> Spikes::names_on(const std::string& corm) const {
    std::vector<std::string> names;
    table_.each([&](const Spike& spike) {
        if (spike.corm == corm && spike.state != SpikeState::unwired) names.push_back(spike.name);
    });
    return names;
}

bool Spikes::goes_with_guest(const Spike& spike) const {
    return spike.kind == SpikeKind::tap || (spike.kind == SpikeKind::macvtap && spike.home != node_.config.host);
}

Spikes::Wiring Spikes::wiring_of(const Spike& spike) {
    if (!spike.attachment) return {spike.key, "", 0};
    return {spike.key, spike.attachment->corm, spike.attachment->half.epoch};
}

bool Spikes::stands(const Wiring& wiring) const {
    const Spike* now = table_.find(wiring.key);
    return now != nullptr && wiring_of(*now) == wiring;
}

std::string Spikes::unique_name(const std::string& name, const std::string& key) const {
    return model::unique_spike_name(name, key, [&](const std::string& tried) {
        const Spike* known = by_name(tried);
        return known != nullptr && known->key != key;
    });
}

// Sets the Spike's name to the one that it has at the Corm's host.
Result<Attachment> Spikes::read_answer(const Json& reply, Spike& spike) const {
    const std::string corm_host = model::corm_host(spike.corm);
    TRY_SET(Attachment attachment, Attachment::from_json(reply).context("answer of host " + corm_host));
    if (attachment.corm != spike.corm || attachment.corm_host != corm_host || attachment.half.host != node_.config.host)
        return Error(Errc::invalid, fmt::format("host {} answered for another wire than was asked for", corm_host));
    if (const auto host = node_.host(corm_host)) attachment.corm_underlay = host->underlay;
    // It may make a name unique, and no more.
    const std::string name = reply.get("name").as_string();
    if (name != spike.name && !name.empty()) {
        if (name.rfind(spike.name + "~", 0) != 0 || !model::check_spike_name(name))
            return Error(Errc::invalid, fmt::format("host {} answered with the name '{}' for Spike {}", corm_host,
                                                    printable(name, 80), spike.name));
        spike.name = name;
    }
    return attachment;
}

Async<Attachment> Spikes::ask(Spike& spike, const Json& grant) {
    const std::string corm_host = model::corm_host(spike.corm);
    Json params = Json::object({{"spike", spike.key},
                                {"name", spike.name},
                                {"mac", spike.mac.text()},
                                {"allow_any_mac", spike.allow_any_mac},
                                {"corm", spike.corm},
                                {"preference", spike.preference}});
    if (!grant.is_null()) params.set("grant", grant);
    if (grant.is_null() && !spike.device.empty()) params.set("device", spike.device);
    const std::string method = grant.is_null() ? "wire.open" : "wire.prepare";
    CO_TRY_SET(const Json reply, co_await node_.call(corm_host, method, params));
    auto attachment = read_answer(reply, spike);
    if (attachment) co_return attachment;
    // It has opened a wire all the same. What it cannot be told now is told later, as after an answer that was lost.
    Json opened = Json::object({{"spike", spike.key}, {"epoch", uint64_t{0}}, {"handed_over", false}});
    const auto closed = co_await node_.call(corm_host, "wire.close", opened);
    if (closed) co_return attachment.error();
    co_return Error(Errc::unreachable, attachment.error().message());
}

Async<void> Spikes::probe(Spike spike) {
    const Attachment& a = *spike.attachment;
    if (a.half.format == Format::native) co_return Status();
    if (a.half.format == Format::dtls) CO_TRY(co_await node_.tunnel.await_up(a.half.connector, tunnel_patience));
    CO_TRY_SET(const uint32_t device, node_.engine.ifindex(a.far_device()));
    const bool dtls = a.half.format == Format::dtls;
    for (const size_t size : {size_t{64}, a.mtu + ethernet_bytes}) {
        const auto rtt = co_await node_.prober.round_trip(device, size, probe_patience);
        if (rtt) continue;
        co_return Error(
            rtt.error().code(),
            fmt::format("the {} wire from {} ({}) to {} ({}, UDP port {}) carries no frames of {} B: {}; is "
                        "that port open between them{}?",
                        model::format_name(a.half.format), node_.config.host, node_.config.underlay.text(), a.corm_host,
                        a.corm_underlay.text(), dtls ? node_.config.tunnel.port : node_.config.vxlan_port, size,
                        rtt.error().message(), size > 64 && !dtls ? ", also for IP fragments" : ""));
    }
    co_return Status();
}

Async<void> Spikes::build_once(Spike spike, Json grant, SpikeState as) {
    auto attachment = co_await ask(spike, grant);
    if (!attachment) {
        // It may have been carried out all the same: remembered as a release that is to be told, of whatever is ours.
        const Errc code = attachment.error().code();
        if (code != Errc::timeout && code != Errc::unreachable) co_return attachment.error();
        spike.attachment = Attachment{spike.corm, 0, {}, model::corm_host(spike.corm), node_.config.underlay, 1500};
        spike.attachment->half.host = node_.config.host;
        (void)save(spike);
        co_return attachment.error();
    }
    spike.attachment = std::move(*attachment);
    const auto& half = spike.attachment->half;
    // From the look at what is in use until it is in use: two Corms' hosts may have hit upon one number.
    std::optional<KeyLock::Guard> number;
    if (half.format != Format::native)
        number.emplace(co_await node_.locks.acquire(fmt::format("vni:{}", model::vni_of(half.connector))));
    if (half.format == Format::vxlan && spike.attachment->corm_host != node_.config.host &&
        node_.engine.has_vni(model::vni_of(half.connector))) {
        (void)co_await close_at_corm(spike, false);
        co_return Error(Errc::exists,
                        fmt::format("VNI {} is in use on host {}", model::vni_of(half.connector), node_.config.host));
    }
    // A Corm's host may not take over another's wire by its connector.
    if (half.format == Format::dtls && spike.attachment->corm_host != node_.config.host &&
        node_.tunnel.wanted(half.connector) != nullptr) {
        (void)co_await close_at_corm(spike, false);
        co_return Error(Errc::exists,
                        fmt::format("connector {} is in use on host {}", hex32(half.connector), node_.config.host));
    }
    CO_TRY(spike.move(grant.is_null() ? as : SpikeState::incoming));
    Status built = save(spike);
    if (built) built = co_await node_.plans.realise(wiring::plan_spike(node_.site(), spike));
    if (built) built = co_await probe(spike);
    if (built) co_return built;
    (void)node_.engine.realise(wiring::plan_spike_gone(spike));
    (void)spike.move(SpikeState::unwired);
    if (co_await close_at_corm(spike, false)) spike.attachment.reset();
    (void)save(spike);
    co_return built.error();
}

Async<void> Spikes::build(Spike spike, Json grant, SpikeState as) {
    const auto corm = corms_.by_name(spike.corm);
    if (corm == nullptr) co_return Error(Errc::not_found, "there is no Corm " + spike.corm);
    const bool fresh = table_.find(spike.key) == nullptr;
    spike.state = SpikeState::unwired;
    spike.attachment.reset();
    spike.came_from = grant.get("grant").get("owner").as_string();
    Status built;
    for (int attempt = 0; attempt < vni_attempts; ++attempt) {
        built = co_await build_once(spike, grant, as);
        // A grant is good for one use; its holder asks for another.
        if (built || built.error().code() != Errc::exists || !grant.is_null()) break;
    }
    const Spike* now = table_.find(spike.key);
    if (!built && fresh && now != nullptr && !now->attachment) (void)erase(spike.key);
    co_return built;
}

Async<void> Spikes::attach(std::string key, std::string device, bool realised) {
    const Spike* known = table_.find(key);
    if (known == nullptr || !known->attachment)
        co_return Error(Errc::not_found, fmt::format("Spike {}: nothing was built for it", key));
    Spike spike = *known;
    spike.device = device;
    const Attachment attachment = *spike.attachment;
    if (spike.kind == SpikeKind::tap && spike.old_txqueuelen == 0) {
        CO_TRY_SET(const auto link, netlink::link(node_.engine.socket(), device));
        spike.old_txqueuelen = link.txqueuelen;
    }
    if (spike.state == SpikeState::built) CO_TRY(spike.move(SpikeState::wired));
    CO_TRY(save(spike));
    // The plan is build()'s. A device that went, or came back, since then is not remembered: it is looked for again.
    const std::string far = attachment.far_device();
    const auto stands = [&](const std::string& name) { return name.empty() || node_.engine.remembers(name); };
    if (!realised || !stands(device) || !stands(far))
        CO_TRY(node_.engine.realise(wiring::plan_spike(node_.site(), spike)).context("attach Spike " + spike.name));
    if (attachment.half.format != Format::native) co_return Status();
    Json params = Json::object({{"spike", spike.key}, {"epoch", attachment.half.epoch}, {"device", device}});
    const auto reply = co_await node_.call(attachment.corm_host, "wire.attach", params);
    if (!reply) co_return reply.error();
    co_return Status();
}

Async<void> Spikes::wire(Spike spike, std::string device) {
    const std::string key = spike.key;
    CO_TRY(co_await build(std::move(spike)));
    const Status attached = co_await attach(key, std::move(device));
    if (!attached) (void)co_await release(key, false);
    co_return attached;
}

Async<void> Spikes::close_at_corm(Spike spike, bool handed_over) {
    if (!spike.attachment) co_return Status();
    Json params =
        Json::object({{"spike", spike.key}, {"epoch", spike.attachment->half.epoch}, {"handed_over", handed_over}});
    const auto reply = co_await node_.call(spike.attachment->corm_host, "wire.close", params);
    if (!reply) co_return reply.error();
    co_return Status();
}

Async<void> Spikes::release(std::string key, bool forget) {
    const Spike* known = table_.find(key);
    if (known == nullptr) co_return Status();
    Spike spike = *known;
    Spike here = spike;
    if (!owns_device(here)) here.device.clear();
    if (const Status gone = node_.engine.realise(wiring::plan_spike_gone(here)); !gone)
        log::error("Spike {}: {}", spike.name, gone.error().message());
    if (spike.kind == SpikeKind::netdev)
        if (const Status free = node_.engine.let_go(here.device); !free)
            log::error("Spike {}: {}", spike.name, free.error().message());
    if (spike.kind == SpikeKind::tap) spike.device.clear();
    const bool handed_over = spike.state == SpikeState::leaving || !spike.granted.empty();
    CO_TRY(spike.move(SpikeState::unwired));
    const Status closed = co_await close_at_corm(spike, handed_over);
    if (closed) {
        spike.attachment.reset();
        spike.granted.clear();
    } else {
        // An unwired Spike with an attachment is one whose Corm's host is still to be told; `granted` says the rest.
        log::warning("Spike {}: the Corm's host will be told later that it is released: {}", spike.name,
                     closed.error().message());
    }
    if (forget && closed) co_return erase(key);
    co_return save(spike);
}

void Spikes::link_set(const netlink::Link& link) {
    const Spike* spike = by_device(link.name);
    if (spike == nullptr || spike->kind != SpikeKind::netdev) return;
    const bool wired = spike->state == SpikeState::wired;
    if (!wired && spike->stage == 0) return;
    bool fresh = !node_.engine.remembers(link.name);
    // Whoever asked for its index before this event has made it known again.
    if (wired && !fresh) {
        const auto policy = node_.engine.crossconnect().policy({link.index, wiring::Direction::ingress});
        fresh = policy && !*policy;
    }
    if (fresh) node_.spawn(reattach(spike->key), "attaching a device that is back");
}

asio::awaitable<void> Spikes::reattach(std::string key) {
    const auto guard = co_await lock(key);
    stage(key);
    const Spike* spike = table_.find(key);
    if (spike == nullptr || spike->state != SpikeState::wired) co_return;
    const std::string name = spike->name;
    const auto done = co_await attach(key, spike->device);
    if (!done) log::error("Spike {}: {}", name, done.error().message());
}

}  // namespace banana::controller
