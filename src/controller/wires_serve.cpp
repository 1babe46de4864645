// What peers, and this host itself, may ask of Wires: each method in the order of a wire's life.
#include <fmt/core.h>

#include <algorithm>

#include "base/clock.h"
#include "controller/wires.h"
#include "model/names.h"

namespace banana::controller {

using model::Format;
using model::Half;
using model::Phase;
using model::Wire;

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

Async<Json> Wires::open(const rpc::Context& context, Json params) {
    CO_TRY_SET(const Asked who, asked(context, params, false));
    CO_TRY_SET(const std::string name, params.string("name"));
    CO_TRY(model::check_spike_name(name));
    CO_TRY_SET(const Mac mac, Mac::parse(params.get("mac").as_string()));
    CO_TRY_SET(const std::string corm_name, params.string("corm"));
    CO_TRY_SET(const std::string preference, model::parse_preference(params.get("preference").as_string()));
    const auto guard = co_await node_.locks.acquire("wire:" + who.spike);
    CO_TRY_SET(const model::Corm corm, corms_.local(corm_name));
    CO_TRY(check_home(who.spike, who.host));
    CO_TRY(check_open(who.spike, mac, corm, who.host));
    CO_TRY(check_room(who.spike, who.host));
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
    wire.name = free_name(name, who.spike);
    wire.mac = mac;
    wire.allow_any_mac = params.get("allow_any_mac").as_bool();
    wire.corm = corm_name;
    CO_TRY_SET(Half half, make_half(who.host, corm, preference));
    half.device = half.format == Format::native ? params.get("device").as_string() : "";
    CO_TRY(wire.open(std::move(half)));
    co_return co_await commit(corm, std::move(wire), who.host, retired);
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
    co_return co_await commit(corm, std::move(wire), host, retired);
}

Async<Json> Wires::attach(const rpc::Context& context, Json params) {
    CO_TRY_SET(const Asked who, asked(context, params));
    CO_TRY_SET(const std::string device, params.string("device"));
    if (who.host != node_.config.host) co_return Error(Errc::refused, "wire.attach is for this host's own Spikes");
    const auto guard = co_await node_.locks.acquire("wire:" + who.spike);
    const Wire* known = table_.find(who.spike);
    if (known == nullptr) co_return Error(Errc::not_found, "no such wire: " + who.spike);
    Wire wire = *known;
    bool found = false;
    for (auto* half : {&wire.active, &wire.standby}) {
        if (!*half || (*half)->host != who.host || (*half)->epoch != who.epoch) continue;
        (*half)->device = device;
        found = true;
    }
    if (!found)
        co_return Error(Errc::refused,
                        fmt::format("Spike {}: host {} has no half of epoch {}", wire.name, who.host, who.epoch));
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
    const Status shown = node_.engine.realise(wiring::plan_wire_entries(wire, *retired));
    retire(*retired);  // also then: nobody will know of them any more
    CO_TRY(shown.context(what));
    co_return Json::object();
}

Async<Json> Wires::check(const rpc::Context& context, Json params) {
    CO_TRY_SET(const std::string spike, params.string("spike"));
    CO_TRY_SET(const std::string corm_name, params.string("corm"));
    CO_TRY_SET(const Mac mac, Mac::parse(params.get("mac").as_string()));
    CO_TRY_SET(const model::Corm corm, corms_.local(corm_name));
    CO_TRY(check_home(spike, caller(node_, context)));
    CO_TRY(check_open(spike, mac, corm, caller(node_, context)));
    CO_TRY(check_room(spike, caller(node_, context)));
    CO_TRY_SET(const std::string preference, model::parse_preference(params.get("preference").as_string()));
    CO_TRY(make_half(caller(node_, context), corm, preference));
    co_return Json::object();
}

Async<Json> Wires::owner(const rpc::Context&, Json params) {
    CO_TRY_SET(const std::string spike, params.string("spike"));
    const Wire* wire = table_.find(spike);
    if (wire == nullptr && node_.records_ignored) co_return node_.unreadable(spike);
    const bool active = wire != nullptr && wire->active;
    Json out = Json::object({{"owner", active ? wire->owner() : ""},
                             {"standby", wire != nullptr && wire->standby ? wire->standby->host : ""},
                             {"epoch", active ? wire->active->epoch : uint64_t{0}},
                             {"underlay", active ? wire->active->underlay.text() : ""}});
    if (active) {  // what a half that is made now would have; "" while its host is away
        const auto host = node_.host(wire->owner());
        out.set("underlay_now", host ? host->underlay.text() : "");
    }
    co_return out;
}

Async<Json> Wires::flip(const rpc::Context& context, Json params) {
    co_return co_await change(context, std::move(params), "flip", true, [](Wire& wire, const Asked& asked) -> Retired {
        if (!wire.active || wire.active->host != asked.host || wire.active->epoch != asked.epoch)
            return Error(Errc::refused,
                         fmt::format("Spike {} is host {}'s (epoch {}), not host {}'s (epoch {})", wire.name,
                                     wire.owner(), wire.active ? wire.active->epoch : 0, asked.host, asked.epoch));
        if (!wire.standby) return Error(Errc::refused, fmt::format("Spike {}: nobody is to take it over", wire.name));
        TRY(wire.flip(wire.standby->epoch));
        return std::vector<Half>{};
    });
}

Async<Json> Wires::flip_back(const rpc::Context& context, Json params) {
    const bool over = params.get("abandon").as_bool();
    co_return co_await change(context, std::move(params), "flip back", false,
                              [over](Wire& wire, const Asked& asked) -> Retired {
                                  if (!over) {
                                      TRY(wire.flip_back(asked.host));
                                      return std::vector<Half>{};
                                  }
                                  TRY_SET(const auto retired, wire.abandon(asked.host));
                                  return retired ? std::vector<Half>{*retired} : std::vector<Half>{};
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

}  // namespace banana::controller
