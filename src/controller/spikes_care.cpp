// What is looked after: wires of which one end may not know what the other has, after a crash, an absence or a change.

#include "base/log.h"
#include "controller/spikes.h"

namespace banana::controller {

using model::Format;
using model::Spike;
using model::SpikeKind;
using model::SpikeState;

namespace {

constexpr milliseconds release_retry{5000};

}  // namespace

// Whoever had a Spike built and not attached (a hook, the CLI) was cut off with the daemon, and was told so. One that
// is built anew meanwhile has another epoch.
asio::awaitable<void> Spikes::settle() {
    std::vector<Wiring> unfinished;
    table_.each([&](const Spike& spike) {
        if (spike.state == SpikeState::built && spike.attachment) unfinished.push_back(wiring_of(spike));
    });
    for (const auto& wiring : unfinished) {
        const auto guard = co_await lock(wiring.key);
        const Spike* now = table_.find(wiring.key);
        if (!stands(wiring) || now->state != SpikeState::built) continue;
        log::notice("Spike {}: its wire is given up, as nobody waits for it any more", now->name);
        const auto released = co_await release(wiring.key, now->kind == SpikeKind::tap);
        if (!released) log::error("{}", released.error().message());
    }
}

void Spikes::verify_with(const std::string& peer) {
    if (asking_.insert(peer).second) node_.spawn(verify_all(peer), "asking for wires' other sides");
}

// One after the other: each may take a while, as one that was lost is made anew.
asio::awaitable<void> Spikes::verify_all(std::string peer) {
    for (const auto& key : table_.keys()) {
        const Spike* spike = table_.find(key);
        if (spike == nullptr || !spike->attachment || spike->attachment->corm_host != peer) continue;
        if (peer != node_.config.host && !node_.peers.is_up(peer)) break;
        co_await look_after(key);
    }
    asking_.erase(peer);
}

asio::awaitable<void> Spikes::look_after(std::string key) {
    const Spike* spike = table_.find(key);
    if (spike == nullptr) co_return;
    if (spike->state == SpikeState::unwired)
        co_await tell_of_release(key);  // its record may be gone then
    else if (spike->state == SpikeState::wired)
        co_await verify(key);
}

asio::awaitable<void> Spikes::tell_of_release(std::string key) {
    const auto guard = co_await lock(key);
    const Spike* now = table_.find(key);
    if (now == nullptr || now->state != SpikeState::unwired || !now->attachment) co_return;
    const auto told = co_await release(key, goes_with_guest(*now));
    if (!told) log::warning("{}", told.error().message());
}

asio::awaitable<void> Spikes::retry_loop() {
    for (;;) {
        co_await node_.sleep(release_retry);
        for (const auto& key : table_.keys()) {
            const Spike* spike = table_.find(key);
            if (spike == nullptr || !spike->attachment) continue;
            if (spike->state != SpikeState::unwired && !to_verify_.contains(key)) continue;
            const std::string host = spike->attachment->corm_host;
            if (host == node_.config.host || node_.peers.is_up(host)) co_await look_after(key);
        }
        std::erase_if(to_verify_, [&](const std::string& key) {
            const Spike* spike = table_.find(key);
            return spike == nullptr || spike->state != SpikeState::wired;
        });
    }
}

// The Corm's host may have given a wire up while this one was away: by hand, or with its records.
asio::awaitable<void> Spikes::verify(std::string key) {
    const auto guard = co_await lock(key);
    const Spike* known = table_.find(key);
    if (known == nullptr || known->state != SpikeState::wired || !known->attachment) co_return;
    const Spike spike = *known;
    Json params = Json::object({{"spike", key}});
    const auto owner = co_await node_.call(spike.attachment->corm_host, "wire.owner", params);
    if (!owner) {
        if (owner.error().code() != Errc::unsupported) to_verify_.insert(key);
        co_return;
    }
    const std::string host = owner->get("owner").as_string();
    const bool same =
        host == node_.config.host && owner->get("epoch").as_int() == static_cast<int64_t>(spike.attachment->half.epoch);
    const bool failed_before = to_verify_.contains(key);
    Status done;
    if (same && !has_moved(spike, *owner)) {
        // What stands in the record may not have come to stand in the kernel.
        if (failed_before && !spike.device.empty()) done = co_await attach(key, spike.device);
    } else if (!host.empty() && host != node_.config.host) {
        if (!failed_before)
            log::error("Spike {}: wired here, but host {} says that it is host {}'s", spike.name,
                       spike.attachment->corm_host, host);
        done = Error(Errc::busy, "");
    } else {
        if (!failed_before)
            log::notice("Spike {}: {}; it is made anew", spike.name,
                        same ? "an underlay address of its wire has changed"
                             : "host " + spike.attachment->corm_host + " no longer has its wire");
        done = co_await remake(spike);
        // Its Corm may be made anew by and by.
        if (!done && !failed_before)
            log::error("Spike {}: {}; tried again until it succeeds", spike.name, done.error().message());
    }
    if (done)
        to_verify_.erase(key);
    else
        to_verify_.insert(key);
}

// The old wire's device goes when the new one carries frames. If that cannot be had, the record stays as it was: it
// says that the Spike is to be wired, and verify() comes again; so it does meanwhile, for whoever starts again then.
Async<void> Spikes::remake(Spike spike) {
    const std::string key = spike.key;
    Status again = co_await build(spike, Json(), SpikeState::wired);
    if (again) {
        again = co_await attach(key, spike.device);
        if (!again) (void)co_await release(key, false);  // the new one, at both ends
    }
    if (!again) {
        (void)save(spike);
        co_return again;
    }
    if (const Status gone = node_.engine.realise(wiring::plan_half_gone(spike.attachment->half)); !gone)
        log::error("Spike {}: {}", spike.name, gone.error().message());
    co_return again;
}

// A VXLAN wire has both ends' addresses in its devices and filters. `told`: the Corm's host's answer to wire.owner.
// Only that host knows under which address it reaches this one: it may be another than this one's own (NAT).
bool Spikes::has_moved(const Spike& spike, const Json& told) const {
    if (spike.attachment->half.format != Format::vxlan) return false;
    const auto corm_host = node_.host(spike.attachment->corm_host);
    const std::string is = told.get("underlay").as_string();
    const std::string due =
        told.has("underlay_now") ? told.get("underlay_now").as_string() : node_.config.underlay.text();
    return (!is.empty() && !due.empty() && is != due) ||
           (corm_host && corm_host->underlay != spike.attachment->corm_underlay);
}

}  // namespace banana::controller
