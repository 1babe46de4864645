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

void Wires::serve() {
    using Handler = Async<Json> (Wires::*)(const rpc::Context&, Json);
    auto& d = node_.dispatcher;
    const auto on = [&](const char* method, Handler handler) {
        d.on(method, [this, handler](rpc::Context& c, Json p) -> Async<Json> {
            co_return co_await (this->*handler)(c, std::move(p));
        });
    };
    const auto on_noted = [&](const char* what, Handler handler) {
        d.on(std::string("wire.") + what, [this, what, handler](rpc::Context& c, Json p) -> Async<Json> {
            Result<Json> reply = co_await (this->*handler)(c, p);
            if (!reply) note_refusal(c, p, what, reply.error());
            co_return reply;
        });
    };
    on_noted("open", &Wires::open);
    on_noted("prepare", &Wires::prepare);
    on_noted("attach", &Wires::attach);
    on_noted("close", &Wires::close);
    on("wire.check", &Wires::check);
    on("wire.owner", &Wires::owner);
    on("wire.flip", &Wires::flip);
    on("wire.back", &Wires::flip_back);
    on("wire.activate", &Wires::activate);
}

// Whoever asks for what is not his own stands in the log, with the Spike's name and his.
void Wires::note_refusal(const rpc::Context& context, const Json& params, const char* what, const Error& why) const {
    if (why.code() != Errc::refused) return;
    std::string key = params.get("spike").as_string();
    if (key.empty()) key = params.get("grant").get("grant").get("spike").as_string();
    const Wire* wire = table_.find(key);
    log::warning("refused: {} of Spike {} by host {}: {}", what, wire != nullptr ? wire->name : printable(key, 80),
                 caller(node_, context), why.message());
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
    for (const auto& half : {wire.active, wire.standby})
        if (half && half->format != Format::native) vnis_.insert(model::vni_of(half->connector));
}

