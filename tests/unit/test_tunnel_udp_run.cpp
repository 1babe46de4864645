// Runs of UDP frames against a reference: each run, cut again by its segment size and with its checksums computed in
// full, must be the frames that went in.
#include <doctest/doctest.h>

#include <functional>
#include <random>
#include <vector>

#include "tunnel/octets.h"
#include "tunnel/udp_run.h"
#include "tunnel/udp_split.h"

using namespace banana::tunnel;

namespace {

using Bytes = std::vector<uint8_t>;

// One frame, with room before it. What is not said here is the same in all.
struct Spec {
    bool v6 = false, vlan = false, partial = true;
    size_t payload = 1000;
    uint8_t fill = 7;
    uint16_t id = 0;
};

struct Frame {
    Bytes bytes;  // from the vnet header on
    Offload offload;
    size_t network = 0, udp = 0;

    std::span<uint8_t> frame() { return std::span(bytes).subspan(vnet_bytes); }
    uint8_t* ip() { return bytes.data() + vnet_bytes + network; }
    uint8_t* transport() { return bytes.data() + vnet_bytes + udp; }
};

uint16_t fold(uint32_t sum) {
    while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
    return static_cast<uint16_t>(sum);
}

uint32_t sum_bytes(std::span<const uint8_t> of, uint32_t sum = 0) {
    for (size_t i = 0; i < of.size(); i++) sum += uint32_t{of[i]} << (i % 2 == 0 ? 8 : 0);
    return fold(sum);
}

// Of a frame whose network header is at `network`: the UDP pseudo header (RFC 768, RFC 8200, 8.1).
uint32_t pseudo_sum(std::span<const uint8_t> frame, size_t network, size_t udp) {
    const bool v6 = frame[network] >> 4 == 6;
    const auto addresses = frame.subspan(network + (v6 ? 8 : 12), v6 ? 32 : 8);
    return sum_bytes(addresses, static_cast<uint32_t>(17 + frame.size() - udp));
}

void complete(std::span<uint8_t> frame, size_t network, size_t udp) {
    put16(&frame[udp + 6], 0);
    const uint16_t sum = static_cast<uint16_t>(~sum_bytes(frame.subspan(udp), pseudo_sum(frame, network, udp)));
    put16(&frame[udp + 6], sum == 0 ? uint16_t{0xffff} : sum);
}

void sum_ipv4(uint8_t* ip) {
    put16(ip + 10, 0);
    put16(ip + 10, static_cast<uint16_t>(~sum_bytes({ip, 20})));
}

Frame make(const Spec& spec) {
    Frame made;
    made.network = spec.vlan ? 18 : 14;
    made.udp = made.network + (spec.v6 ? 40 : 20);
    made.bytes.assign(vnet_bytes + made.udp + 8 + spec.payload, spec.fill);
    for (size_t i = 0; i < spec.payload; i += 3) made.bytes[vnet_bytes + made.udp + 8 + i] = static_cast<uint8_t>(i);
    const auto frame = made.frame();
    for (size_t i = 0; i < 12; i++) frame[i] = static_cast<uint8_t>(0x50 + i);
    if (spec.vlan) {
        put16(&frame[12], 0x8100);
        put16(&frame[14], 42);
    }
    put16(&frame[made.network - 2], spec.v6 ? 0x86dd : 0x0800);
    uint8_t* const ip = made.ip();
    const auto datagram = static_cast<uint16_t>(8 + spec.payload);
    for (size_t i = 0; i < made.udp - made.network; i++) ip[i] = static_cast<uint8_t>(i);
    if (spec.v6) {
        put32(ip, 0x60012345);
        put16(ip + 4, datagram);
        ip[6] = 17;
    } else {
        ip[0] = 0x45;
        put16(ip + 2, static_cast<uint16_t>(20 + datagram));
        put16(ip + 4, spec.id);
        put16(ip + 6, 0x4000);
        ip[9] = 17;
        sum_ipv4(ip);
    }
    uint8_t* const udp = made.transport();
    put16(udp, 4000);
    put16(udp + 2, 5000);
    put16(udp + 4, datagram);
    complete(frame, made.network, made.udp);
    made.offload.flags = Offload::csum_valid;
    if (spec.partial) {
        put16(udp + 6, fold(pseudo_sum(frame, made.network, made.udp)));
        made.offload = {Offload::needs_csum, Offload::none, 0, static_cast<uint16_t>(made.udp), 6};
    }
    return made;
}

// As it would be on a cable: checksums in full. Of a frame with segmentation: its segments.
std::vector<Bytes> on_cable(const Bytes& with_vnet) {
    const Offload offload = read_vnet(with_vnet.data());
    Bytes frame(with_vnet.begin() + vnet_bytes, with_vnet.end());
    const size_t network = link_bytes(frame), udp = network + (frame[network] >> 4 == 6 ? 40 : 20);
    if (offload.flags & Offload::needs_csum) {
        CHECK(get16(&frame[udp + 6]) == fold(pseudo_sum(frame, network, udp)));
        complete(frame, network, udp);
    }
    if (offload.gso_type == Offload::none) return {frame};
    CHECK(offload.gso_type == Offload::udp_l4);
    CHECK(offload.csum_start == udp);
    CHECK(get16(&frame[udp + 4]) == frame.size() - udp);
    const bool v6 = frame[network] >> 4 == 6;
    CHECK(get16(&frame[network + (v6 ? 4 : 2)]) == frame.size() - (v6 ? udp : network));
    CHECK((with_vnet[2] | with_vnet[3] << 8) == static_cast<int>(udp + 8));
    std::vector<Bytes> out;
    for (size_t at = udp + 8; at < frame.size(); at += offload.gso_size) {
        Bytes segment(frame.begin(), frame.begin() + static_cast<long>(udp + 8));
        const size_t end = std::min(frame.size(), at + offload.gso_size);
        segment.insert(segment.end(), frame.begin() + static_cast<long>(at), frame.begin() + static_cast<long>(end));
        const auto datagram = static_cast<uint16_t>(segment.size() - udp);
        put16(&segment[udp + 4], datagram);
        uint8_t* const ip = &segment[network];
        if (ip[0] >> 4 == 6) {
            put16(ip + 4, datagram);
        } else {
            CHECK(sum_bytes({&frame[network], 20}) == 0xffff);
            put16(ip + 2, static_cast<uint16_t>(20 + datagram));
            sum_ipv4(ip);
        }
        complete(segment, network, udp);
        out.push_back(segment);
    }
    return out;
}

// With DF set the identification means nothing, and all of a run get the first one's.
Bytes without_id(Bytes frame) {
    const size_t network = link_bytes(frame);
    if (frame[network] >> 4 == 4) {
        put16(&frame[network + 4], 0);
        sum_ipv4(&frame[network]);
    }
    return frame;
}

Bytes taken(UdpRun& run) {
    Bytes out;
    for (const auto& piece : run.take()) {
        const auto* from = static_cast<const uint8_t*>(piece.iov_base);
        out.insert(out.end(), from, from + piece.iov_len);
    }
    return out;
}

void check_run(UdpRun& run, std::vector<Bytes> expected) {
    const auto got = on_cable(taken(run));
    REQUIRE(got.size() == expected.size());
    for (size_t i = 0; i < got.size(); i++) CHECK(without_id(got[i]) == without_id(expected[i]));
    CHECK(run.empty());
}

Bytes alone(const Frame& frame) {
    Bytes bytes = frame.bytes;
    write_vnet(bytes.data(), frame.offload, 0);
    return on_cable(bytes).at(0);
}

// Whether the second goes on with a run that the first began.
bool merges(Frame first, Frame second) {
    UdpRun run;
    REQUIRE(run.add(first.offload, first.frame()));
    return run.add(second.offload, second.frame());
}

bool begins(Frame frame) {
    UdpRun run;
    return run.add(frame.offload, frame.frame());
}

}  // namespace

