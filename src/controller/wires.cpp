#include "controller/wires.h"

#include <fmt/core.h>

#include <algorithm>

#include "base/clock.h"
#include "model/names.h"
#include "netlink/link.h"
#include "wiring/headroom.h"

namespace banana::controller {

using model::Format;
using model::Half;
using model::Phase;
using model::Wire;

namespace {

constexpr size_t spike_key_max = 160;
constexpr const char *epoch_kind = "epoch", *epoch_key = "wires";
constexpr milliseconds drain_time{2000};  // a retired half's last frames have long arrived
constexpr int drain_rounds_max = 30;

// A wire takes a Corm port and a wire device, or a native Spike's device; a third port while it is handed over. The
// quarter that is left is for this host's Spikes on other hosts' Corms, two ports each.
constexpr uint32_t ports_per_wire = 3;
static_assert(max_wires_limit * ports_per_wire <= xconnect::default_capacity / 4 * 3);

}  // namespace

Wires::Wires(Node& node, Corms& corms, migration::Grants& grants)
    : node_(node), corms_(corms), grants_(grants), table_(node.store, "wire") {}

Status Wires::load() {
    TRY(table_.load([&](const Error& error) {
        node_.records_ignored = true;
        log::error("ignored record: {}", error.message());
    }));
    TRY_SET(const auto floor, node_.store.get(epoch_kind, epoch_key));
    if (floor) last_epoch_ = static_cast<uint64_t>(floor->document.get("last").as_int());
    table_.each([&](const Wire& wire) { index(wire); });
    for (const auto& key : table_.keys())  // an earlier version kept them
        if (const Wire wire = *table_.find(key); wire.phase == Phase::idle) TRY(forget(wire));
    return {};
}

wiring::Plan Wires::plan() const {
    wiring::Plan plan;
    table_.each([&](const Wire& wire) {
        const auto* corm = corms_.by_name(wire.corm);
        if (corm != nullptr && wire.phase != Phase::idle) plan += wiring::plan_wire(node_.site(), *corm, wire);
    });
    return plan;
}

void Wires::index(const Wire& wire) {
    if (wire.phase == Phase::idle) return;
    seats_[{wire.corm, wire.mac}] = {wire.spike, wire.name};
    on_corm_[wire.corm].insert(wire.spike);
    ports_.insert(wire.port);
    by_name_[wire.name] = wire.spike;
    if (wire.active) ++owned_[wire.owner()];
    for (const auto& half : {wire.active, wire.standby})
        if (half && half->format != Format::native) vnis_.insert(model::vni_of(half->connector));
}

void Wires::unindex(const Wire& wire) {
    if (wire.phase == Phase::idle) return;
    seats_.erase({wire.corm, wire.mac});
    on_corm_[wire.corm].erase(wire.spike);
    ports_.erase(wire.port);
    by_name_.erase(wire.name);
    if (wire.active && --owned_[wire.owner()] == 0) owned_.erase(wire.owner());
    for (const auto& half : {wire.active, wire.standby})
        if (half && half->format != Format::native) vnis_.erase(model::vni_of(half->connector));
}

Status Wires::save(const Wire& wire) {
    const Wire* before = table_.find(wire.spike);
    const std::optional<Wire> old = before != nullptr ? std::optional<Wire>(*before) : std::nullopt;
    TRY(table_.save(wire.spike, wire));
    if (old) unindex(*old);
    index(wire);
    return {};
}

// A wire that nobody has needs no record, but its epochs are not handed out again, to whomever.
Status Wires::forget(const Wire& wire) {
    if (wire.last_epoch > last_epoch_) {
        TRY(node_.store.put(epoch_kind, epoch_key, Json::object({{"last", wire.last_epoch}})));
        last_epoch_ = wire.last_epoch;
    }
    const Wire* known = table_.find(wire.spike);
    if (known == nullptr) return {};
    const Wire was = *known;
    TRY(table_.erase(wire.spike));
    unindex(was);
    return {};
}

const Wire* Wires::by_name(const std::string& name) const {
    const auto it = by_name_.find(name);
    return it == by_name_.end() ? nullptr : table_.find(it->second);
}

// Names are made by homes, each for itself: a guest that moved away may meet a younger one of its old name here.
std::string Wires::free_name(const std::string& name, const std::string& spike) const {
    return model::unique_spike_name(name, spike, [&](const std::string& tried) {
        const auto it = by_name_.find(tried);
        return it != by_name_.end() && it->second != spike;
    });
}

void Wires::drop_stale_devices() {
    for (const auto& key : table_.keys()) {
        Wire wire = *table_.find(key);
        bool stale = false;
        for (auto* half : {&wire.active, &wire.standby}) {
            if (!*half || (*half)->device.empty()) continue;
            const auto link = netlink::link(node_.engine.socket(), (*half)->device);
            if (link && (key.find("/dev/") != std::string::npos || is_device_of(*link, wire.mac))) continue;
            (*half)->device.clear();
            stale = true;
        }
        if (stale)
            if (const Status saved = save(wire); !saved) log::error("{}", saved.error().message());
    }
}

bool Wires::handing_over() const {
    bool found = false;
    table_.each([&](const Wire& wire) { found = found || wire.standby; });
    return found;
}

std::vector<std::string> Wires::names_on(const std::string& corm) const {
    std::vector<std::string> names;
    const auto it = on_corm_.find(corm);
    if (it == on_corm_.end()) return names;
    for (const auto& spike : it->second) names.push_back(table_.find(spike)->name);
    return names;
}

Status Wires::check_home(const std::string& spike, const std::string& host) const {
    if (spike.find("/dev/") == std::string::npos || model::name_home(spike) == host) return {};
    const Wire* known = table_.find(spike);
    if (known != nullptr && known->owner() == host) return {};
    return Error(Errc::refused,
                 fmt::format("Spike {} is of host {}, not of host {}", spike, model::name_home(spike), host));
}

// One host cannot take what all are to share: another has at most three quarters, whatever Spikes it says that it has.
Status Wires::check_room(const std::string& spike, const std::string& host) const {
    if (table_.find(spike) != nullptr) return {};
    const int64_t most = node_.config.limits.max_wires, share = std::max<int64_t>(1, most * 3 / 4);
    if (static_cast<int64_t>(ports_.size()) >= most)
        return Error(Errc::refused, fmt::format("host {} carries {} wires, its limit (limits.max_wires)",
                                                node_.config.host, ports_.size()));
    const auto owned = owned_.find(host);
    if (host == node_.config.host || owned == owned_.end() || static_cast<int64_t>(owned->second) < share) return {};
    return Error(Errc::refused, fmt::format("host {} carries {} wires of host {}, the most that one other host may "
                                            "have (three quarters of limits.max_wires)",
                                            node_.config.host, owned->second, host));
}

Status Wires::check_open(const std::string& spike, const Mac& mac, const model::Corm& corm,
                         const std::string& host) const {
    const std::string full = corm.full_name();
    if (!corm.allows_host(host))
        return Error(Errc::refused,
                     fmt::format("Corm {} does not allow host {}; it allows {}", full, host, joined(corm.hosts)));
    if (spike.empty() || spike.size() > spike_key_max || spike != printable(spike, spike_key_max))
        return Error(Errc::invalid, fmt::format("'{}' cannot be a Spike's key", printable(spike, 80)));
    if (mac.is_multicast()) return Error(Errc::invalid, fmt::format("MAC {} is a multicast address", mac.text()));
    const auto seat = seats_.find({full, mac});
    if (seat != seats_.end() && seat->second.spike != spike)
        return Error(Errc::refused, fmt::format("MAC {} is on Corm {} already: it is Spike {}'s", mac.text(), full,
                                                seat->second.name));
    const auto wired = on_corm_.find(full);
    const size_t used = wired == on_corm_.end() ? 0 : wired->second.size();
    const bool has_port = wired != on_corm_.end() && wired->second.contains(spike);
    if (!has_port && used + wiring::reserved_ports(corm) >= wiring::bridge_ports_max)
        return Error(Errc::refused,
                     fmt::format("Corm {} is full: its bridge {} has {} ports, the most that a Linux bridge "
                                 "can have",
                                 full, corm.bridge(), wiring::bridge_ports_max));
    return {};
}

uint32_t Wires::free_port() const {
    uint32_t id = 0;
    do id = random_u32();
    while (ports_.contains(id));
    return id;
}

Result<uint32_t> Wires::free_connector() {
    // The kernel may know VNIs that are not ours; the peer refuses one that is taken there, and asks again.
    for (;;) {
        const uint32_t connector = random_u32();
        const uint32_t vni = model::vni_of(connector);
        if (vni != 0 && !vnis_.contains(vni) && !node_.engine.has_vni(vni) && node_.tunnel.wanted(connector) == nullptr)
            return connector;
    }
}

Result<Half> Wires::make_half(const std::string& host, const model::Corm& corm, const std::string& preference) {
    TRY_SET(const model::Host spike_host, node_.host(host));
    TRY_SET(
        const auto choice,
        model::choose_format(preference, corm.formats, spike_host, node_.self()).context("Corm " + corm.full_name()));
    Half half;
    half.host = host;
    half.format = choice.format;
    half.why = choice.why;
    if (choice.format == Format::native) return half;
    if (spike_host.underlay.family != node_.config.underlay.family)
        return Error(Errc::unsupported,
                     fmt::format("underlay addresses {} ({}) and {} ({}) are of different families",
                                 spike_host.underlay.text(), host, node_.config.underlay.text(), node_.config.host));
    half.underlay = spike_host.underlay;
    TRY_SET(half.connector, free_connector());
    return half;
}

Json Wires::attachment(const model::Corm& corm, const Wire& wire, const Half& half) const {
    model::Attachment a;
    a.corm = corm.full_name();
    a.port = wire.port;
    a.half = half;
    a.corm_host = node_.config.host;
    a.corm_underlay = node_.config.underlay;
    a.mtu = corm.mtu;
    return a.json();
}

// Stores, then builds. What cannot be built is stored as given up again, so that records and kernel agree.
Async<Json> Wires::commit(model::Corm corm, Wire wire, std::string host, std::vector<Half> retired) {
    CO_TRY(save(wire));
    const Half half = *wire.half_of(host);
    const Status built = co_await node_.plans.realise(wiring::plan_wire(node_.site(), corm, wire, retired));
    if (!built) {
        (void)close_half(wire.spike, host, half.epoch, false);
        retire(retired);
        co_return built.error().context("wire Spike " + wire.name + " to Corm " + corm.full_name());
    }
    retire(retired);
    Json answer = attachment(corm, wire, half);
    answer.set("name", wire.name);
    co_return answer;
}

Async<void> Wires::evict(std::string spike) {
    const auto guard = co_await node_.locks.acquire("wire:" + spike);
    while (const Wire* wire = table_.find(spike)) {
        if (!wire->active) break;
        const auto half = wire->standby ? *wire->standby : *wire->active;
        CO_TRY(close_half(spike, half.host, half.epoch, false));
    }
    co_return Status();
}

void Wires::verify_with(const std::string& host) {
    if (asking_.insert(host).second) node_.spawn(verify(host), "asking for wires' other sides");
}

// The Spike's host may have lost its side: with its records, or by a crash between our answer and its record.
asio::awaitable<void> Wires::verify(std::string host) {
    std::vector<std::pair<std::string, uint64_t>> halves;
    table_.each([&](const Wire& wire) {
        for (const auto& half : {wire.active, wire.standby})
            if (half && half->host == host) halves.emplace_back(wire.spike, half->epoch);
    });
    for (const auto& [spike, epoch] : halves) {
        Json question = Json::object({{"spike", spike}, {"epoch", epoch}});
        const auto answer = co_await node_.call(host, "spike.holds", question);
        if (!answer && (answer.error().code() == Errc::unreachable || answer.error().code() == Errc::unsupported))
            break;  // gone again, or of an earlier version
        if (!answer || answer->get("holds").as_bool()) continue;
        const auto guard = co_await node_.locks.acquire("wire:" + spike);
        const Wire* wire = table_.find(spike);
        if (wire == nullptr) continue;
        log::notice("Spike {}: host {} knows nothing of its wire (epoch {}), which is closed", wire->name, host, epoch);
        if (const Status closed = close_half(spike, host, epoch, false); !closed)
            log::error("{}", closed.error().message());
    }
    asking_.erase(host);
}

Status Wires::close_half(const std::string& spike, const std::string& host, uint64_t epoch, bool handed_over) {
    const Wire* known = table_.find(spike);
    if (known == nullptr) return {};
    Wire wire = *known;
    const auto retired = wire.close(host, epoch, handed_over);
    if (retired.empty()) return {};  // closed already
    if (wire.phase == Phase::idle) {
        TRY(forget(wire));
        wiring::Plan gone = wiring::plan_wire_gone(wire);
        gone += wiring::plan_wire_entries(wire, retired);
        for (const auto& half : retired) gone += wiring::plan_half_gone(half);
        return node_.engine.realise(gone).context("close the wire of Spike " + wire.name);
    }
    TRY(save(wire));
    const Status shown = node_.engine.realise(wiring::plan_wire_entries(wire, retired));
    retire(retired);  // also then: nobody will know of them any more
    return shown;
}

void Wires::retire(const std::vector<Half>& halves) {
    if (!halves.empty()) node_.spawn(drain(halves), "removing a retired wire");
}

asio::awaitable<void> Wires::drain(std::vector<Half> halves) {
    // A deletion holds the RTNL lock, and this thread, for longer than a hand-over should wait.
    for (int round = 0; round < drain_rounds_max; ++round) {
        co_await node_.sleep(drain_time);
        if (!handing_over()) break;
    }
    wiring::Plan gone;
    for (const auto& half : halves) gone += wiring::plan_half_gone(half);
    if (const Status removed = node_.engine.realise(gone); !removed) log::error("{}", removed.error().message());
}

}  // namespace banana::controller
