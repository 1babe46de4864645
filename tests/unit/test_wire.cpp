#include "model/wire.h"

#include <doctest/doctest.h>
#include <fmt/core.h>

using namespace banana;
using namespace banana::model;

namespace {

Half half(const std::string& host, uint32_t connector = 0) {
    Half h;
    h.host = host;
    if (connector == 0) return h;
    h.format = Format::vxlan;
    h.connector = connector;
    h.underlay = *IpAddress::parse("192.0.2.1");
    return h;
}

// hv1 owns the Spike by epoch 5; hv2 may have a standby half of epoch 6.
Wire in(Phase phase) {
    Wire wire;
    wire.port = 0x2a;
    wire.spike = "uuid/52:54:00:00:00:01";
    wire.name = "hv1/vm1/net0";
    wire.mac = *Mac::parse("52:54:00:00:00:01");
    wire.corm = "hv1/lab";
    wire.last_epoch = 4;
    if (phase == Phase::idle) return wire;
    REQUIRE(wire.open(half("hv1")).ok());
    if (phase != Phase::active) REQUIRE(wire.prepare(half("hv2", 7)).ok());
    if (phase == Phase::flipped) REQUIRE(wire.flip(6).ok());
    REQUIRE(wire.phase == phase);
    return wire;
}

constexpr Phase phases[] = {Phase::idle, Phase::active, Phase::standby, Phase::flipped};

std::string show(const std::optional<Half>& h) { return h ? fmt::format("{}:{}", h->host, h->epoch) : "-"; }
std::string show(const std::vector<Half>& halves) {
    std::string out;
    for (const auto& h : halves) out += (out.empty() ? "" : " ") + show(std::optional<Half>(h));
    return out;
}
// "standby hv1:5 hv2:6"
std::string show(const Wire& wire) {
    return fmt::format("{} {} {}", phase_name(wire.phase), show(wire.active), show(wire.standby));
}

// What each operation makes of a wire in each phase: the state after it, or the refusal. A refusal changes nothing.
using Operation = Status (*)(Wire&);
struct Row {
    const char* name;
    Operation run;
    const char* after[4];  // in the order of `phases`
};

Status activate(Wire& wire, uint64_t epoch) {
    const auto retired = wire.activate(epoch);
    return retired ? Status() : retired.error();
}

const char* const foreign =
    "!refused Spike hv1/vm1/net0 belongs to host hv1 (epoch 5); hv2 may have it by a migration only";
const char* const no_standby = "!refused Spike hv1/vm1/net0: no standby wire of epoch 6";

const Row rows[] = {
    {"open by the owner",
     [](Wire& w) { return w.open(half("hv1")); },
     {"active hv1:5 -", "active hv1:6 -", "!busy Spike hv1/vm1/net0 is being migrated to hv2",
      "!busy Spike hv1/vm1/net0 is being migrated to hv2"}},
    {"open by another", [](Wire& w) { return w.open(half("hv2")); }, {"active hv2:5 -", foreign, foreign, foreign}},
    {"prepare",
     [](Wire& w) { return w.prepare(half("hv2", 8)); },
     {"!refused Spike hv1/vm1/net0 has no owner that could have granted it to hv2", "standby hv1:5 hv2:6",
      "standby hv1:5 hv2:7", "!busy Spike hv1/vm1/net0 is being handed over to hv2"}},
    {"prepare for a third",
     [](Wire& w) { return w.prepare(half("hv3", 8)); },
     {"!refused Spike hv1/vm1/net0 has no owner that could have granted it to hv3", "standby hv1:5 hv3:6",
      "standby hv1:5 hv3:7", "!busy Spike hv1/vm1/net0 is being handed over to hv2"}},
    {"flip", [](Wire& w) { return w.flip(6); }, {no_standby, no_standby, "flipped hv1:5 hv2:6", "flipped hv1:5 hv2:6"}},
    {"flip the active epoch",
     [](Wire& w) { return w.flip(5); },
     {"!refused Spike hv1/vm1/net0: no standby wire of epoch 5",
      "!refused Spike hv1/vm1/net0: no standby wire of epoch 5",
      "!refused Spike hv1/vm1/net0: no standby wire of epoch 5",
      "!refused Spike hv1/vm1/net0: no standby wire of epoch 5"}},
    {"flip back by the owner",
     [](Wire& w) { return w.flip_back("hv1"); },
     {"!refused Spike hv1/vm1/net0 belongs to nobody, not to hv1", "active hv1:5 -", "standby hv1:5 hv2:6",
      "standby hv1:5 hv2:6"}},
    {"flip back by the destination",
     [](Wire& w) { return w.flip_back("hv2"); },
     {"!refused Spike hv1/vm1/net0 belongs to nobody, not to hv2",
      "!refused Spike hv1/vm1/net0 belongs to hv1, not to hv2",
      "!refused Spike hv1/vm1/net0 belongs to hv1, not to hv2",
      "!refused Spike hv1/vm1/net0 belongs to hv1, not to hv2"}},
    {"abandon by the owner",
     [](Wire& w) {
         const auto retired = w.abandon("hv1");
         return retired ? Status() : retired.error();
     },
     {"!refused Spike hv1/vm1/net0 belongs to nobody, not to hv1", "active hv1:5 -", "active hv1:5 -",
      "active hv1:5 -"}},
    {"abandon by the destination",
     [](Wire& w) {
         const auto retired = w.abandon("hv2");
         return retired ? Status() : retired.error();
     },
     {"!refused Spike hv1/vm1/net0 belongs to nobody, not to hv2",
      "!refused Spike hv1/vm1/net0 belongs to hv1, not to hv2",
      "!refused Spike hv1/vm1/net0 belongs to hv1, not to hv2",
      "!refused Spike hv1/vm1/net0 belongs to hv1, not to hv2"}},
    {"activate the standby",
     [](Wire& w) { return activate(w, 6); },
     {"!refused Spike hv1/vm1/net0: no standby wire of epoch 6 (the active one is 0)",
      "!refused Spike hv1/vm1/net0: no standby wire of epoch 6 (the active one is 5)", "active hv2:6 -",
      "active hv2:6 -"}},
    {"activate the active",
     [](Wire& w) { return activate(w, 5); },
     {"!refused Spike hv1/vm1/net0: no standby wire of epoch 5 (the active one is 0)", "active hv1:5 -",
      "standby hv1:5 hv2:6", "flipped hv1:5 hv2:6"}},
    {"close by the owner",
     [](Wire& w) {
         (void)w.close("hv1", 5, false);
         return Status();
     },
     {"idle - -", "idle - -", "idle - -", "active hv2:6 -"}},
    {"close by the owner, who handed over",
     [](Wire& w) {
         (void)w.close("hv1", 5, true);
         return Status();
     },
     {"idle - -", "idle - -", "active hv2:6 -", "active hv2:6 -"}},
    {"close of whatever is the host's",
     [](Wire& w) {
         (void)w.close("hv2", 0, false);
         return Status();
     },
     {"idle - -", "active hv1:5 -", "active hv1:5 -", "active hv1:5 -"}},
    {"close by the destination",
     [](Wire& w) {
         (void)w.close("hv2", 6, false);
         return Status();
     },
     {"idle - -", "active hv1:5 -", "active hv1:5 -", "active hv1:5 -"}},
    {"close of an epoch that is over",
     [](Wire& w) {
         (void)w.close("hv1", 4, true);
         return Status();
     },
     {"idle - -", "active hv1:5 -", "standby hv1:5 hv2:6", "flipped hv1:5 hv2:6"}},
    {"close of another's epoch",
     [](Wire& w) {
         (void)w.close("hv3", 6, true);
         (void)w.close("hv2", 5, true);
         return Status();
     },
     {"idle - -", "active hv1:5 -", "standby hv1:5 hv2:6", "flipped hv1:5 hv2:6"}},
};

}  // namespace