TEST_CASE("udp run: frames of one flow go and come back as they were") {
    for (const bool v6 : {false, true})
        for (const bool vlan : {false, true})
            for (const bool partial : {false, true})
                for (const size_t last : {1u, 999u, 1000u}) {
                    INFO("v6 ", v6, " ", "vlan ", vlan, " ", "partial ", partial, " ", "last ", last);
                    UdpRun run;
                    std::vector<Frame> frames;
                    std::vector<Bytes> expected;
                    for (uint16_t i = 0; i < 7; i++)
                        frames.push_back(make({v6, vlan, partial, i == 6 ? last : 1000, static_cast<uint8_t>(i), i}));
                    for (const auto& frame : frames) expected.push_back(alone(frame));
                    for (auto& frame : frames) CHECK(run.add(frame.offload, frame.frame()));
                    CHECK(run.frames() == 7);
                    check_run(run, expected);
                }
}

TEST_CASE("udp run: one frame stays as it is, offload and all") {
    for (const bool partial : {false, true}) {
        Frame frame = make({.partial = partial, .id = 77});
        Bytes expected = frame.bytes;
        write_vnet(expected.data(), frame.offload, 0);
        UdpRun run;
        CHECK(run.add(frame.offload, frame.frame()));
        CHECK(taken(run) == expected);
        CHECK(run.empty());
    }
}

