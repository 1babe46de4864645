#include "model/spike.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>

#include "model/names.h"

namespace banana::model {

namespace {

constexpr std::array<SpikeKind, 3> spike_kinds{SpikeKind::tap, SpikeKind::macvtap, SpikeKind::netdev};
constexpr std::array<SpikeState, 5> states{SpikeState::unwired, SpikeState::built, SpikeState::wired,
                                           SpikeState::incoming, SpikeState::leaving};

constexpr bool state_edges[5][5] = {
    /*              unwired built  wired  incoming leaving */
    /* unwired  */ {true, true, true, true, false},
    /* built    */ {true, true, true, true, false},
    /* wired    */ {true, true, true, false, true},
    /* incoming */ {true, false, true, true, false},
    /* leaving  */ {true, false, true, false, true},
};

StateObserver& state_observer() {
    static StateObserver instance;
    return instance;
}

template <class E, size_t N>
Result<E> from_name(const std::array<E, N>& all, const char* (*name_of)(E), const std::string& name, const char* what) {
    for (E e : all)
        if (name == name_of(e)) return e;
    return Error(Errc::invalid, fmt::format("'{}' is no {}", printable(name, 40), what));
}

}  // namespace

const char* spike_kind_name(SpikeKind kind) {
    switch (kind) {
        case SpikeKind::tap: return "tap";
        case SpikeKind::macvtap: return "macvtap";
        case SpikeKind::netdev: return "netdev";
    }
    return "?";
}

const char* spike_state_name(SpikeState state) {
    switch (state) {
        case SpikeState::unwired: return "unwired";
        case SpikeState::built: return "built";
        case SpikeState::wired: return "wired";
        case SpikeState::incoming: return "incoming";
        case SpikeState::leaving: return "leaving";
    }
    return "?";
}

void observe_states(StateObserver o) { state_observer() = std::move(o); }

Status Spike::move(SpikeState next) {
    if (!state_edges[static_cast<int>(state)][static_cast<int>(next)])
        return Error(
            fmt::format("Spike {}: {} cannot become {}", name, spike_state_name(state), spike_state_name(next)));
    const SpikeState before = state;
    state = next;
    if (state_observer() && before != next) state_observer()(*this, before, next);
    return {};
}

std::string Attachment::far_device() const {
    return half.format == Format::native ? port_device(port) : end_device(half);
}

Json Attachment::json() const {
    return Json::object({{"corm", corm},
                         {"port", hex32(port)},
                         {"half", half.json()},
                         {"corm_host", corm_host},
                         {"corm_underlay", corm_underlay.text()},
                         {"mtu", mtu}});
}

Result<Attachment> Attachment::from_json(const Json& json) {
    Attachment a;
    TRY_SET(a.corm, json.string("corm"));
    const auto port = parse_hex32(json.get("port").as_string());
    if (!port) return Error(Errc::invalid, "member 'port' is not eight hexadecimal digits");
    a.port = *port;
    TRY_SET(const Json half, json.object_at("half"));
    TRY_SET(a.half, Half::from_json(half));
    TRY_SET(a.corm_host, json.string("corm_host"));
    TRY_SET(a.corm_underlay, IpAddress::parse(json.get("corm_underlay").as_string()));
    TRY_SET(const int64_t mtu, json.integer("mtu"));
    TRY(check_mtu(mtu));
    a.mtu = static_cast<uint32_t>(mtu);
    return a;
}

Json Spike::json() const {
    Json out = Json::object({{"key", key},
                             {"name", name},
                             {"home", home},
                             {"kind", spike_kind_name(kind)},
                             {"id", hex32(id)},
                             {"mac", mac.text()},
                             {"allow_any_mac", allow_any_mac},
                             {"domain", domain},
                             {"uuid", uuid},
                             {"interface", interface},
                             {"corm", corm},
                             {"preference", preference},
                             {"device", device},
                             {"state", spike_state_name(state)},
                             {"granted", granted},
                             {"grant_expiry", grant_expiry},
                             {"came_from", came_from},
                             {"old_txqueuelen", old_txqueuelen},
                             {"stage", stage}});
    if (attachment) out.set("attachment", attachment->json());
    return out;
}

Result<Spike> Spike::from_json(const Json& json) {
    Spike s;
    TRY_SET(s.key, json.string("key"));
    TRY_SET(s.name, json.string("name"));
    TRY_SET(s.home, json.string("home"));
    TRY_SET(s.kind, from_name(spike_kinds, spike_kind_name, json.get("kind").as_string(), "kind of Spike"));
    s.id = parse_hex32(json.get("id").as_string()).value_or(0);
    TRY_SET(s.mac, Mac::parse(json.get("mac").as_string()));
    s.allow_any_mac = json.get("allow_any_mac").as_bool();
    s.domain = json.get("domain").as_string();
    s.uuid = json.get("uuid").as_string();
    s.interface = json.get("interface").as_string();
    s.corm = json.get("corm").as_string();
    TRY_SET(s.preference, parse_preference(json.get("preference").as_string()));
    s.device = json.get("device").as_string();
    TRY_SET(s.state, from_name(states, spike_state_name, json.get("state").as_string(), "state of a Spike"));
    if (json.has("attachment")) {
        TRY_SET(s.attachment, Attachment::from_json(json.get("attachment")));
    }
    // What is built or wired is so by an attachment; whoever reads the record relies on that.
    if (s.state != SpikeState::unwired && !s.attachment)
        return Error(Errc::invalid, fmt::format("a Spike that is {} and has no attachment", spike_state_name(s.state)));
    if (json.has("old_txqueuelen")) {
        TRY_SET(const int64_t frames, json.integer("old_txqueuelen", 0, UINT32_MAX));
        s.old_txqueuelen = static_cast<uint32_t>(frames);
    }
    if (json.has("stage")) {
        TRY_SET(const int64_t number, json.integer("stage", 0, UINT32_MAX));
        s.stage = static_cast<uint32_t>(number);
    }
    s.granted = json.get("granted").as_string();
    s.grant_expiry = json.get("grant_expiry").as_int();
    s.came_from = json.get("came_from").as_string();
    return s;
}

}  // namespace banana::model
