#include "model/wire.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cstdlib>

#include "model/names.h"

namespace banana::model {

namespace {

constexpr std::array<Phase, 4> phases{Phase::idle, Phase::active, Phase::standby, Phase::flipped};

// Which phase may follow which; row: before, column: after, both in the order of the enum.
constexpr bool phase_edges[4][4] = {
    /* idle    */ {false, true, false, false},
    /* active  */ {true, true, true, false},
    /* standby */ {true, true, true, true},
    /* flipped */ {false, true, true, true},
};

PhaseObserver& phase_observer() {
    static PhaseObserver instance;
    return instance;
}

}  // namespace

const char* phase_name(Phase phase) {
    switch (phase) {
        case Phase::idle: return "idle";
        case Phase::active: return "active";
        case Phase::standby: return "standby";
        case Phase::flipped: return "flipped";
    }
    return "?";
}

void observe_phases(PhaseObserver o) { phase_observer() = std::move(o); }

void Wire::to(Phase next) {
    if (!phase_edges[static_cast<int>(phase)][static_cast<int>(next)]) std::abort();  // a bug here, never input's doing
    const Phase before = phase;
    phase = next;
    if (phase_observer() && before != next) phase_observer()(*this, before, next);
}

Status Wire::open(Half half) {
    if (phase != Phase::idle && active->host != half.host)
        return Error(Errc::refused,
                     fmt::format("Spike {} belongs to host {} (epoch {}); {} may have it by a migration only", name,
                                 active->host, active->epoch, half.host));
    if (phase == Phase::standby || phase == Phase::flipped)
        return Error(Errc::busy, fmt::format("Spike {} is being migrated to {}", name, standby->host));
    half.epoch = ++last_epoch;
    active = std::move(half);
    to(Phase::active);
    return {};
}

Status Wire::prepare(Half half) {
    if (phase == Phase::idle)
        return Error(Errc::refused,
                     fmt::format("Spike {} has no owner that could have granted it to {}", name, half.host));
    if (phase == Phase::flipped)
        return Error(Errc::busy, fmt::format("Spike {} is being handed over to {}", name, standby->host));
    half.epoch = ++last_epoch;
    standby = std::move(half);
    to(Phase::standby);
    return {};
}

Status Wire::flip(uint64_t epoch) {
    if (!standby || standby->epoch != epoch)
        return Error(Errc::refused, fmt::format("Spike {}: no standby wire of epoch {}", name, epoch));
    to(Phase::flipped);
    return {};
}

Status Wire::flip_back(const std::string& by) {
    if (!active || active->host != by)
        return Error(Errc::refused,
                     fmt::format("Spike {} belongs to {}, not to {}", name, active ? active->host : "nobody", by));
    if (phase == Phase::flipped) to(Phase::standby);
    return {};
}

Result<std::optional<Half>> Wire::abandon(const std::string& by) {
    TRY(flip_back(by));
    auto retired = std::exchange(standby, std::nullopt);
    if (retired) to(Phase::active);
    return retired;
}

Result<std::optional<Half>> Wire::activate(uint64_t epoch) {
    if (active && active->epoch == epoch) return std::optional<Half>();
    if (!standby || standby->epoch != epoch)
        return Error(Errc::refused, fmt::format("Spike {}: no standby wire of epoch {} (the active one is {})", name,
                                                epoch, active ? active->epoch : 0));
    auto retired = std::exchange(active, std::exchange(standby, std::nullopt));
    to(Phase::active);
    return retired;
}

std::vector<Half> Wire::close(const std::string& host, uint64_t epoch, bool handed_over) {
    const auto is_meant = [&](const std::optional<Half>& half) {
        return half && half->host == host && (epoch == 0 || half->epoch == epoch);
    };
    std::vector<Half> retired;
    if (is_meant(standby)) {
        retired.push_back(*std::exchange(standby, std::nullopt));
        to(Phase::active);
        return retired;
    }
    if (!is_meant(active)) return retired;
    retired.push_back(*std::exchange(active, std::nullopt));
    if (standby && phase != Phase::flipped && !handed_over) retired.push_back(*std::exchange(standby, std::nullopt));
    active = std::exchange(standby, std::nullopt);
    to(active ? Phase::active : Phase::idle);
    return retired;
}

const Half* Wire::current() const {
    if (phase == Phase::flipped) return &*standby;
    return active ? &*active : nullptr;
}

bool Wire::admits(const Half& half) const {
    if (active && half == *active) return true;
    return phase == Phase::flipped && half == *standby;
}

const Half* Wire::half_of(const std::string& host) const {
    if (standby && standby->host == host) return &*standby;
    return active && active->host == host ? &*active : nullptr;
}

std::string end_device(const Half& half) {
    switch (half.format) {
        case Format::native: return half.device;
        case Format::vxlan: return wire_device(half.connector);
        case Format::dtls: return tunnel_device(half.connector);
    }
    return "";
}

Json Half::json() const {
    return Json::object({{"host", host},
                         {"epoch", epoch},
                         {"format", format_name(format)},
                         {"why", why},
                         {"connector", hex32(connector)},
                         {"underlay", underlay.text()},
                         {"device", device}});
}

Result<Half> Half::from_json(const Json& json) {
    Half half;
    TRY_SET(half.host, json.string("host"));
    TRY_SET(const int64_t epoch, json.integer("epoch", 0));
    half.epoch = static_cast<uint64_t>(epoch);
    TRY_SET(half.format, parse_format(json.get("format").as_string()));
    half.why = json.get("why").as_string();
    const auto connector = parse_hex32(json.get("connector").as_string());
    if (!connector) return Error(Errc::invalid, "member 'connector' is not eight hexadecimal digits");
    half.connector = *connector;
    if (half.format != Format::native) {
        TRY_SET(half.underlay, IpAddress::parse(json.get("underlay").as_string()));
    }
    half.device = json.get("device").as_string();
    return half;
}

Json Wire::json() const {
    Json out = Json::object({{"port", hex32(port)},
                             {"spike", spike},
                             {"name", name},
                             {"mac", mac.text()},
                             {"allow_any_mac", allow_any_mac},
                             {"corm", corm},
                             {"phase", phase_name(phase)},
                             {"last_epoch", last_epoch},
                             {"granted_until", granted_until}});
    if (active) out.set("active", active->json());
    if (standby) out.set("standby", standby->json());
    return out;
}

Result<Wire> Wire::from_json(const Json& json) {
    Wire wire;
    const auto port = parse_hex32(json.get("port").as_string());
    if (!port) return Error(Errc::invalid, "member 'port' is not eight hexadecimal digits");
    wire.port = *port;
    TRY_SET(wire.spike, json.string("spike"));
    TRY_SET(wire.name, json.string("name"));
    TRY_SET(wire.mac, Mac::parse(json.get("mac").as_string()));
    wire.allow_any_mac = json.get("allow_any_mac").as_bool();
    TRY_SET(wire.corm, json.string("corm"));
    const std::string phase = json.get("phase").as_string();
    const auto* found = std::find_if(phases.begin(), phases.end(), [&](Phase p) { return phase == phase_name(p); });
    if (found == phases.end())
        return Error(Errc::invalid, fmt::format("'{}' is no phase of a wire", printable(phase, 40)));
    wire.phase = *found;
    TRY_SET(const int64_t last, json.integer("last_epoch", 0));
    wire.last_epoch = static_cast<uint64_t>(last);
    wire.granted_until = json.get("granted_until").as_int();
    if (json.has("active")) {
        TRY_SET(wire.active, Half::from_json(json.get("active")));
    }
    if (json.has("standby")) {
        TRY_SET(wire.standby, Half::from_json(json.get("standby")));
    }
    const bool wants_active = wire.phase != Phase::idle;
    const bool wants_standby = wire.phase == Phase::standby || wire.phase == Phase::flipped;
    if (wire.active.has_value() != wants_active || wire.standby.has_value() != wants_standby)
        return Error(Errc::invalid, fmt::format("phase {} does not fit the halves that are there", phase));
    // An epoch beyond the last one that was handed out would be handed out a second time.
    for (const auto& half : {wire.active, wire.standby})
        if (half && (half->epoch == 0 || half->epoch > wire.last_epoch))
            return Error(Errc::invalid,
                         fmt::format("epoch {} of a half is not among 1 to {}", half->epoch, wire.last_epoch));
    if (wire.standby && wire.standby->epoch <= wire.active->epoch)
        return Error(Errc::invalid, fmt::format("standby epoch {} is not after the active one, {}", wire.standby->epoch,
                                                wire.active->epoch));
    return wire;
}

}  // namespace banana::model