TEST_CASE("udp run: a shorter frame is the last; a longer one is none of it") {
    std::vector<Frame> frames;
    for (const size_t payload : {500u, 500u, 499u, 499u}) frames.push_back(make({.payload = payload}));
    UdpRun run;
    for (size_t i = 0; i < 4; i++) CHECK(run.add(frames[i].offload, frames[i].frame()) == (i < 3));
    CHECK(run.frames() == 3);
    check_run(run, {alone(make({.payload = 500})), alone(make({.payload = 500})), alone(make({.payload = 499}))});
    frames[0] = make({});
    frames[1] = make({});
    for (size_t i = 0; i < 2; i++) CHECK(run.add(frames[i].offload, frames[i].frame()));  // the next run is another
    check_run(run, {alone(make({})), alone(make({}))});
    CHECK_FALSE(merges(make({.payload = 500}), make({.payload = 501})));
    CHECK_FALSE(merges(make({.payload = 500}), make({.payload = 0})));
    CHECK(merges(make({.payload = 1}), make({.payload = 1})));
}

TEST_CASE("udp run: 64 frames and 65 535 bytes are the most") {
    for (const bool v6 : {false, true})
        for (const auto& [payload, most] : {std::pair<size_t, size_t>{100, 64}, {1000, 64}, {1472, 44}, {1022, 64}}) {
            INFO("v6 ", v6, " ", "payload ", payload);
            std::vector<Frame> frames(most + 1);
            std::vector<Bytes> expected;
            UdpRun run;
            for (size_t i = 0; i <= most; i++) {
                frames[i] = make({.v6 = v6, .payload = payload, .fill = static_cast<uint8_t>(i)});
                expected.push_back(alone(frames[i]));
                CHECK(run.add(frames[i].offload, frames[i].frame()) == (i < most));
            }
            expected.pop_back();
            check_run(run, expected);
        }
    // To the byte: 20 + 8 + 27 * 2426 + 5 = 65 535.
    std::vector<Frame> frames;
    for (size_t i = 0; i < 27; i++) frames.push_back(make({.payload = 2426}));
    for (const size_t last : {5u, 6u}) {
        UdpRun run;
        auto copies = frames;
        for (auto& frame : copies) REQUIRE(run.add(frame.offload, frame.frame()));
        Frame end = make({.payload = last});
        CHECK(run.add(end.offload, end.frame()) == (last == 5));
        CHECK(taken(run).size() == vnet_bytes + 14 + (last == 5 ? 65535 : 65530));
    }
}

