#include "controller/handover.h"

#include <fmt/core.h>
#include <libvirt/libvirt.h>

#include "base/clock.h"
#include "qmp/commands.h"

namespace banana::controller {

using model::Spike;
using model::SpikeState;

namespace {

constexpr int64_t grant_life_s = 120;  // from the hook that asked to its use: seconds; the rest is clock skew
constexpr milliseconds job_deadline{2000};
constexpr milliseconds first_retry{50}, longest_retry{2000};
constexpr milliseconds queue_drain{2000};
constexpr size_t moments_kept = 32, records_kept = 256;

}  // namespace

Handover::Handover(Node& node, Spikes& spikes, migration::Grants& grants)
    : node_(node), spikes_(spikes), grants_(grants) {}

void Handover::serve() {
    node_.dispatcher.on("spike.grant",
                        [this](rpc::Context& c, Json p) -> Async<Json> { co_return co_await grant(c, std::move(p)); });
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
    if (records_.size() >= records_kept && !records_.contains(spike.key)) records_.erase(records_.begin());
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
    if (known == nullptr || !known->attachment || known->state != SpikeState::wired)
        co_return Error(Errc::refused,
                        fmt::format("host {} does not have Spike {}", node_.config.host, printable(key, 80)));
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
    CO_TRY(co_await check_only_destination(spike, destination));
    migration::Grant grant;
    grant.spike = key;
    grant.name = spike.name;
    grant.owner = node_.config.host;
    grant.owner_epoch = spike.attachment->half.epoch;
    grant.destination = destination;
    grant.corm = spike.corm;
    grant.nonce = random_hex(16);
    grant.expires = wall_ns() / 1'000'000'000 + grant_life_s;
    CO_TRY_SET(const Json envelope, grants_.issue(grant));
    spike.granted = destination;
    CO_TRY(spikes_.save(spike));
    record(spike, node_.config.host, destination);
    note(key, "granted", "granted to host " + destination);
    log::info("Spike {}: granted to host {} (epoch {})", spike.name, destination, grant.owner_epoch);
    co_return envelope;
}

// One migration, one destination: who was granted the Spike before, and has a standby wire, is where it is going.
Async<void> Handover::check_only_destination(const Spike& spike, const std::string& destination) {
    if (spike.granted.empty() || spike.granted == destination) co_return Status();
    Json params = Json::object({{"spike", spike.key}});
    CO_TRY_SET(const Json wire, co_await node_.call(spike.attachment->corm_host, "wire.owner", params));
    if (wire.get("standby").as_string() != spike.granted) co_return Status();
    log::warning("refused: host {} asks for Spike {}, which is being migrated to host {}", destination, spike.name,
                 spike.granted);
    co_return Error(Errc::refused, fmt::format("Spike {} is being migrated to host {}, not to host {}", spike.name,
                                               spike.granted, destination));
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
    const bool arrived = name == "RESUME" || status == MigrationStatus::completed;
    for (const auto& spike : spikes_.of_domain(domain.uuid)) {
        const std::string what = name == "MIGRATION" ? name + " " + qmp::migration_status_name(status) : name;
        const bool outgoing = spike.state == SpikeState::wired && !spike.granted.empty();
        if (outgoing && stops) {
            note(spike.key, "stopping", what);
            node_.spawn(leave(spike.key), "flipping a wire");
        } else if ((spike.state == SpikeState::leaving || outgoing) && runs_here) {
            // Also while a flip is under way: the Spike's lock keeps the two in order.
            note(spike.key, "returning", what);
            node_.spawn(come_back(spike.key, domain.uuid), "flipping a wire back");
            if (name != "RESUME") node_.spawn(failed(spike.key), "ending a migration");
        } else if (spike.state == SpikeState::incoming && arrived) {
            node_.spawn(activate(spike.key, what), "activating a wire");
        }
    }
}

void Handover::first_frame(const xconnect::FirstFrame& report) {
    std::string found;
    spikes_.table().each([&](const Spike& spike) {
        if (spike.state != SpikeState::incoming || spike.device.empty() || !spike.attachment ||
            spike.attachment->half.epoch != report.generation)
            return;
        const auto index = node_.engine.ifindex(spike.device);
        if (index && *index == report.port.ifindex) found = spike.key;
    });
    if (!found.empty()) node_.spawn(activate(found, "first frame from the guest"), "activating a wire");
}

asio::awaitable<void> Handover::leave(std::string key) {
    const auto guard = co_await spikes_.lock(key);
    const Spike* known = spikes_.table().find(key);
    if (known == nullptr || known->state != SpikeState::wired || !known->attachment) co_return;
    Spike spike = *known;
    Json params = Json::object({{"spike", key}, {"epoch", spike.attachment->half.epoch}});
    const auto flipped = co_await node_.call(spike.attachment->corm_host, "wire.flip", params);
    if (!flipped) {
        log::warning("Spike {}: not handed over: {}", spike.name, flipped.error().message());
        note(key, "failed", "flip: " + flipped.error().message());
        if (flipped.error().code() == Errc::refused) {
            spike.granted.clear();
            (void)spikes_.save(spike);
            co_return;
        }
        // It may have been carried out all the same: if the guest runs on here, it is flipped back.
    }
    note(key, "flipped", "frames to the guest go to host " + spike.granted);
    if (spike.move(SpikeState::leaving)) (void)spikes_.save(spike);
}

// The lock is taken for each attempt, so that the guest's end or next start need not wait for an unreachable host.
asio::awaitable<void> Handover::come_back(std::string key, std::string uuid) {
    for (milliseconds wait = first_retry;; wait = std::min(wait * 2, longest_retry)) {
        const auto done = co_await try_come_back(key, uuid);
        if (done && *done) co_return;
        if (!done) log::warning("Spike {}: flip back: {}; trying again", key, done.error().message());
        co_await node_.sleep(wait);
    }
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
    Json params = Json::object({{"spike", key}});
    const auto back = co_await node_.call(spike.attachment->corm_host, "wire.back", params);
    if (!back && back.error().code() != Errc::refused) co_return back.error();
    spike.granted.clear();
    if (back) {
        note(key, "returned", "the guest runs on at the source");
        log::notice("Spike {}: its guest runs on here ({}); frames come back", spike.name, state.text());
    } else {
        note(key, "lost", back.error().message());
        log::error("Spike {}: its guest runs on here ({}), but {}", spike.name, state.text(), back.error().message());
    }
    CO_TRY(spike.move(SpikeState::wired));
    CO_TRY(spikes_.save(spike));
    co_return true;
}

// The migration is over and the guest stayed: the next one may go to another host.
asio::awaitable<void> Handover::failed(std::string key) {
    const auto guard = co_await spikes_.lock(key);
    const Spike* known = spikes_.table().find(key);
    if (known == nullptr || known->state != SpikeState::wired) co_return;
    Spike spike = *known;
    spike.granted.clear();
    (void)spikes_.save(spike);
}

asio::awaitable<void> Handover::activate(std::string key, std::string sign) {
    for (milliseconds wait = first_retry;; wait = std::min(wait * 2, longest_retry)) {
        const auto done = co_await try_activate(key, sign);
        if (done && *done) co_return;
        if (!done) log::warning("Spike {}: activate: {}; trying again", key, done.error().message());
        co_await node_.sleep(wait);
    }
}

// True: nothing is left to be done.
Async<bool> Handover::try_activate(const std::string& key, const std::string& sign) {
    const auto guard = co_await spikes_.lock(key);
    const Spike* known = spikes_.table().find(key);
    if (known == nullptr || known->state != SpikeState::incoming || !known->attachment) co_return true;
    Spike spike = *known;
    const uint64_t epoch = spike.attachment->half.epoch;
    record(spike, "", node_.config.host);
    note(key, "activating", sign);
    Json params = Json::object({{"spike", key}, {"epoch", epoch}});
    const auto active = co_await node_.call(spike.attachment->corm_host, "wire.activate", params);
    if (!active && (active.error().code() == Errc::refused || active.error().code() == Errc::not_found)) {
        note(key, "refused", active.error().message());
        log::error("Spike {}: epoch {} is not ours: {}", spike.name, epoch, active.error().message());
        co_return true;
    }
    if (!active) co_return active.error();
    CO_TRY(spike.move(SpikeState::wired));
    CO_TRY(spikes_.save(spike));
    note(key, "active", fmt::format("epoch {} is active", epoch));
    log::info("Spike {}: active on this host, epoch {} ({})", spike.name, epoch, sign);
    node_.spawn(restore_queue(key), "restoring a tap's queue");
    node_.spawn(tell_home(spike), "telling a Spike's home");
    if (on_active) on_active(spike.uuid);
    co_return true;
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
        if (spike->state == SpikeState::leaving || spike->state == SpikeState::incoming)
            node_.spawn(look_at(key), "looking at a migrating guest");
    }
}

asio::awaitable<void> Handover::look_at(std::string key) {
    const Spike* known = spikes_.table().find(key);
    if (known == nullptr || !known->is_guest()) co_return;
    const Spike spike = *known;
    const auto state = co_await node_.libvirt.domain_state(spike.uuid);
    if (!state || state->state != VIR_DOMAIN_RUNNING) co_return;
    if (spike.state == SpikeState::leaving) co_await come_back(key, spike.uuid);
    if (spike.state == SpikeState::incoming) co_await activate(key, "libvirt says that the guest runs");
}

void Handover::ended(const Spike& spike) {
    if (!spike.granted.empty()) note(spike.key, "gone", "released at the source");
}

// A hint to the home, and no more: it may be lost.
asio::awaitable<void> Handover::tell_home(Spike spike) {
    if (spike.home == node_.config.host) co_return;
    Json params = Json::object({{"name", spike.name}, {"epoch", spike.attachment->half.epoch}});
    const auto told = co_await node_.call(spike.home, "spike.moved", params);
    if (!told) log::info("Spike {}: its home was not told: {}", spike.name, told.error().message());
}

}  // namespace banana::controller
