#include "controller/handover.h"

#include <fmt/core.h>
#include <libvirt/libvirt.h>

#include <algorithm>
#include <utility>

#include "base/clock.h"
#include "qmp/commands.h"

namespace banana::controller {

using model::Spike;
using model::SpikeState;

namespace {

constexpr int64_t grant_life_s = 120;  // from the hook that asked to its use: seconds; the rest is clock skew
constexpr milliseconds job_deadline{2000}, job_look{2000};
constexpr milliseconds first_retry{50}, longest_retry{2000};
constexpr milliseconds queue_drain{2000};
constexpr size_t moments_kept = 32, records_kept = 256;

}  // namespace

Handover::Handover(Node& node, Spikes& spikes, migration::Grants& grants)
    : node_(node), spikes_(spikes), grants_(grants) {}

void Handover::serve() {
    node_.dispatcher.on("spike.grant",
                        [this](rpc::Context& c, Json p) -> Async<Json> { co_return co_await grant(c, std::move(p)); });
    node_.dispatcher.on("spike.runs",
                        [this](rpc::Context& c, Json p) -> Async<Json> { co_return co_await runs(c, std::move(p)); });
    node_.control.on("migration.list", [this](rpc::Context&, Json p) -> Async<Json> {
        Json list = Json::array();
        const std::string wanted = p.get("spike").as_string();
        for (const auto& [key, r] : records_) {
            if (!wanted.empty() && wanted != r.spike) continue;
            Json events = Json::array();
            for (const auto& m : r.moments)
                events.push(Json::object(
                    {{"at_ms", static_cast<double>(m.at_ns - r.moments.front().at_ns) / 1e6}, {"what", m.what}}));
            list.push(Json::object({{"spike", r.spike},
                                    {"from", r.from},
                                    {"to", r.to},
                                    {"epoch", r.epoch},
                                    {"phase", r.phase},
                                    {"events", events}}));
        }
        co_return Json::object({{"migrations", list}});
    });
}

Handover::Record& Handover::record(const Spike& spike, const std::string& from, const std::string& to) {
    if (records_.size() >= records_kept && !records_.contains(spike.key)) {
        const auto last = [](const auto& entry) {
            return entry.second.moments.empty() ? 0 : entry.second.moments.back().at_ns;
        };
        records_.erase(std::min_element(records_.begin(), records_.end(),
                                        [&](const auto& a, const auto& b) { return last(a) < last(b); }));
    }
    Record& r = records_[spike.key];
    r = Record{spike.name, from, to, spike.attachment ? spike.attachment->half.epoch : 0, "", {}};
    return r;
}

void Handover::note(const std::string& key, const std::string& phase, const std::string& what) {
    const auto it = records_.find(key);
    if (it == records_.end()) return;
    it->second.phase = phase;
    it->second.moments.push_back({monotonic_ns(), what});
    if (it->second.moments.size() > moments_kept) it->second.moments.pop_front();
}

// The owner's word that `destination` may have the Spike: given only while libvirt migrates its domain away.
Async<Json> Handover::grant(const rpc::Context& context, Json params) {
    CO_TRY_SET(const std::string key, params.string("spike"));
    const std::string destination = caller(node_, context);
    const auto guard = co_await spikes_.lock(key);
    const Spike* known = spikes_.table().find(key);
    if (known == nullptr || !known->attachment)
        co_return Error(Errc::refused,
                        fmt::format("host {} does not have Spike {}", node_.config.host, printable(key, 80)));
    if (known->state != SpikeState::wired)
        co_return Error(Errc::busy, fmt::format("Spike {} is {} on host {}", known->name,
                                                model::spike_state_name(known->state), node_.config.host));
    Spike spike = *known;
    const auto job = co_await node_.libvirt.job(spike.uuid, job_deadline);
    if (!job) co_return job.error().context(fmt::format("grant Spike {} to host {}", spike.name, destination));
    if (!job->migration_out) {
        log::warning("refused: host {} asks for Spike {}, which is host {}'s and is not being migrated", destination,
                     spike.name, node_.config.host);
        co_return Error(Errc::refused,
                        fmt::format("Spike {} is host {}'s and its domain {} is not being migrated: host {} "
                                    "cannot have it",
                                    spike.name, node_.config.host, spike.domain, destination));
    }
    const int64_t now = monotonic_ns();
    if (!spike.granted.empty() && spike.granted != destination) {
        // One migration, one destination. A migration that began after the grant is another one.
        const auto before = grants_given_.find(key);
        if (before != grants_given_.end() && before->second.at_ns != 0 && job->elapsed_ms &&
            static_cast<int64_t>(*job->elapsed_ms) * 1'000'000 >= now - before->second.at_ns)
            co_return refuse_other(spike, destination);
        CO_TRY(co_await check_only_destination(spike, destination));
    }
    migration::Grant grant;
    grant.spike = key;
    grant.name = spike.name;
    grant.owner = node_.config.host;
    grant.owner_epoch = spike.attachment->half.epoch;
    grant.destination = destination;
    grant.corm = spike.corm;
    grant.nonce = random_hex(16);
    // Of two grants the later one expires later, which is how the Corm's host tells them apart. One that no host with a
    // right clock can have accepted (ours was wrong) puts nothing in order.
    const int64_t now_s = wall_ns() / 1'000'000'000;
    if (spike.grant_expiry > now_s + migration::grant_life_max_s) spike.grant_expiry = 0;
    spike.grant_expiry = std::max(now_s + grant_life_s, spike.grant_expiry + 1);
    grant.expires = spike.grant_expiry;
    CO_TRY_SET(const Json envelope, grants_.issue(grant));
    spike.granted = destination;
    CO_TRY(spikes_.save(spike));
    record(spike, node_.config.host, destination);
    note(key, "granted", "granted to host " + destination);
    log::info("Spike {}: granted to host {} (epoch {})", spike.name, destination, grant.owner_epoch);
    watch_grant(key, now);
    co_return envelope;
}

// A migration that fails before QEMU has a part in it has no event. Once it has one, QEMU tells all that follows, and
// is not asked: it has enough to do.
void Handover::watch_grant(const std::string& key, int64_t granted) {
    Given& given = grants_given_[key];
    if (granted != 0) {
        given.at_ns = granted;
        given.begun = false;
    }
    if (!std::exchange(given.watched, true)) node_.spawn(end_grant(key), "watching a migration");
}

asio::awaitable<void> Handover::end_grant(std::string key) {
    int64_t granted = 0;
    const auto due = [&]() -> const Spike* {
        const Spike* spike = spikes_.table().find(key);
        const bool waits = spike != nullptr && !spike->granted.empty() && spike->state == SpikeState::wired;
        return waits && !grants_given_[key].begun ? spike : nullptr;
    };
    for (int idle = 0; idle < 2;) {
        co_await node_.sleep(job_look);
        const Spike* spike = due();
        if (spike == nullptr) break;
        const std::string uuid = spike->uuid;
        if (std::exchange(granted, grants_given_[key].at_ns) != grants_given_[key].at_ns) idle = 0;  // a newer one
        const auto job = co_await node_.libvirt.job(uuid, job_deadline);
        bool stayed = job && !job->migration_out;
        if (stayed) {
            const auto state = co_await node_.libvirt.domain_state(uuid, job_deadline);
            stayed = state && state->active();
        }
        idle = stayed ? idle + 1 : 0;
    }
    if (const Spike* spike = due(); spike != nullptr) {
        log::notice("Spike {}: its guest's migration is over, and the guest is still here", spike->name);
        note(key, "failed", "the migration ended; the guest is still here");
        co_await failed(key, granted);
    }
    grants_given_[key].watched = false;
    const Spike* spike = spikes_.table().find(key);
    if (spike == nullptr || spike->granted.empty()) grants_given_.erase(key);
}

// Asked by the Corm's host when another wants to be active though this one did not flip the wire. Without the Spike's
// lock, which a flip under way holds while it waits for that host.
Async<Json> Handover::runs(const rpc::Context& context, Json params) {
    CO_TRY_SET(const std::string key, params.string("spike"));
    CO_TRY_SET(const int64_t epoch, params.integer("epoch", 0));
    const Spike* spike = spikes_.table().find(key);
    if (spike == nullptr || !spike->attachment || spike->attachment->corm_host != caller(node_, context) ||
        spike->attachment->half.epoch != static_cast<uint64_t>(epoch) || spike->state != SpikeState::wired ||
        !spike->is_guest())
        co_return Json::object({{"runs", false}});
    const auto state = co_await node_.libvirt.domain_state(spike->uuid, job_deadline);
    co_return Json::object({{"runs", state && state->state == VIR_DOMAIN_RUNNING}});
}

// Who was granted the Spike before, and has a standby wire, is where it is going.
Async<void> Handover::check_only_destination(const Spike& spike, const std::string& destination) {
    Json params = Json::object({{"spike", spike.key}});
    CO_TRY_SET(const Json wire, co_await node_.call(spike.attachment->corm_host, "wire.owner", params));
    if (wire.get("standby").as_string() != spike.granted) co_return Status();
    co_return refuse_other(spike, destination);
}

Error Handover::refuse_other(const Spike& spike, const std::string& destination) const {
    log::warning("refused: host {} asks for Spike {}, which is being migrated to host {}", destination, spike.name,
                 spike.granted);
    return {Errc::refused, fmt::format("Spike {} is being migrated to host {}, not to host {}", spike.name,
                                       spike.granted, destination)};
}

void Handover::qmp_event(const Domain& domain, const std::string& name, const Json& data) {
    using qmp::MigrationStatus;
    MigrationStatus status = MigrationStatus::none;
    if (name == "MIGRATION") {
        qmp::Event event;
        event.name = name;
        event.data = data;
        status = MigrationStatus::other;
        if (const auto told = qmp::decode_migration_event(event)) status = *told;
    }
    const bool stops = name == "STOP" || status == MigrationStatus::pre_switchover || status == MigrationStatus::device;
    const bool runs_here =
        name == "RESUME" || status == MigrationStatus::failed || status == MigrationStatus::cancelled;
    for (const auto& spike : spikes_.of_domain(domain.uuid)) {
        const std::string what = name == "MIGRATION" ? name + " " + qmp::migration_status_name(status) : name;
        const bool outgoing = spike.state == SpikeState::wired && !spike.granted.empty();
        if (outgoing && name == "MIGRATION") grants_given_[spike.key].begun = true;
        if (outgoing && stops) {
            note(spike.key, "stopping", what);
            node_.spawn(leave(spike.key), "flipping a wire");
        } else if ((spike.state == SpikeState::leaving || outgoing) && runs_here) {
            // Also while a flip is under way: the Spike's lock keeps the two in order.
            note(spike.key, "returning", what);
            node_.spawn(come_back(spike.key, domain.uuid), "flipping a wire back");
            if (name != "RESUME") node_.spawn(failed(spike.key, grants_given_[spike.key].at_ns), "ending a migration");
        } else if (spike.state == SpikeState::incoming && name == "RESUME") {
            arrived(spike, what);
        } else if (spike.state == SpikeState::incoming && status == MigrationStatus::completed) {
            node_.spawn(settle(spike.key, spike.attachment->half.epoch), "asking who has a Spike");
        }
    }
}

void Handover::first_frame(const xconnect::FirstFrame& report) {
    std::optional<Spike> found;
    spikes_.table().each([&](const Spike& spike) {
        if (spike.state != SpikeState::incoming || spike.device.empty() || !spike.attachment ||
            spike.attachment->half.epoch != report.generation)
            return;
        const auto index = node_.engine.ifindex(spike.device);
        if (index && *index == report.port.ifindex) found = spike;
    });
    if (found) arrived(*found, "first frame from the guest");
}

// The lock is taken for each attempt, so that the guest's end or next start need not wait for an unreachable host. What
// is the matter is told when it is another than before.
asio::awaitable<void> Handover::repeat(std::string key, const char* what, std::function<Async<bool>()> attempt) {
    std::string told;
    for (milliseconds wait = first_retry;; wait = std::min(wait * 2, longest_retry)) {
        const auto done = co_await attempt();
        if (done && *done) co_return;
        const std::string why = done ? "" : done.error().message();
        if (!why.empty() && told != why) {
            const Spike* spike = spikes_.table().find(key);
            log::warning("Spike {}: {}: {}; trying again", spike != nullptr ? spike->name : key, what, why);
            told = why;
        }
        co_await node_.sleep(wait);
    }
}

asio::awaitable<void> Handover::leave(std::string key) {
    bool first = true;
    co_await repeat(key, "flip", [&] { return try_leave(key, std::exchange(first, false)); });
}

// True: nothing is left to be done.
Async<bool> Handover::try_leave(const std::string& key, bool first) {
    const auto guard = co_await spikes_.lock(key);
    const Spike* known = spikes_.table().find(key);
    const SpikeState due = first ? SpikeState::wired : SpikeState::leaving;
    if (known == nullptr || known->state != due || !known->attachment) co_return true;
    Spike spike = *known;
    // Stored first: a crash behind the flip must not leave it unknown. If the guest runs on here, it is flipped back.
    if (first) {
        CO_TRY(spike.move(SpikeState::leaving));
        CO_TRY(spikes_.save(spike));
    }
    Json params = Json::object({{"spike", key}, {"epoch", spike.attachment->half.epoch}});
    const auto flipped = co_await node_.call(spike.attachment->corm_host, "wire.flip", params);
    if (!flipped && flipped.error().code() == Errc::refused) {
        log::warning("Spike {}: not handed over: {}", spike.name, flipped.error().message());
        note(key, "failed", "flip: " + flipped.error().message());
        if (!first) co_return true;
        spike.granted.clear();
        CO_TRY(spike.move(SpikeState::wired));
        CO_TRY(spikes_.save(spike));
        co_return true;
    }
    if (flipped)
        note(key, "flipped", "frames to the guest go to host " + spike.granted);
    else
        note(key, "flipping", flipped.error().message());
    if (!flipped) co_return flipped.error();
    co_return true;
}

asio::awaitable<void> Handover::come_back(std::string key, std::string uuid) {
    if (!returning_.insert(key).second) co_return;  // under way
    co_await repeat(key, "flip back", [&] { return try_come_back(key, uuid); });
    returning_.erase(key);
}

// True: nothing is left to be done.
Async<bool> Handover::try_come_back(const std::string& key, const std::string& uuid) {
    const auto guard = co_await spikes_.lock(key);
    const Spike* known = spikes_.table().find(key);
    if (known == nullptr || known->state != SpikeState::leaving) co_return true;
    Spike spike = *known;
    // The source's word must be positive: its QEMU runs. A failed migration of a paused guest leaves it paused.
    CO_TRY_SET(const DomainState state, co_await node_.libvirt.domain_state(uuid));
    if (!state.active()) co_return true;
    // It may run for a moment only, as after `virsh suspend` and `resume` while it is being migrated.
    const auto job = co_await node_.libvirt.job(uuid, job_deadline);
    const bool over = job && !job->migration_out;  // not known: the grant's watch asks again
    Json params = Json::object({{"spike", key}, {"abandon", over}});
    const auto back = co_await node_.call(spike.attachment->corm_host, "wire.back", params);
    if (!back && (back.error().code() == Errc::refused || back.error().code() == Errc::not_found)) {
        CO_TRY(co_await rewire(spike, back.error()));
        co_return true;
    }
    if (!back) co_return back.error();
    if (over) spike.granted.clear();
    note(key, "returned", "the guest runs on at the source");
    log::notice("Spike {}: its guest runs on here ({}); frames come back", spike.name, state.text());
    CO_TRY(spike.move(SpikeState::wired));
    CO_TRY(spikes_.save(spike));
    if (!over) {
        grants_given_[key].begun = false;
        watch_grant(key, 0);
    }
    co_return true;
}

// The guest runs here, and its wire is not this host's: its old one was given up when it seemed to be gone. Nobody's:
// a new one is made. Another's: until that host, where the guest does not run, has released it.
Async<void> Handover::rewire(const Spike& spike, const Error& why) {
    Json params = Json::object({{"spike", spike.key}});
    CO_TRY_SET(const Json wire, co_await node_.call(spike.attachment->corm_host, "wire.owner", params));
    const std::string owner = wire.get("owner").as_string();
    if (!owner.empty() && owner != node_.config.host)
        co_return Error(Errc::busy, fmt::format("its guest runs here, but {}", why.message()));
    note(spike.key, "rewired", why.message());
    log::notice("Spike {}: its guest runs here, but {}: a new wire is made", spike.name, why.message());
    Spike again = spike;
    again.granted.clear();
    CO_TRY(co_await spikes_.remake(again));
    if (on_active) on_active(spike.uuid);
    co_return Status();
}

// The migration is over and the guest stayed: the next one may go to another host, and nobody needs the standby half.
// Not where another was granted meanwhile.
asio::awaitable<void> Handover::failed(std::string key, int64_t granted) {
    const auto guard = co_await spikes_.lock(key);
    const Spike* known = spikes_.table().find(key);
    if (known == nullptr || known->state != SpikeState::wired || known->granted.empty()) co_return;
    if (const auto given = grants_given_.find(key); given != grants_given_.end() && given->second.at_ns != granted)
        co_return;
    Spike spike = *known;
    spike.granted.clear();
    if (const Status saved = spikes_.save(spike); !saved) log::error("{}", saved.error().message());
    Json params = Json::object({{"spike", key}, {"abandon", true}});
    const auto told = co_await node_.call(spike.attachment->corm_host, "wire.back", params);
    if (!told) log::info("Spike {}: its standby wire stays: {}", spike.name, told.error().message());
}

void Handover::arrived(const Spike& spike, const std::string& sign) {
    node_.spawn(activate(spike.key, spike.attachment->half.epoch, sign), "activating a wire");
}

asio::awaitable<void> Handover::activate(std::string key, uint64_t epoch, std::string sign) {
    if (!activating_.insert({key, epoch}).second) co_return;  // under way
    co_await repeat(key, "activate", [&] { return try_activate(key, epoch, sign); });
    activating_.erase({key, epoch});
}

// True: nothing is left to be done.
Async<bool> Handover::try_activate(const std::string& key, uint64_t epoch, const std::string& sign) {
    const auto guard = co_await spikes_.lock(key);
    const Spike* known = spikes_.table().find(key);
    if (known == nullptr || known->state != SpikeState::incoming || !known->attachment) co_return true;
    if (known->attachment->half.epoch != epoch) co_return true;  // another migration's by now
    Spike spike = *known;
    record(spike, spike.came_from, node_.config.host);
    note(key, "activating", sign);
    Json params = Json::object({{"spike", key}, {"epoch", epoch}});
    const auto active = co_await node_.call(spike.attachment->corm_host, "wire.activate", params);
    if (!active && (active.error().code() == Errc::refused || active.error().code() == Errc::not_found)) {
        note(key, "refused", active.error().message());
        const auto state = co_await node_.libvirt.domain_state(spike.uuid, job_deadline);
        if (state && state->state != VIR_DOMAIN_RUNNING) {  // the next sign comes when it runs
            log::error("Spike {}: epoch {} is not ours: {}", spike.name, epoch, active.error().message());
            co_return true;
        }
        CO_TRY(co_await rewire(spike, active.error()));
        co_return true;
    }
    if (!active) co_return active.error();
    CO_TRY(owned(std::move(spike), sign));
    co_return true;
}

// A guest that stays paused gives no sign: the source's end of the wire says it.
Async<bool> Handover::try_settle(const std::string& key, uint64_t epoch) {
    const auto guard = co_await spikes_.lock(key);
    const Spike* known = spikes_.table().find(key);
    if (known == nullptr || known->state != SpikeState::incoming || known->attachment->half.epoch != epoch)
        co_return true;
    Json params = Json::object({{"spike", key}});
    CO_TRY_SET(const Json wire, co_await node_.call(known->attachment->corm_host, "wire.owner", params));
    if (wire.get("owner").as_string() != node_.config.host || wire.get("epoch").as_int() != static_cast<int64_t>(epoch))
        co_return false;
    CO_TRY(owned(*spikes_.table().find(key), "the source has closed its end"));
    co_return true;
}

Status Handover::owned(Spike spike, const std::string& sign) {
    const uint64_t epoch = spike.attachment->half.epoch;
    TRY(spike.move(SpikeState::wired));
    TRY(spikes_.save(spike));
    note(spike.key, "active", fmt::format("epoch {} is active", epoch));
    log::info("Spike {}: active on this host, epoch {} ({})", spike.name, epoch, sign);
    node_.spawn(restore_queue(spike.key), "restoring a tap's queue");
    node_.spawn(tell_home(spike), "telling a Spike's home");
    if (on_active) on_active(spike.uuid);
    return {};
}

asio::awaitable<void> Handover::settle(std::string key, uint64_t epoch) {
    co_await node_.sleep(longest_retry);  // most guests run by then, and have said so
    co_await repeat(key, "ask who has it", [&] { return try_settle(key, epoch); });
}

// A shorter queue throws away what is in it: QEMU gets the time to read first.
asio::awaitable<void> Handover::restore_queue(std::string key) {
    co_await node_.sleep(queue_drain);
    const auto guard = co_await spikes_.lock(key);
    const Spike* spike = spikes_.table().find(key);
    if (spike == nullptr || spike->state != SpikeState::wired) co_return;
    if (const Status done = node_.engine.realise(wiring::plan_spike(node_.site(), *spike)); !done)
        log::warning("Spike {}: {}", spike->name, done.error().message());
}

void Handover::resync() {
    for (const auto& key : spikes_.table().keys()) {
        const Spike* spike = spikes_.table().find(key);
        if (!spike->granted.empty() && spike->state == SpikeState::wired) watch_grant(key, 0);
        if (spike->state == SpikeState::leaving || spike->state == SpikeState::incoming)
            node_.spawn(look_at(key), "looking at a migrating guest");
    }
}

void Handover::events_lost() {
    for (auto& [key, given] : grants_given_) given.begun = false;
}

asio::awaitable<void> Handover::look_at(std::string key) {
    const Spike* known = spikes_.table().find(key);
    if (known == nullptr || !known->is_guest()) co_return;
    const Spike spike = *known;
    const auto state = co_await node_.libvirt.domain_state(spike.uuid);
    if (state && state->active() && spike.state == SpikeState::incoming)
        node_.spawn(settle(key, spike.attachment->half.epoch), "asking who has a Spike");
    if (!state || state->state != VIR_DOMAIN_RUNNING) co_return;
    if (spike.state == SpikeState::leaving) co_await come_back(key, spike.uuid);
    if (spike.state == SpikeState::incoming) arrived(spike, "libvirt says that the guest runs");
}

void Handover::ended(const Spike& spike) {
    if (!spike.granted.empty()) note(spike.key, "gone", "released at the source");
    if (const auto it = grants_given_.find(spike.key); it != grants_given_.end() && !it->second.watched)
        grants_given_.erase(it);
}

// A hint to the home, and no more: it may be lost.
asio::awaitable<void> Handover::tell_home(Spike spike) {
    if (spike.home == node_.config.host) co_return;
    Json params = Json::object({{"name", spike.name}, {"epoch", spike.attachment->half.epoch}});
    const auto told = co_await node_.call(spike.home, "spike.moved", params);
    if (!told) log::info("Spike {}: its home was not told: {}", spike.name, told.error().message());
}

}  // namespace banana::controller