TEST_CASE("wire: each operation in each phase") {
    for (const Row& row : rows)
        for (int i = 0; i < 4; ++i) {
            CAPTURE(row.name);
            CAPTURE(phase_name(phases[i]));
            Wire wire = in(phases[i]);
            const std::string before = wire.json().dump();
            const Status status = row.run(wire);
            if (status) {
                CHECK(show(wire) == row.after[i]);
                CHECK(Wire::from_json(wire.json()).ok());
            } else {
                CHECK(fmt::format("!{} {}", errc_name(status.error().code()), status.error().message()) ==
                      row.after[i]);
                CHECK(wire.json().dump() == before);
            }
        }
}

TEST_CASE("wire: what is retired") {
    Wire wire = in(Phase::flipped);
    auto retired = wire.activate(6);
    REQUIRE((retired.ok() && retired->has_value()));
    CHECK(show(*retired) == "hv1:5");
    retired = wire.activate(6);  // said twice: nothing is left to retire
    REQUIRE(retired.ok());
    CHECK_FALSE(retired->has_value());

    for (const Phase phase : {Phase::standby, Phase::flipped}) {
        wire = in(phase);
        CHECK(show(wire.close("hv1", 5, true)) == "hv1:5");  // the guest went to hv2
        wire = in(phase);
        CHECK(show(wire.close("hv2", 6, false)) == "hv2:6");  // the migration failed
        CHECK(show(wire.close("hv2", 6, false)) == "");
        CHECK(show(wire.close("hv1", 5, false)) == "hv1:5");
        CHECK(wire.owner() == "");
    }
    wire = in(Phase::standby);
    CHECK(show(wire.close("hv1", 5, false)) == "hv1:5 hv2:6");  // the guest ended before it went anywhere
}

