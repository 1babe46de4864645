#include "controller/spikes.h"

#include <fmt/format.h>

#include <algorithm>

#include "model/names.h"
#include "netlink/change.h"
#include "netlink/link.h"

namespace banana::controller {

using model::Attachment;
using model::Format;
using model::Spike;
using model::SpikeKind;
using model::SpikeState;

namespace {

constexpr size_t ethernet_header = 14;
constexpr milliseconds probe_patience{1500};
constexpr int vni_attempts = 4;  // a VNI that the Corm's host chose may be taken on this host

}  // namespace

Spikes::Spikes(Node& node, Corms& corms, Wires& wires)
    : node_(node), corms_(corms), wires_(wires), table_(node.store, "spike") {}

Status Spikes::load() {
    TRY(table_.load([](const Error& error) { log::error("ignored record: {}", error.message()); }));
    table_.each([&](const Spike& spike) {
        if (!spike.device.empty()) by_device_[spike.device] = spike.key;
    });
    return {};
}

Status Spikes::save(const Spike& spike) {
    const Spike* old = table_.find(spike.key);
    const std::string device = old != nullptr ? old->device : "";
    TRY(table_.save(spike.key, spike));
    if (device != spike.device) by_device_.erase(device);
    if (!spike.device.empty()) by_device_[spike.device] = spike.key;
    return {};
}

Status Spikes::erase(const std::string& key) {
    if (const Spike* old = table_.find(key)) by_device_.erase(old->device);
    return table_.erase(key);
}

wiring::Plan Spikes::plan() const {
    wiring::Plan plan;
    table_.each([&](const Spike& spike) {
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
    const Spike* found = nullptr;
    table_.each([&](const Spike& spike) {
        if (spike.name == name) found = &spike;
    });
    return found;
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

std::string Spikes::unique_name(const std::string& name, const std::string& key, const std::string& uuid) const {
    const Spike* known = by_name(name);
    if (known == nullptr || known->key == key) return name;
    return name + "~" + uuid.substr(0, 8);
}

Async<Attachment> Spikes::ask(const Spike& spike, const Json& grant) {
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
    CO_TRY_SET(Attachment attachment, Attachment::from_json(reply).context("answer of host " + corm_host));
    if (attachment.corm != spike.corm || attachment.corm_host != corm_host || attachment.half.host != node_.config.host)
        co_return Error(Errc::invalid, fmt::format("host {} answered for another wire than was asked for", corm_host));
    co_return attachment;
}

Async<void> Spikes::probe(Spike spike) {
    const Attachment& a = *spike.attachment;
    if (a.half.format == Format::native) co_return Status();
    CO_TRY_SET(const uint32_t device, node_.engine.ifindex(a.far_device()));
    for (const size_t size : {size_t{64}, a.mtu + ethernet_header}) {
        const auto rtt = co_await node_.prober.round_trip(device, size, probe_patience);
        if (rtt) continue;
        co_return Error(
            rtt.error().code(),
            fmt::format("the {} wire from {} ({}) to {} ({}, UDP port {}) carries no frames of {} B: {}; is "
                        "that port open between them{}?",
                        model::format_name(a.half.format), node_.config.host, node_.config.underlay.text(), a.corm_host,
                        a.corm_underlay.text(), node_.config.vxlan_port, size, rtt.error().message(),
                        size > 64 ? ", also for IP fragments" : ""));
    }
    co_return Status();
}

Async<void> Spikes::build_once(Spike spike, Json grant) {
    auto attachment = co_await ask(spike, grant);
    if (!attachment) co_return attachment.error();
    spike.attachment = std::move(*attachment);
    CO_TRY(spike.move(grant.is_null() ? SpikeState::built : SpikeState::incoming));
    Status built = save(spike);
    if (built) built = node_.engine.realise(wiring::plan_spike(node_.site(), spike));
    if (built) built = co_await probe(spike);
    if (built) co_return built;
    (void)node_.engine.realise(wiring::plan_spike_gone(spike));
    const auto closed = co_await close_at_corm(spike);
    spike.attachment.reset();
    (void)spike.move(SpikeState::unwired);
    (void)save(spike);
    co_return built.error();
}

Async<void> Spikes::build(Spike spike, Json grant) {
    const auto corm = corms_.by_name(spike.corm);
    if (corm == nullptr) co_return Error(Errc::not_found, "there is no Corm " + spike.corm);
    const bool fresh = table_.find(spike.key) == nullptr;
    spike.state = SpikeState::unwired;
    spike.attachment.reset();
    Status built;
    for (int attempt = 0; attempt < vni_attempts; ++attempt) {
        built = co_await build_once(spike, grant);
        // A grant is good for one use; its holder asks for another.
        if (built || built.error().code() != Errc::exists || !grant.is_null()) break;
    }
    if (!built && fresh) (void)erase(spike.key);
    co_return built;
}

Async<void> Spikes::attach(std::string key, std::string device) {
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
    CO_TRY(node_.engine.realise(wiring::plan_spike(node_.site(), spike)).context("attach Spike " + spike.name));
    if (attachment.half.format != Format::native) co_return Status();
    Json params = Json::object({{"spike", spike.key}, {"epoch", attachment.half.epoch}, {"device", device}});
    const auto reply = co_await node_.call(attachment.corm_host, "wire.attach", params);
    if (!reply) co_return reply.error();
    co_return Status();
}

Async<void> Spikes::close_at_corm(Spike spike) {
    if (!spike.attachment) co_return Status();
    Json params = Json::object({{"spike", spike.key}, {"epoch", spike.attachment->half.epoch}});
    const auto reply = co_await node_.call(spike.attachment->corm_host, "wire.close", params);
    if (!reply) co_return reply.error();
    co_return Status();
}

Async<void> Spikes::release(std::string key, bool forget) {
    const Spike* known = table_.find(key);
    if (known == nullptr) co_return Status();
    Spike spike = *known;
    if (const Status gone = node_.engine.realise(wiring::plan_spike_gone(spike)); !gone)
        log::error("Spike {}: {}", spike.name, gone.error().message());
    if (spike.kind == SpikeKind::tap) spike.device.clear();
    CO_TRY(spike.move(SpikeState::unwired));
    spike.granted.clear();
    const Status closed = co_await close_at_corm(spike);
    if (closed) {
        spike.attachment.reset();
    } else {
        // An unwired Spike with an attachment is one whose Corm's host is still to be told.
        log::warning("Spike {}: the Corm's host will be told later that it is released: {}", spike.name,
                     closed.error().message());
    }
    if (forget && closed) co_return erase(key);
    co_return save(spike);
}

// Whoever had a Spike built and not attached (a hook, the CLI) was cut off with the daemon, and was told so. One that
// is built anew meanwhile has another epoch.
asio::awaitable<void> Spikes::settle() {
    std::vector<std::pair<std::string, uint64_t>> unfinished;
    table_.each([&](const Spike& spike) {
        if (spike.state == SpikeState::built && spike.attachment)
            unfinished.emplace_back(spike.key, spike.attachment->half.epoch);
    });
    for (const auto& [key, epoch] : unfinished) {
        const auto guard = co_await lock(key);
        const Spike* now = table_.find(key);
        if (now == nullptr || now->state != SpikeState::built || now->attachment->half.epoch != epoch) continue;
        log::notice("Spike {}: its wire is given up, as nobody waits for it any more", now->name);
        const auto released = co_await release(key, now->kind == SpikeKind::tap);
        if (!released) log::error("{}", released.error().message());
    }
}

void Spikes::peer_up(const std::string& peer) {
    for (const auto& key : table_.keys()) {
        const Spike& spike = *table_.find(key);
        if (spike.state != SpikeState::unwired || !spike.attachment || spike.attachment->corm_host != peer) continue;
        node_.spawn(
            [](Spikes& self, std::string k) -> asio::awaitable<void> {
                const auto guard = co_await self.lock(k);
                const Spike* now = self.table_.find(k);
                if (now == nullptr || now->state != SpikeState::unwired) co_return;
                const auto told = co_await self.release(k, self.goes_with_guest(*now));
                if (!told) log::warning("{}", told.error().message());
            }(*this, key),
            "telling of a release");
    }
}

}  // namespace banana::controller