void Wires::unindex(const Wire& wire) {
    if (wire.phase == Phase::idle) return;
    seats_.erase({wire.corm, wire.mac});
    on_corm_[wire.corm].erase(wire.spike);
    ports_.erase(wire.port);
    by_name_.erase(wire.name);
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
    const auto it = by_name_.find(name);
    return it == by_name_.end() || it->second == spike ? name : name + "~" + spike.substr(0, 8);
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

Result<Wires::Asked> Wires::asked(const rpc::Context& context, const Json& params, bool with_epoch) const {
    Asked asked;
    asked.host = caller(node_, context);
    TRY_SET(asked.spike, params.string("spike"));
    if (with_epoch) {
        TRY_SET(const int64_t epoch, params.integer("epoch", 0));
        asked.epoch = static_cast<uint64_t>(epoch);
    }
    return asked;
}

Status Wires::check_home(const std::string& spike, const std::string& host) const {
    if (spike.find("/dev/") == std::string::npos || model::name_home(spike) == host) return {};
    const Wire* known = table_.find(spike);
    if (known != nullptr && known->owner() == host) return {};
    return Error(Errc::refused,
                 fmt::format("Spike {} is of host {}, not of host {}", spike, model::name_home(spike), host));
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
Result<Json> Wires::commit(const model::Corm& corm, Wire wire, const std::string& host,
                           const std::vector<Half>& retired) {
    TRY(save(wire));
    const Half half = *wire.half_of(host);
    if (const Status built = node_.engine.realise(wiring::plan_wire(node_.site(), corm, wire, retired)); !built) {
        (void)close_half(wire.spike, host, half.epoch, false);
        retire(retired);
        return built.error().context("wire Spike " + wire.name + " to Corm " + corm.full_name());
    }
    retire(retired);
    Json answer = attachment(corm, wire, half);
    answer.set("name", wire.name);
    return answer;
}

Async<Json> Wires::open(const rpc::Context& context, Json params) {
    CO_TRY_SET(const Asked who, asked(context, params, false));
    CO_TRY_SET(const std::string name, params.string("name"));
    CO_TRY_SET(const Mac mac, Mac::parse(params.get("mac").as_string()));
    CO_TRY_SET(const std::string corm_name, params.string("corm"));
    CO_TRY_SET(const std::string preference, model::parse_preference(params.get("preference").as_string()));
    const auto guard = co_await node_.locks.acquire("wire:" + who.spike);
    CO_TRY_SET(const model::Corm corm, corms_.local(corm_name));
    CO_TRY(check_home(who.spike, who.host));
    CO_TRY(check_open(who.spike, mac, corm, who.host));
    if (table_.find(who.spike) == nullptr && static_cast<int64_t>(ports_.size()) >= node_.config.limits.max_wires)
        co_return Error(Errc::refused, fmt::format("host {} carries {} wires, its limit (limits.max_wires)",
                                                   node_.config.host, ports_.size()));
    const Wire* known = table_.find(who.spike);
    if (known != nullptr && known->phase != Phase::idle && known->corm != corm_name && known->owner() == who.host) {
        CO_TRY(close_half(who.spike, who.host, known->active->epoch, false));
        known = table_.find(who.spike);
    }
    Wire wire = known != nullptr ? *known : Wire{};
    wire.last_epoch = std::max(wire.last_epoch, last_epoch_);
    std::vector<Half> retired;
    if (wire.active) retired.push_back(*wire.active);
    if (wire.phase == Phase::idle) wire.port = free_port();
    wire.spike = who.spike;
    wire.name = free_name(printable(name), who.spike);
    wire.mac = mac;
    wire.allow_any_mac = params.get("allow_any_mac").as_bool();
    wire.corm = corm_name;
    CO_TRY_SET(Half half, make_half(who.host, corm, preference));
    half.device = half.format == Format::native ? params.get("device").as_string() : "";
    CO_TRY(wire.open(std::move(half)));
    co_return commit(corm, std::move(wire), who.host, retired);
}

Async<Json> Wires::prepare(const rpc::Context& context, Json params) {
    CO_TRY_SET(const Json envelope, params.object_at("grant"));
    CO_TRY_SET(const migration::Grant grant, grants_.verify(envelope));
    const std::string host = caller(node_, context);
    if (grant.destination != host)
        co_return Error(Errc::refused, fmt::format("the grant for Spike {} is host {}'s, not host {}'s", grant.name,
                                                   grant.destination, host));
    CO_TRY_SET(const Mac mac, Mac::parse(params.get("mac").as_string()));
    CO_TRY_SET(const std::string preference, model::parse_preference(params.get("preference").as_string()));
    const auto guard = co_await node_.locks.acquire("wire:" + grant.spike);
    CO_TRY_SET(const model::Corm corm, corms_.local(grant.corm));
    const Wire* known = table_.find(grant.spike);
    if (known == nullptr || known->corm != grant.corm || !known->active || known->active->host != grant.owner ||
        known->active->epoch != grant.owner_epoch)
        co_return Error(
            Errc::refused,
            fmt::format("host {} granted Spike {} (epoch {}), but its owner is {} (epoch {})", grant.owner, grant.name,
                        grant.owner_epoch, known != nullptr && known->active ? known->owner() : "nobody",
                        known != nullptr && known->active ? known->active->epoch : 0));
    if (known->standby && known->standby->host != host && grant.expires <= known->granted_until)
        co_return Error(Errc::refused, fmt::format("Spike {}: host {} has a later grant than host {}", known->name,
                                                   known->standby->host, host));
    CO_TRY(check_open(grant.spike, mac, corm, host));
    CO_TRY(nonces_.use(grant, wall_ns() / 1'000'000'000));
    Wire wire = *known;
    std::vector<Half> retired;
    if (wire.standby) retired.push_back(*wire.standby);
    CO_TRY_SET(Half half, make_half(host, corm, preference));
    CO_TRY(wire.prepare(std::move(half)));
    wire.granted_until = grant.expires;
    co_return commit(corm, std::move(wire), host, retired);
}

Async<Json> Wires::attach(const rpc::Context& context, Json params) {
    CO_TRY_SET(const Asked who, asked(context, params));
    CO_TRY_SET(const std::string device, params.string("device"));
    if (who.host != node_.config.host) co_return Error(Errc::refused, "wire.attach is for this host's own Spikes");
    const auto guard = co_await node_.locks.acquire("wire:" + who.spike);
    const Wire* known = table_.find(who.spike);
    if (known == nullptr) co_return Error(Errc::not_found, "no such wire: " + who.spike);
    Wire wire = *known;
    for (auto* half : {&wire.active, &wire.standby})
        if (*half && (*half)->host == who.host && (*half)->epoch == who.epoch) (*half)->device = device;
    CO_TRY_SET(const model::Corm corm, corms_.local(wire.corm));
    CO_TRY(save(wire));
    CO_TRY(node_.engine.realise(wiring::plan_wire(node_.site(), corm, wire)));
    co_return Json::object();
}

Async<Json> Wires::change(const rpc::Context& context, Json params, const char* what, bool with_epoch,
                          std::function<Retired(Wire&, const Asked&)> step) {
    CO_TRY_SET(const Asked who, asked(context, params, with_epoch));
    const auto guard = co_await node_.locks.acquire("wire:" + who.spike);
    const Wire* known = table_.find(who.spike);
    if (known == nullptr)
        co_return Error(Errc::not_found,
                        fmt::format("{}: host {} has no wire of Spike {}", what, node_.config.host, who.spike));
    Wire wire = *known;
    auto retired = step(wire, who);
    if (!retired) {
        note_refusal(context, params, what, retired.error());
        co_return retired.error();
    }
    CO_TRY(save(wire));
    CO_TRY(node_.engine.realise(wiring::plan_wire_entries(wire, *retired)).context(what));
    retire(*retired);
    co_return Json::object();
}

Async<Json> Wires::check(const rpc::Context& context, Json params) {
    CO_TRY_SET(const std::string spike, params.string("spike"));
    CO_TRY_SET(const std::string corm_name, params.string("corm"));
    CO_TRY_SET(const Mac mac, Mac::parse(params.get("mac").as_string()));
    CO_TRY_SET(const model::Corm corm, corms_.local(corm_name));
    CO_TRY(check_home(spike, caller(node_, context)));
    CO_TRY(check_open(spike, mac, corm, caller(node_, context)));
    CO_TRY_SET(const std::string preference, model::parse_preference(params.get("preference").as_string()));
    CO_TRY(make_half(caller(node_, context), corm, preference));
    co_return Json::object();
}

Async<Json> Wires::owner(const rpc::Context&, Json params) {
    CO_TRY_SET(const std::string spike, params.string("spike"));
    const Wire* wire = table_.find(spike);
    co_return Json::object({{"owner", wire != nullptr ? wire->owner() : ""},
                            {"standby", wire != nullptr && wire->standby ? wire->standby->host : ""},
                            {"epoch", wire != nullptr && wire->active ? wire->active->epoch : uint64_t{0}},
                            {"underlay", wire != nullptr && wire->active ? wire->active->underlay.text() : ""}});
}

Async<Json> Wires::flip(const rpc::Context& context, Json params) {
    co_return co_await change(context, std::move(params), "flip", true, [](Wire& wire, const Asked& asked) -> Retired {
        const Half* own = wire.half_of(asked.host);
        if (own == nullptr || own->epoch != asked.epoch)
            return Error(Errc::refused,
                         fmt::format("Spike {}: host {} has no half of epoch {}", wire.name, asked.host, asked.epoch));
        if (!wire.standby) return Error(Errc::refused, fmt::format("Spike {}: nobody is to take it over", wire.name));
        TRY(wire.flip(wire.standby->epoch));
        return std::vector<Half>{};
    });
}

Async<Json> Wires::flip_back(const rpc::Context& context, Json params) {
    co_return co_await change(context, std::move(params), "flip back", false,
                              [](Wire& wire, const Asked& asked) -> Retired {
                                  TRY(wire.flip_back(asked.host));
                                  return std::vector<Half>{};
                              });
}

// A wire that was not flipped: either its owner's word was lost, or the owner's guest runs on. One that is dead or cut
// off is not waited for: its grant says enough.
Async<void> Wires::let_go(const rpc::Context& context, Json params) {
    const Wire* wire = table_.find(params.get("spike").as_string());
    if (wire == nullptr || wire->phase != Phase::standby || wire->standby->host != caller(node_, context))
        co_return Status();
    const std::string name = wire->name, owner = wire->owner();
    Json question = Json::object({{"spike", wire->spike}, {"epoch", wire->active->epoch}});
    const auto answer = co_await node_.call(owner, "spike.runs", question);
    if (!answer || !answer->get("runs").as_bool()) co_return Status();
    co_return Error(Errc::busy, fmt::format("Spike {}: its guest runs on host {}", name, owner));
}

Async<Json> Wires::activate(const rpc::Context& context, Json params) {
    CO_TRY(co_await let_go(context, params));
    co_return co_await change(
        context, std::move(params), "activate", true, [](Wire& wire, const Asked& asked) -> Retired {
            const Half* own = wire.half_of(asked.host);
            if (own == nullptr || own->epoch != asked.epoch)
                return Error(Errc::refused,
                             fmt::format("Spike {} was not granted to host {} (epoch {}); its owner is {}", wire.name,
                                         asked.host, asked.epoch, wire.owner()));
            TRY_SET(const auto retired, wire.activate(asked.epoch));
            return retired ? std::vector<Half>{*retired} : std::vector<Half>{};
        });
}

Async<Json> Wires::close(const rpc::Context& context, Json params) {
    CO_TRY_SET(const Asked who, asked(context, params));
    const auto guard = co_await node_.locks.acquire("wire:" + who.spike);
    // A half that was closed already has an epoch of the past; one of the present is somebody's.
    if (const Wire* wire = table_.find(who.spike))
        for (const auto& half : {wire->active, wire->standby})
            if (half && half->epoch == who.epoch && half->host != who.host)
                co_return Error(Errc::refused, fmt::format("epoch {} of Spike {} is host {}'s, not host {}'s",
                                                           who.epoch, wire->name, half->host, who.host));
    CO_TRY(close_half(who.spike, who.host, who.epoch, params.get("handed_over").as_bool()));
    co_return Json::object();
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

void Wires::peer_up(const std::string& host) { node_.spawn(verify(host), "asking for wires' other sides"); }

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
        if (!answer) co_return;  // gone again, or of an earlier version
        if (answer->get("holds").as_bool()) continue;
        const auto guard = co_await node_.locks.acquire("wire:" + spike);
        const Wire* wire = table_.find(spike);
        if (wire == nullptr) continue;
        log::notice("Spike {}: host {} knows nothing of its wire (epoch {}), which is closed", wire->name, host, epoch);
        if (const Status closed = close_half(spike, host, epoch, false); !closed)
            log::error("{}", closed.error().message());
    }
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
    TRY(node_.engine.realise(wiring::plan_wire_entries(wire, retired)));
    retire(retired);
    return {};
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