TEST_CASE("udp run: what is another flow, or differs in its headers") {
    using Change = std::function<void(Frame&)>;
    const auto at = [](size_t network) {
        return [network](Frame& frame) {
            frame.ip()[network] ^= 1;
            if (frame.ip()[0] >> 4 == 4) sum_ipv4(frame.ip());
        };
    };
    const std::vector<Change> of_any = {
        [](Frame& f) { f.frame()[0] ^= 2; },
        [](Frame& f) { f.frame()[11] ^= 1; },
        [](Frame& f) { f.transport()[1] ^= 1; },
        [](Frame& f) { f.transport()[3] ^= 1; },
    };
    std::vector<Change> of_v4 = of_any, of_v6 = of_any;
    for (const size_t byte : {1u, 8u, 12u, 15u, 16u, 19u}) of_v4.push_back(at(byte));  // TOS, TTL, addresses
    for (const size_t byte : {1u, 2u, 3u, 7u, 8u, 23u, 24u, 39u}) of_v6.push_back(at(byte));
    for (const bool v6 : {false, true})
        for (const bool vlan : {false, true}) {
            CHECK(merges(make({.v6 = v6, .vlan = vlan}), make({.v6 = v6, .vlan = vlan, .id = 9})));
            const auto& changes = v6 ? of_v6 : of_v4;
            for (size_t i = 0; i < changes.size(); i++) {
                INFO("v6 ", v6, " ", "vlan ", vlan, " ", "i ", i);
                Frame other = make({.v6 = v6, .vlan = vlan});
                changes[i](other);
                CHECK(begins(other));
                CHECK_FALSE(merges(make({.v6 = v6, .vlan = vlan}), other));
                CHECK_FALSE(merges(other, make({.v6 = v6, .vlan = vlan})));
            }
        }
    Frame tagged = make({.vlan = true});
    tagged.frame()[15]++;
    CHECK_FALSE(merges(make({.vlan = true}), tagged));
    CHECK_FALSE(merges(make({}), make({.vlan = true})));
    CHECK_FALSE(merges(make({}), make({.v6 = true})));
    CHECK_FALSE(merges(make({.partial = true}), make({.partial = false})));
}

TEST_CASE("udp run: frames that are never part of one") {
    const std::vector<std::function<void(Frame&)>> of_v4 = {
        [](Frame& f) { put16(f.ip() + 6, 0), sum_ipv4(f.ip()); },       // may be fragmented: has an identity
        [](Frame& f) { put16(f.ip() + 6, 0x2000), sum_ipv4(f.ip()); },  // more fragments follow
        [](Frame& f) { put16(f.ip() + 6, 0x4001), sum_ipv4(f.ip()); },  // not the first fragment
        [](Frame& f) { put16(f.ip() + 6, 0xc000), sum_ipv4(f.ip()); },  // the reserved bit
        [](Frame& f) { f.ip()[0] = 0x46, sum_ipv4(f.ip()); },           // options
        [](Frame& f) { f.ip()[9] = 6, sum_ipv4(f.ip()); },              // TCP
        [](Frame& f) { f.ip()[11] ^= 1; },                              // a bad checksum of IP's
        [](Frame& f) { put16(f.ip() + 2, get16(f.ip() + 2) - 1), sum_ipv4(f.ip()); },
        [](Frame& f) { f.bytes.resize(f.bytes.size() + 4); },  // padding behind the packet
        [](Frame& f) { f.bytes.resize(f.bytes.size() - 1); },  // cut short
        [](Frame& f) { put16(f.transport() + 6, 0); },         // no checksum
        [](Frame& f) { put16(f.transport() + 4, get16(f.transport() + 4) - 1); },
        [](Frame& f) { put16(&f.frame()[f.network - 2], 0x0806); },
        [](Frame& f) { f.offload.flags = 0; },  // whether its checksum is good is not known
        [](Frame& f) { f.offload.gso_type = Offload::udp_l4, f.offload.gso_size = 100; },
        [](Frame& f) { f.offload.csum_start++; },
        [](Frame& f) { f.offload.csum_offset = 16; },
    };
    const std::vector<std::function<void(Frame&)>> of_v6 = {
        [](Frame& f) { f.ip()[6] = 0; },   // hop-by-hop options
        [](Frame& f) { f.ip()[6] = 44; },  // a fragment
        [](Frame& f) { put16(f.ip() + 4, get16(f.ip() + 4) - 1); },
        [](Frame& f) { put16(f.transport() + 6, 0); },
        [](Frame& f) { f.bytes.resize(f.bytes.size() + 2); },
    };
    for (const bool v6 : {false, true}) {
        const auto& changes = v6 ? of_v6 : of_v4;
        for (size_t i = 0; i < changes.size(); i++) {
            INFO("v6 ", v6, " ", "i ", i);
            Frame frame = make({.v6 = v6});
            changes[i](frame);
            CHECK_FALSE(begins(frame));
            CHECK_FALSE(merges(make({.v6 = v6}), frame));
        }
    }
    CHECK_FALSE(begins(make({.payload = 0})));
    Frame tiny = make({});
    for (const size_t bytes : {14u, 18u, 33u, 34u, 41u, 42u}) {
        tiny.bytes.resize(vnet_bytes + bytes);
        CHECK_FALSE(begins(tiny));
    }
}

