#include "model/spike.h"

#include <doctest/doctest.h>
#include <fmt/core.h>

using namespace banana;
using namespace banana::model;

namespace {

constexpr SpikeState states[] = {SpikeState::unwired, SpikeState::built, SpikeState::wired, SpikeState::incoming,
                                 SpikeState::leaving};

Attachment attachment(Format format = Format::vxlan) {
    Attachment a;
    a.corm = "hv1/lab";
    a.port = 0x2a;
    a.half.host = "hv2";
    a.half.epoch = 6;
    a.half.format = format;
    if (format != Format::native) {
        a.half.connector = 0xabc;
        a.half.underlay = *IpAddress::parse("192.0.2.2");
    }
    a.corm_host = "hv1";
    a.corm_underlay = *IpAddress::parse("192.0.2.1");
    a.mtu = 1500;
    return a;
}

Spike sample(SpikeState state = SpikeState::wired) {
    Spike s;
    s.uuid = "6f0ea4e2-6ac5-4f3b-a3f5-3f2c6b1f7a10";
    s.key = s.uuid + "/52:54:00:00:00:01";
    s.name = "hv1/vm1/net0";
    s.home = "hv1";
    s.id = 7;
    s.mac = *Mac::parse("52:54:00:00:00:01");
    s.domain = "vm1";
    s.interface = "net0";
    s.corm = "hv1/lab";
    s.preference = "vxlan";
    s.device = "vnet0";
    s.state = state;
    s.attachment = attachment();
    s.old_txqueuelen = 1000;
    s.stage = 3;
    return s;
}

}  // namespace

TEST_CASE("spike: each edge, allowed or refused") {
    const char* table[5][5] = {
        // unwired built wired incoming leaving
        {"yes", "yes", "yes", "yes", "no"},  // unwired
        {"yes", "yes", "yes", "yes", "no"},  // built
        {"yes", "yes", "yes", "no", "yes"},  // wired
        {"yes", "no", "yes", "yes", "no"},   // incoming
        {"yes", "no", "yes", "no", "yes"},   // leaving
    };
    for (int from = 0; from < 5; ++from)
        for (int to = 0; to < 5; ++to) {
            CAPTURE(spike_state_name(states[from]));
            CAPTURE(spike_state_name(states[to]));
            Spike spike = sample(states[from]);
            const Status moved = spike.move(states[to]);
            REQUIRE(moved.ok() == (std::string(table[from][to]) == "yes"));
            CHECK(spike.state == (moved ? states[to] : states[from]));
            if (moved) continue;
            CHECK(moved.error().code() == Errc::failed);
            CHECK(moved.error().message() == fmt::format("Spike hv1/vm1/net0: {} cannot become {}",
                                                         spike_state_name(states[from]), spike_state_name(states[to])));
        }
}

TEST_CASE("spike: changes of state are told, repetitions and refusals are not") {
    std::string told;
    observe_states([&](const Spike& spike, SpikeState before, SpikeState after) {
        told += fmt::format("{} {}->{}; ", spike.name, spike_state_name(before), spike_state_name(after));
    });
    Spike spike = sample(SpikeState::built);
    (void)spike.move(SpikeState::built);
    (void)spike.move(SpikeState::leaving);
    (void)spike.move(SpikeState::wired);
    (void)spike.move(SpikeState::leaving);
    observe_states(nullptr);
    (void)spike.move(SpikeState::unwired);
    CHECK(told == "hv1/vm1/net0 built->wired; hv1/vm1/net0 wired->leaving; ");
}

TEST_CASE("spike: the far device is the wire's, natively the Corm port itself") {
    CHECK(attachment(Format::vxlan).far_device() == "bnx00000abc");
    CHECK(attachment(Format::native).far_device() == "bnc0000002a");
}

TEST_CASE("spike: as JSON and back") {
    for (const SpikeState state : states)
        for (const SpikeKind kind : {SpikeKind::tap, SpikeKind::macvtap, SpikeKind::netdev})
            for (const Format format : {Format::native, Format::vxlan, Format::dtls}) {
                Spike before = sample(state);
                before.kind = kind;
                before.attachment = attachment(format);
                const auto after = Spike::from_json(*Json::parse(before.json().dump()));
                REQUIRE(after.ok());
                CHECK(after->state == state);
                CHECK(after->kind == kind);
                CHECK(after->mac == before.mac);
                CHECK(after->attachment->half == before.attachment->half);
                CHECK(after->attachment->corm_underlay == before.attachment->corm_underlay);
                CHECK(after->is_guest());
                CHECK(after->json().dump() == before.json().dump());
            }
    Spike off = sample(SpikeState::unwired);
    off.attachment.reset();
    CHECK_FALSE(Spike::from_json(off.json())->attachment.has_value());
}

TEST_CASE("spike: records that cannot be") {
    const auto refused = [](const Json& json) { return !Spike::from_json(json).ok(); };
    const std::initializer_list<std::pair<const char*, Json>> bad{
        {"key", Json()},
        {"name", 7},
        {"home", Json()},
        {"kind", "vhost"},
        {"kind", Json()},
        {"mac", ""},
        {"preference", "tcp"},
        {"state", "asleep"},
        {"attachment", "x"},
        {"old_txqueuelen", -1},
        {"old_txqueuelen", int64_t{1} << 32},
        {"stage", -1},
        {"stage", "two"},
        {"attachment", Json()},
    };
    for (const auto& [member, value] : bad) {
        CAPTURE(member);
        Json json = sample().json();
        json.set(member, value);
        CHECK(refused(json));
    }
    for (const SpikeState state : states) {
        CAPTURE(spike_state_name(state));
        Json json = sample(state).json();
        json.erase("attachment");
        CHECK(refused(json) == (state != SpikeState::unwired));
    }
    const std::initializer_list<std::pair<const char*, Json>> bad_attachment{
        {"corm", Json()}, {"port", "2a"}, {"half", Json()}, {"corm_host", 1}, {"corm_underlay", "hv1"}, {"mtu", 67},
    };
    for (const auto& [member, value] : bad_attachment) {
        CAPTURE(member);
        Json json = sample().json();
        json.get("attachment").set(member, value);
        CHECK(refused(json));
    }
}
