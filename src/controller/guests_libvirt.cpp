// What is done with libvirt's help, and so never within a hook's answer: finding guests that no hook told of, and the
// hints in the domains' metadata.

#include <fmt/core.h>
#include <libvirt/libvirt.h>

#include "controller/guests.h"
#include "model/names.h"

namespace banana::controller {

using hooks::DomainFacts;
using model::Spike;
using model::SpikeKind;
using model::SpikeState;

namespace {
constexpr int metadata_attempts = 8;
constexpr milliseconds metadata_first_wait{100};
}  // namespace

void Guests::connected() {
    handover_.events_lost();
    look_again();
}

// Many peers may come up at once: what is asked for while a look is under way is one more.
void Guests::look_again() {
    if (std::exchange(look_wanted_, true)) return;
    node_.spawn(look_at_all(), "looking at all guests");
}

asio::awaitable<void> Guests::look_at_all() {
    const auto guard = co_await node_.locks.acquire("looking at all guests");
    look_wanted_ = false;
    co_await resync();
}

void Guests::device_added(const Domain& domain) { node_.spawn(look_at(domain.uuid), "looking at a guest"); }

void Guests::metadata_changed(const Domain& domain) { node_.spawn(look_at(domain.uuid), "looking at a guest"); }

void Guests::settled(const std::string& uuid) {
    incoming_.erase(uuid);
    node_.spawn(write_metadata(uuid), "writing metadata");
}

asio::awaitable<void> Guests::resync() {
    const auto domains = co_await node_.libvirt.domains();
    if (!domains) {
        log::warning("libvirt: {}", domains.error().message());
        co_return;
    }
    std::set<std::string> active;
    for (const auto& entry : *domains)
        if (entry.state.active()) active.insert(entry.domain.uuid);
    for (const auto& key : spikes_.table().keys()) {
        const Spike* spike = spikes_.table().find(key);
        if (spike == nullptr || !spike->is_guest() || spike->state == SpikeState::unwired) continue;
        // A guest that is being started is not active yet; its hooks are under way.
        if (active.contains(spike->uuid) || preparing_.contains(spike->uuid)) continue;
        node_.spawn(end_if_over(spike->uuid), "ending a guest");
    }
    handover_.resync();
    for (const auto& uuid : active) co_await look_at(uuid);
}

// The list, or the event, may be older than the guest's next start: libvirt's positive word is needed.
asio::awaitable<void> Guests::end_if_over(std::string uuid) {
    const auto state = co_await node_.libvirt.domain_state(uuid);
    if (state && state->active()) co_return;
    if (!state && state.error().code() != Errc::not_found) co_return;
    if (preparing_.contains(uuid)) co_return;
    for (const auto& spike : spikes_.of_domain(uuid)) {
        if (spike.state == SpikeState::unwired) continue;
        log::notice("Spike {}: its domain {} is not running any more", spike.name, spike.domain);
    }
    co_await end(uuid, true);
}

asio::awaitable<void> Guests::look_at(std::string uuid) {
    const auto xml = co_await node_.libvirt.domain_xml(uuid);
    if (!xml) co_return;
    auto facts = hooks::parse_domain(*xml);
    if (!facts) {
        log::warning("domain {}: {}", uuid, facts.error().message());
        co_return;
    }
    if (facts->has_banana()) co_await adopt(std::move(*facts));
}

// Wires the interfaces of a running guest that are not: hotplugged ones, and those of guests that ran before us.
asio::awaitable<void> Guests::adopt(DomainFacts facts) {
    if (!facts.problem.empty()) log::warning("domain {}: {}", facts.name, facts.problem);
    bool changed = false;
    for (const auto& interface : facts.interfaces) {
        if (!is_ours(interface) || interface.target.empty()) continue;
        auto found = spike_of(facts, interface);
        if (!found) {
            log::error("{}", found.error().message());
            continue;
        }
        Spike spike = std::move(*found);
        const auto guard = co_await spikes_.lock(spike.key);
        const Spike* known = spikes_.table().find(spike.key);
        if (known != nullptr && known->state == SpikeState::wired && known->corm != spike.corm)
            node_.spawn(change_corm(spike.key, spike.corm), "changing a Corm");
        if (known != nullptr && known->state != SpikeState::unwired) continue;
        const std::string device = spike.kind == SpikeKind::macvtap ? spike.device : interface.target;
        spike.device.clear();
        Status wired = check_interface(interface, spike);
        if (wired) wired = co_await spikes_.wire(spike, device);
        if (wired)
            log::info("Spike {}: wired, device {}", spike.name, device);
        else
            log::error("Spike {}: {}", spike.name, wired.error().message());
        changed = changed || wired;
    }
    if (changed) settled(facts.uuid);
}

asio::awaitable<void> Guests::write_metadata(std::string uuid) {
    milliseconds wait = metadata_first_wait;
    for (int attempt = 0; attempt < metadata_attempts; ++attempt, wait *= 2) {
        Status written = co_await write_hints(uuid, false);
        if (written) written = co_await write_hints(uuid, true);
        if (written || written.error().code() == Errc::not_found) co_return;
        log::debug("domain {}: {}", uuid, written.error().message());
        co_await node_.sleep(wait);  // a migration is under way, or libvirt is away
    }
    log::warning("domain {}: its metadata could not be written; hints for a later migration are missing", uuid);
}

// Each definition keeps what its user wishes: the persistent one's counts from the next start.
Async<void> Guests::write_hints(std::string uuid, bool persistent) {
    CO_TRY_SET(const std::string xml,
               co_await node_.libvirt.domain_xml(uuid, persistent ? VIR_DOMAIN_XML_INACTIVE : 0));
    CO_TRY_SET(const auto facts, hooks::parse_domain(xml));
    if (!facts.problem.empty()) {
        log::warning("domain {}: its metadata is left as it is: {}", facts.name, facts.problem);
        co_return Status();
    }
    std::vector<hooks::SpikeMeta> metas;
    for (const auto& interface : facts.interfaces) {
        const auto mac = Mac::parse(interface.mac);
        if (!is_ours(interface) || !mac) continue;
        const hooks::SpikeMeta* old = facts.meta_of(interface);
        hooks::SpikeMeta meta = old != nullptr ? *old : hooks::SpikeMeta{};
        meta.interface = interface.name;
        for (const auto& spike : spikes_.of_domain(uuid)) {
            if (spike.mac != *mac || !spike.attachment) continue;
            meta.name = spike.name;
            meta.home = spike.home;
            meta.corm = spike.corm;
            meta.epoch = spike.attachment->half.epoch;
            meta.uuid = uuid;
            meta.mac = interface.mac;
        }
        // An entry of ours bears the uuid: without it would be a user's, which a start may be refused for.
        if (old != nullptr || !meta.uuid.empty()) metas.push_back(std::move(meta));
    }
    const std::string text = hooks::format_domain_metadata(metas);
    if (text == hooks::format_domain_metadata(facts.spikes)) co_return Status();
    co_return co_await node_.libvirt.set_metadata(uuid, text,
                                                  persistent ? VIR_DOMAIN_AFFECT_CONFIG : VIR_DOMAIN_AFFECT_LIVE);
}

}  // namespace banana::controller