TEST_CASE("udp run: any sequence, as a lane feeds it, leaves as it came") {
    std::mt19937 random(42);
    const auto draw = [&](size_t below) { return random() % below; };
    for (int round = 0; round < 50; round++) {
        std::vector<Frame> frames;
        std::vector<Bytes> expected, got;
        const Spec like{draw(2) == 1, draw(2) == 1, draw(2) == 1, 1 + draw(1400)};
        for (size_t i = 0; i < 200; i++) {
            Spec spec = like;
            spec.id = static_cast<uint16_t>(i);
            spec.fill = static_cast<uint8_t>(i);
            if (draw(20) == 0) spec.payload = 1 + draw(1400);
            if (draw(40) == 0) spec.partial = !spec.partial;
            frames.push_back(make(spec));
            if (draw(30) == 0) {  // another flow's
                Frame& other = frames.back();
                other.transport()[3] ^= 1;
                complete(other.frame(), other.network, other.udp);
                other.offload = {Offload::csum_valid};
            }
            expected.push_back(alone(frames.back()));
        }
        UdpRun run;
        const auto leave = [&] {
            if (run.empty()) return;
            for (auto& frame : on_cable(taken(run))) got.push_back(std::move(frame));
        };
        for (auto& frame : frames) {
            if (!run.empty() && run.add(frame.offload, frame.frame())) continue;
            leave();
            REQUIRE(run.add(frame.offload, frame.frame()));
        }
        leave();
        REQUIRE(got.size() == expected.size());
        for (size_t i = 0; i < got.size(); i++) CHECK(without_id(got[i]) == without_id(expected[i]));
    }
}

TEST_CASE("udp split: a run that is taken apart again") {
    for (const bool v6 : {false, true})
        for (const bool vlan : {false, true})
            for (const size_t last : {1u, 7u, 1000u}) {
                INFO("v6 ", v6, " ", "vlan ", vlan, " ", "last ", last);
                UdpRun run;
                std::vector<Frame> frames;
                for (uint16_t i = 0; i < 7; i++)
                    frames.push_back(make({v6, vlan, true, i == 6 ? last : 1000, static_cast<uint8_t>(i), i}));
                for (auto& frame : frames) REQUIRE(run.add(frame.offload, frame.frame()));
                Bytes whole = taken(run);
                const auto expected = on_cable(whole);
                const Offload offload = read_vnet(whole.data());
                REQUIRE(check_frame(offload, std::span(whole).subspan(vnet_bytes), 1500) == std::nullopt);
                UdpSplit split(offload, std::span(whole).subspan(vnet_bytes));
                std::vector<Bytes> got;
                for (auto frame = split.next(); !frame.empty(); frame = split.next()) {
                    write_vnet(frame.data() - vnet_bytes, split.offload(), 0);
                    got.push_back(on_cable(Bytes(frame.data() - vnet_bytes, frame.data() + frame.size())).at(0));
                    const size_t network = link_bytes(got.back());
                    if (!v6) CHECK(get16(&got.back()[network + 4]) == got.size() - 1);  // identifications differ
                }
                REQUIRE(got.size() == expected.size());
                for (size_t i = 0; i < got.size(); i++) CHECK(without_id(got[i]) == without_id(expected[i]));
                CHECK(split.next().empty());
            }
}

TEST_CASE("udp split: headers without payload are one datagram") {
    Frame frame = make({.payload = 0});
    frame.offload.gso_type = Offload::udp_l4;
    frame.offload.gso_size = 100;
    UdpSplit split(frame.offload, frame.frame());
    const Bytes before(frame.frame().begin(), frame.frame().end());
    const auto one = split.next();
    CHECK(Bytes(one.begin(), one.end()) == before);
    CHECK(split.next().empty());
}
