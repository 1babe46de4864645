#include <doctest/doctest.h>

#include <algorithm>
#include <random>

#include "tests/fuzz/frames.h"
#include "tunnel/segment.h"

using namespace banana::tunnel;
using testing::cut;
using testing::Frame;
using testing::make_frame;
using testing::Receiving;
using testing::Shape;

TEST_CASE("tunnel segment: slices with headers of different sizes make no run together") {
    Shape shape;
    shape.payload = 3000;
    shape.gso_size = 1000;
    const auto records = cut(make_frame(shape), 800);
    std::span<const uint8_t> rest = records[1];
    Entry slice = *next_entry(rest);
    Receiving receiving;
    receiving.record(records[0]);
    slice.header_bytes = 20;
    slice.data = slice.data.first(30);  // fewer bytes than the run has headers
    receiving.slice(slice);
    CHECK(receiving.got.size() == 1);
    CHECK(receiving.drops == std::map<Drop, size_t>{{Drop::bad_entry, 1}});
}

TEST_CASE("tunnel segment: slices that cannot be are bad entries") {
    std::vector<uint8_t> bytes(2000, 1);
    Entry slice;
    slice.connector = 7;
    slice.is_slice = true;
    slice.frame_number = 1;
    slice.frame_bytes = 1000;
    slice.data = std::span(bytes).first(500);
    SUBCASE("no bytes") { slice.data = {}; }
    SUBCASE("no bytes at the frame's end") {
        slice.offset = 1000;
        slice.data = {};
    }
    SUBCASE("beyond the frame") { slice.offset = 501; }
    SUBCASE("far beyond the frame") { slice.offset = 0xffffffff; }
    SUBCASE("more than the frame") { slice.data = std::span(bytes).first(1001); }
    SUBCASE("a frame that is too large") { slice.frame_bytes = frame_max + 1; }
    SUBCASE("a frame without an Ethernet header") {
        slice.frame_bytes = 13;
        slice.data = std::span(bytes).first(13);
    }
    SUBCASE("not at a multiple of its size") { slice.offset = 250; }
    SUBCASE("too small for any capacity") { slice.data = std::span(bytes).first(50); }
    SUBCASE("headers repeated where there are none") { slice.header_bytes = 54; }
    SUBCASE("nothing but headers") { slice.header_bytes = 500; }
    Receiving receiving;
    const size_t many = 2 * Joiner::frames_under_way;  // none of them takes a place
    for (; slice.frame_number <= many; ++slice.frame_number) receiving.slice(slice);
    CHECK(receiving.drops == std::map<Drop, size_t>{{Drop::bad_entry, many}});
    CHECK(receiving.joiner.incomplete() == 0);
    CHECK(receiving.lost.empty());
    receiving.flush();
    CHECK(receiving.got.empty());
}

TEST_CASE("tunnel segment: slices that do not fit those that came are bad entries") {
    std::vector<uint8_t> bytes(2000, 1);
    Entry slice;
    slice.connector = 7;
    slice.is_slice = true;
    slice.frame_bytes = 1000;
    Receiving receiving;
    const auto add = [&](uint32_t offset, size_t size) {
        slice.offset = offset;
        slice.data = std::span(bytes).first(size);
        receiving.slice(slice);
    };
    SUBCASE("another size") {
        add(0, 300);
        add(400, 200);
    }
    SUBCASE("a last one that is larger than the others") {
        add(0, 300);
        add(600, 400);
    }
    SUBCASE("a last one elsewhere") {
        add(0, 300);
        add(800, 200);
    }
    SUBCASE("others than the last one allows") {
        add(800, 200);
        add(0, 300);
    }
    SUBCASE("another last one") {
        add(900, 100);
        add(800, 200);
    }
    SUBCASE("all of it, when a part has come") {
        add(0, 300);
        add(0, 1000);
    }
    CHECK(receiving.drops == std::map<Drop, size_t>{{Drop::bad_entry, 1}});
    CHECK(receiving.got.empty());
}

TEST_CASE("tunnel segment: TCP slices that cannot be are bad entries") {
    Shape shape;
    shape.payload = 3000;
    shape.gso_size = 1000;
    const Frame frame = make_frame(shape);
    Frame udp;
    const auto record = cut(frame, 800)[1];
    std::span<const uint8_t> rest = record;
    Entry slice = *next_entry(rest);
    SUBCASE("within the headers") { slice.offset = 53; }
    SUBCASE("beyond the end") { slice.offset = slice.frame_bytes - 1; }
    SUBCASE("a packet that is longer than IP allows") { slice.frame_bytes = frame_max; }
    SUBCASE("other headers than it says") { slice.header_bytes = 66; }
    SUBCASE("no payload") { slice.data = slice.data.first(54); }
    SUBCASE("UDP") { slice.offload.gso_type = Offload::udp_l4; }
    SUBCASE("UDP with its own headers repeated") {
        shape.udp = true;
        udp = make_frame(shape);
        slice.offload = udp.offload;
        slice.header_bytes = 42;
        slice.data = udp.bytes().first(500);
    }
    SUBCASE("no GSO") { slice.offload.gso_type = Offload::none; }
    SUBCASE("no segment size") { slice.offload.gso_size = 0; }
    SUBCASE("no partial checksum") { slice.offload.flags = 0; }
    Receiving receiving;
    receiving.slice(slice);
    receiving.flush();
    CHECK(receiving.drops == std::map<Drop, size_t>{{Drop::bad_entry, 1}});
    CHECK(receiving.got.empty());
}

TEST_CASE("tunnel segment: whatever a peer sends, no more is delivered than came") {
    std::mt19937 random(3);
    Receiving receiving;
    std::vector<uint8_t> bytes(70000);
    for (auto& byte : bytes) byte = static_cast<uint8_t>(random());
    Shape shape;
    shape.payload = 1000;
    shape.gso_size = 100;
    const Frame tcp = make_frame(shape);
    std::ranges::copy(tcp.bytes(), bytes.begin());
    for (int i = 0; i < 20000; ++i) {
        const uint32_t sizes[] = {500, 1000, 1054, 65553};
        Entry slice;
        slice.connector = random() % 2;
        slice.is_slice = true;
        slice.offload = random() % 2 ? tcp.offload : Offload{};
        slice.header_bytes = random() % 2 ? 54 : 0;
        slice.frame_number = static_cast<uint32_t>(random() % 12);
        slice.frame_bytes = sizes[random() % 4];
        slice.offset = static_cast<uint32_t>(random() % 4 ? random() % 10 * 250 : random());
        slice.data = std::span(bytes).first(random() % 2 ? 250 : random() % 65536);
        receiving.slice(slice);
    }
    receiving.flush();
    CHECK(receiving.got.size() > 100);
    CHECK(receiving.bytes_out <= receiving.bytes_in);
    for (const auto& got : receiving.got) CHECK(got.bytes.size() <= frame_max);
}