TEST_CASE("wire: an epoch is handed out once") {
    Wire wire = in(Phase::idle);
    std::vector<uint64_t> seen{4};
    const auto note = [&](const std::optional<Half>& h) {
        REQUIRE(h.has_value());
        CHECK(h->epoch == seen.back() + 1);
        CHECK(wire.last_epoch == h->epoch);
        seen.push_back(h->epoch);
    };
    // A host cannot choose: whatever epoch its half bears is overwritten.
    Half own = half("hv1");
    own.epoch = 99;
    REQUIRE(wire.open(own).ok());
    note(wire.active);
    REQUIRE(wire.open(half("hv1")).ok());
    note(wire.active);
    REQUIRE(wire.prepare(half("hv2", 7)).ok());
    note(wire.standby);
    REQUIRE(wire.prepare(half("hv2", 7)).ok());
    note(wire.standby);
    CHECK_FALSE(wire.flip(seen[seen.size() - 2]).ok());  // the standby that was replaced
    (void)wire.close("hv2", seen.back(), false);
    REQUIRE(wire.prepare(half("hv3", 7)).ok());
    note(wire.standby);
    REQUIRE(wire.activate(seen.back()).ok());
    (void)wire.close("hv3", seen.back(), false);
    CHECK(wire.phase == Phase::idle);
    // Also over a restart.
    const auto again = Wire::from_json(*Json::parse(wire.json().dump()));
    REQUIRE(again.ok());
    wire = *again;
    REQUIRE(wire.open(half("hv1")).ok());
    note(wire.active);
}

TEST_CASE("wire: who is current, who is admitted") {
    struct {
        Phase phase;
        const char* current;
        bool active, standby;
    } table[] = {{Phase::idle, "-", false, false},
                 {Phase::active, "hv1:5", true, false},
                 {Phase::standby, "hv1:5", true, false},
                 {Phase::flipped, "hv2:6", true, true}};
    for (const auto& row : table) {
        CAPTURE(phase_name(row.phase));
        const Wire wire = in(row.phase);
        const Half* current = wire.current();
        CHECK(show(current != nullptr ? std::optional(*current) : std::nullopt) == row.current);
        Half source = half("hv1"), destination = half("hv2", 7);
        source.epoch = 5;
        destination.epoch = 6;
        CHECK(wire.admits(source) == row.active);
        CHECK(wire.admits(destination) == row.standby);
        // The same place by another epoch, the same epoch at another place.
        source.epoch = 4;
        CHECK_FALSE(wire.admits(source));
        destination.host = "hv3";
        CHECK_FALSE(wire.admits(destination));
    }
    Wire wire = in(Phase::flipped);
    CHECK(wire.owner() == "hv1");
    CHECK(wire.half_of("hv2")->epoch == 6);
    CHECK(wire.half_of("hv1")->epoch == 5);
    CHECK(wire.half_of("hv3") == nullptr);
    REQUIRE(wire.activate(6).ok());
    CHECK(wire.owner() == "hv2");
    CHECK(wire.half_of("hv1") == nullptr);
}

