// What a lane does with frames: of peers, for wires, from taps; good ones and nonsense.
#include <doctest/doctest.h>

#include <random>

#include "test_tunnel_lane_world.h"

using namespace banana;
using namespace banana::tunnel;
using namespace banana::tunnel::lane_test;

namespace {

Bytes slice(uint32_t number, uint32_t offset, uint32_t whole, size_t bytes) {
    Entry header;
    header.connector = own_wire;
    header.is_slice = true;
    header.frame_number = number;
    header.offset = offset;
    header.frame_bytes = whole;
    return entry_of(header, frame_of(bytes));
}

Bytes changed(Bytes bytes, size_t at, uint8_t value) {
    bytes.at(at) = value;
    return bytes;
}

struct Case {
    const char* what;
    Bytes plain;
    Drop reason;
};

std::vector<Case> nonsense() {
    const Bytes good = on_wire(own_wire, frame_of(60));
    const auto with = [&](const Offload& offload) { return on_wire(own_wire, frame_of(60), offload); };
    return {
        {"an entry that is cut", Bytes(good.begin(), good.begin() + 15), Drop::bad_entry},
        {"data that is cut", Bytes(good.begin(), good.end() - 1), Drop::bad_entry},
        {"an unknown flag", changed(good, 6, 0x04), Drop::bad_entry},
        {"bytes 14 and 15 without a slice", changed(good, 15, 1), Drop::bad_entry},
        {"a slice that is cut", changed(good, 6, 0x80), Drop::bad_entry},
        {"no frame at all", on_wire(own_wire, {}), Drop::runt},
        {"13 bytes", on_wire(own_wire, frame_of(13)), Drop::runt},
        {"half a VLAN tag", on_wire(own_wire, changed(changed(frame_of(16), 12, 0x81), 13, 0)), Drop::runt},
        {"over the MTU", on_wire(own_wire, frame_of(1515)), Drop::oversized},
        {"ten times the MTU", on_wire(own_wire, frame_of(15'000)), Drop::oversized},
        {"a checksum outside", with({1, 0, 0, 14, 45}), Drop::bad_offload},
        {"a checksum far outside", with({1, 0, 0, 65535, 65535}), Drop::bad_offload},
        {"a checksum in the link header", with({1, 0, 0, 13, 0}), Drop::bad_offload},
        {"unknown segmentation", with({1, 3, 100, 14, 6}), Drop::bad_offload},
        {"TCP segmentation of what is none", with({1, 1, 100, 34, 16}), Drop::bad_offload},
        {"segmentation without a checksum", with({0, 1, 100, 0, 0}), Drop::bad_offload},
        {"an unknown wire", on_wire(99, frame_of(60)), Drop::unknown_wire},
        {"another host's wire", on_wire(foreign_wire, frame_of(60)), Drop::foreign_wire},
        {"a slice beyond its frame", slice(1, 1000, 1000, 200), Drop::bad_entry},
        {"a slice of too large a frame", slice(2, 0, 1 << 20, 200), Drop::bad_entry},
        {"a slice of no bytes", slice(3, 0, 1000, 0), Drop::bad_entry},
    };
}

}  // namespace

TEST_CASE("lane: what a peer may not send is dropped by its reason, and nothing else is") {
    Listening at;
    Peer peer;
    REQUIRE(peer.finished());
    REQUIRE(peer.session->state() == Session::State::up);
    const Bytes good = frame_of(60);
    peer.seal(on_wire(own_wire, good));
    REQUIRE(at.own.read(5000) == good);
    for (const auto& one : nonsense()) {
        INFO(one.what);
        const uint64_t before = at.dropped(one.reason), all = at.dropped();
        Bytes both = on_wire(own_wire, frame_of(70));  // what stands before it in its record is good
        both.insert(both.end(), one.plain.begin(), one.plain.end());
        peer.seal(both);
        peer.seal(on_wire(own_wire, good));
        CHECK(at.own.read(5000) == frame_of(70));
        CHECK(at.own.read(5000) == good);
        CHECK(at.dropped(one.reason) == before + 1);
        CHECK(at.dropped() == all + 1);
    }
    CHECK(at.own.read(0).empty());
    CHECK(at.foreign.read(0).empty());
}

TEST_CASE("lane: messages of the session that make no sense change nothing") {
    Listening at;
    Peer peer;
    REQUIRE(peer.finished());
    std::mt19937 random(1);
    for (size_t bytes = 0; bytes < 40; bytes++)
        for (const uint8_t type : {0, 1, 2, 3, 255}) {
            Bytes message(bytes);
            for (auto& byte : message) byte = static_cast<uint8_t>(random());
            if (bytes != 0) message[0] = type;
            peer.seal(entry_of(Entry{}, message));
            while (peer.take(0)) {
            }
        }
    peer.seal(on_wire(own_wire, frame_of(60)));
    CHECK(at.own.read(5000) == frame_of(60));
    CHECK(at.up());
    CHECK(at.dropped() == 0);
}

TEST_CASE("lane: random records deliver nothing that the wire may not carry") {
    Listening at;
    Peer peer;
    REQUIRE(peer.finished());
    std::mt19937 random(7);
    const Bytes like[] = {on_wire(own_wire, frame_of(60)), slice(1, 0, 1000, 500), on_wire(foreign_wire, frame_of(60)),
                          on_wire(own_wire, frame_of(1400), {1, 1, 500, 34, 16})};
    for (int round = 0; round < 5000; round++) {
        Bytes plain = like[random() % 4];
        for (size_t i = random() % 4; i > 0; i--)
            plain[random() % std::min<size_t>(plain.size(), 60)] ^= 1 << random() % 8;
        peer.seal(plain);
        while (peer.take(0)) {
        }
        for (Bytes got = at.own.read(0); !got.empty(); got = at.own.read(0)) CHECK(got.size() >= ethernet_bytes);
    }
    CHECK(within([&] {
        peer.seal(on_wire(own_wire, frame_of(61, 1)));
        return at.own.read(20) == frame_of(61, 1);
    }));
    CHECK(at.foreign.read(0).empty());
    CHECK(at.up());
}

TEST_CASE("lane: no frame is lost when a peer closes a session") {
    Listening at;
    Peer one;
    REQUIRE(one.finished());
    one.seal(on_wire(own_wire, frame_of(60)));
    REQUIRE(at.own.read(5000) == frame_of(60));
    const auto sent = [&](uint64_t frames) {
        return within([&] {
            uint64_t out = 0;
            at.lane->run([&] { out = at.lane->wire(own_wire)->sent.frames; });
            return out == frames;
        });
    };
    for (uint16_t i = 0; i < 20; i++) {
        Peer newer("hv2", static_cast<uint16_t>(500 + i));
        REQUIRE(newer.finished());
        newer.seal(on_wire(own_wire, frame_of(61)));
        REQUIRE(at.own.read(5000) == frame_of(61));
        newer.session->close(newer);
        at.own.write(frame_of(62));  // by the first, which is up
        REQUIRE(sent(i + 1u));
    }
    one.session->close(one);
    at.own.write(frame_of(63));  // waits
    CHECK(within([&] { return !at.up(); }));
    Peer next("hv2", 600);
    REQUIRE(next.finished());
    next.seal(on_wire(own_wire, frame_of(64)));
    CHECK(sent(21));
    CHECK(at.dropped(Drop::no_session) == 0);
}

TEST_CASE("lane: a peer that sends for another host's wire is told of by name") {
    Listening at;
    Peer peer;
    REQUIRE(peer.finished());
    for (int i = 0; i < 3; i++) peer.seal(on_wire(foreign_wire, frame_of(60)));
    uint64_t foreign = 0;
    CHECK(within([&] {
        at.lane->run([&] { foreign = at.lane->channels().at("hv2")->foreign(); });
        return foreign == 3;
    }));
    CHECK(at.foreign.read(0).empty());
}

// IPv4, don't fragment; `payload` bytes in datagrams of 100 each.
std::pair<Bytes, Offload> udp_gso_frame(size_t payload) {
    Bytes frame(42 + payload);
    for (size_t i = 0; i < payload; i++) frame[42 + i] = static_cast<uint8_t>(i / 100);
    put16(&frame[12], 0x0800);
    frame[14] = 0x45;
    put16(&frame[16], static_cast<uint16_t>(28 + payload));
    put16(&frame[20], 0x4000);
    frame[23] = 17;
    put16(&frame[38], static_cast<uint16_t>(8 + payload));
    return {frame, {Offload::needs_csum, Offload::udp_l4, 100, 34, 6}};
}

TEST_CASE("lane: UDP segmentation for a tap that has none comes as datagrams") {
    Listening at;
    at.lane->run([&] {
        Fd tap = at.lane->remove_wire(own_wire);
        at.lane->add_wire(own_wire, "own", "hv2", 1500, std::move(tap), false);
    });
    Peer peer;
    REQUIRE(peer.finished());
    const auto [frame, offload] = udp_gso_frame(250);
    peer.seal(on_wire(own_wire, frame, offload));
    peer.seal(on_wire(own_wire, frame_of(60)));
    for (const size_t bytes : {142u, 142u, 92u}) {
        const Bytes got = at.own.read(5000);
        REQUIRE(got.size() == bytes);
        CHECK(get16(&got[16]) == bytes - 14);
        CHECK(get16(&got[38]) == bytes - 34);
        CHECK(std::equal(got.begin() + 42, got.end(), frame.begin() + (got[42] == 0 ? 42 : got[42] == 1 ? 142 : 242)));
    }
    CHECK(at.own.read(5000) == frame_of(60));
    CHECK(at.dropped() == 0);
}

TEST_CASE("lane: a tap whose device is gone is read no more") {
    Listening at;
    Peer peer;
    REQUIRE(peer.finished());
    auto tap = netlink::create_tap({.name = "gone0", .multi_queue = true});
    REQUIRE_MESSAGE(tap.ok(), why(tap));
    at.lane->run([&] { at.lane->add_wire(77, "gone0", "hv2", 1500, std::move(*tap), true); });
    peer.seal(on_wire(own_wire, frame_of(60)));  // a session: taps are read from here on
    REQUIRE(at.own.read(5000) == frame_of(60));
    at.bench.make(netlink::delete_link("gone0"));
    bool reading = true;
    CHECK(within([&] {
        at.lane->run([&] { reading = at.lane->wire(77)->reading || !at.lane->wire(77)->lost; });
        return !reading;
    }));
    uint64_t before = 0, after = 0;
    at.lane->run([&] { before = at.lane->counters().wakeups + at.lane->counters().polls; });
    peer.seal(on_wire(own_wire, frame_of(61)));
    CHECK(at.own.read(5000) == frame_of(61));
    at.lane->run([&] { after = at.lane->counters().wakeups + at.lane->counters().polls; });
    CHECK(after - before < 1000);  // it does not spin
}