TEST_CASE("wire: changes of phase are told, others are not") {
    std::string told;
    observe_phases([&](const Wire& wire, Phase before, Phase after) {
        told += fmt::format("{} {}->{}; ", wire.name, phase_name(before), phase_name(after));
    });
    Wire wire = in(Phase::flipped);
    (void)wire.flip(6);
    (void)wire.flip_back("hv1");
    (void)wire.flip_back("hv1");
    (void)wire.open(half("hv2"));
    observe_phases(nullptr);
    (void)wire.activate(6);
    CHECK(told ==
          "hv1/vm1/net0 idle->active; hv1/vm1/net0 active->standby; hv1/vm1/net0 standby->flipped; "
          "hv1/vm1/net0 flipped->standby; ");
}

TEST_CASE("wire: as JSON and back") {
    for (const Phase phase : phases) {
        CAPTURE(phase_name(phase));
        Wire before = in(phase);
        before.allow_any_mac = true;
        if (before.active) before.active->device = "vnet0", before.active->why = "auto: same host";
        const auto after = Wire::from_json(*Json::parse(before.json().dump()));
        REQUIRE(after.ok());
        CHECK(after->port == before.port);
        CHECK(after->spike == before.spike);
        CHECK(after->mac == before.mac);
        CHECK(after->allow_any_mac);
        CHECK(after->last_epoch == before.last_epoch);
        CHECK(after->active == before.active);
        CHECK(after->standby == before.standby);
        CHECK(after->json().dump() == before.json().dump());
    }
}

TEST_CASE("wire: records that cannot be") {
    const auto error_of = [](const Json& json) {
        const auto wire = Wire::from_json(json);
        return wire ? std::string() : wire.error().message();
    };
    for (const Phase phase : phases)
        for (const Phase said : phases) {
            const auto halves = [](Phase p) { return p == Phase::idle ? 0 : p == Phase::active ? 1 : 2; };
            Json json = in(phase).json();
            json.set("phase", phase_name(said));
            const bool fits = halves(phase) == halves(said);
            CHECK(error_of(json) ==
                  (fits ? "" : fmt::format("phase {} does not fit the halves that are there", phase_name(said))));
        }
    Json json = in(Phase::standby).json();
    json.erase("active");
    CHECK_FALSE(error_of(json).empty());

    const std::initializer_list<std::pair<const char*, Json>> bad{
        {"port", "2a"},
        {"port", 42},
        {"spike", Json()},
        {"mac", "52:54"},
        {"corm", 7},
        {"phase", "dormant"},
        {"phase", 1},
        {"last_epoch", -1},
        {"last_epoch", "6"},
        {"active", "hv1"},
        {"standby", Json::object()},
    };
    for (const auto& [member, value] : bad) {
        CAPTURE(member);
        json = in(Phase::standby).json();
        json.set(member, value);
        CHECK_FALSE(error_of(json).empty());
    }
    const std::initializer_list<std::pair<const char*, Json>> bad_half{
        {"host", Json()}, {"epoch", -1}, {"epoch", 0}, {"format", "ipip"}, {"connector", "7"}, {"underlay", ""},
    };
    for (const auto& [member, value] : bad_half) {
        CAPTURE(member);
        json = in(Phase::standby).json();
        json.get("standby").set(member, value);
        CHECK_FALSE(error_of(json).empty());
    }
    // Epochs that would be handed out twice, or in the wrong order.
    json = in(Phase::standby).json();
    json.set("last_epoch", 5);
    CHECK(error_of(json) == "epoch 6 of a half is not among 1 to 5");
    json = in(Phase::active).json();
    json.set("last_epoch", 4);
    CHECK(error_of(json) == "epoch 5 of a half is not among 1 to 4");
    json = in(Phase::standby).json();
    json.get("standby").set("epoch", 5);
    CHECK(error_of(json) == "standby epoch 5 is not after the active one, 5");
}
