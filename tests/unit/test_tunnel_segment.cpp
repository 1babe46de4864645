#include "tunnel/segment.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <functional>
#include <random>

#include "tests/fuzz/frames.h"

using namespace banana::tunnel;
using testing::checksum_fault;
using testing::cut;
using testing::Frame;
using testing::make_frame;
using testing::part_fault;
using testing::Receiving;
using testing::Shape;

namespace {

constexpr size_t capacities[] = {256, 300, 1000, 1237, 1391, 1399, 8900, 16384};

// TCP frames with GSO, of every kind that is told apart.
std::vector<Shape> tcp_shapes() {
    std::vector<Shape> shapes;
    for (const bool ipv6 : {false, true})
        for (const bool vlan : {false, true})
            for (const size_t tcp_options : {0, 12, 40})
                for (const size_t ip_options : {0, 16}) {
                    Shape shape;
                    shape.ipv6 = ipv6;
                    shape.vlan = vlan;
                    shape.tcp_options = tcp_options;
                    shape.ip_options = ip_options;
                    shape.payload = 5000;
                    shape.gso_size = 1200;
                    shape.tcp_flags = 0x99;               // CWR, ACK, PSH, FIN
                    shape.sequence = 0xffffff00u - 1000;  // wraps within the frame
                    shape.seed = static_cast<uint32_t>(shapes.size() + 1);
                    shapes.push_back(shape);
                }
    return shapes;
}

Shape plain_shape(size_t payload, uint32_t seed = 1) {
    Shape shape;
    shape.udp = true;
    shape.payload = payload;
    shape.seed = seed;
    return shape;
}

bool identical(const Receiving::Got& got, const Frame& sent) {
    return got.offload == sent.offload && std::ranges::equal(got.bytes, sent.bytes());
}

// All that was delivered are right parts of `sent`; returns which bytes of its payload came.
std::vector<bool> parts(const Receiving& receiving, const Frame& sent) {
    std::vector<bool> come(sent.bytes().size() - gso_header_bytes(sent.offload, sent.bytes()));
    for (const auto& got : receiving.got) {
        size_t begin = 0, end = 0;
        CHECK(part_fault(sent, got.offload, got.bytes, begin, end) == "");
        CHECK(checksum_fault(got.offload, got.bytes) == "");
        CHECK_FALSE(check_frame(got.offload, got.bytes, 1500));
        REQUIRE(end <= come.size());
        const auto first = come.begin() + static_cast<ptrdiff_t>(begin),
                   last = come.begin() + static_cast<ptrdiff_t>(end);
        CHECK(std::none_of(first, last, std::identity()));
        std::fill(first, last, true);
    }
    return come;
}

size_t payload_at(const std::vector<uint8_t>& record, size_t header) {
    std::span<const uint8_t> rest = record;
    const auto entry = next_entry(rest);
    return entry->offset == 0 ? 0 : entry->offset - header;
}

}  // namespace

TEST_CASE("tunnel segment: random frames come through whole, at any capacity") {
    std::mt19937 random(20240607);
    Receiving receiving;
    for (int i = 0; i < 1500; ++i) {
        Shape shape;
        shape.ipv6 = random() % 2;
        shape.vlan = random() % 3 == 0;
        shape.udp = random() % 3 == 0;
        shape.ip_options = random() % 3 == 0 ? 16 : 0;
        shape.tcp_options = random() % 11 * 4;
        shape.payload = random() % (i % 10 == 0 ? 65300 : 4000);
        shape.checksum = random() % 4 != 0;
        shape.gso_size = shape.checksum && random() % 2 ? static_cast<uint16_t>(random() % 1400 + 1) : 0;
        shape.tcp_flags = static_cast<uint8_t>(random());
        shape.sequence = static_cast<uint32_t>(random());
        shape.seed = static_cast<uint32_t>(random());
        const Frame frame = make_frame(shape);
        const size_t capacity = random() % 2 ? capacities[random() % std::size(capacities)] : 256 + random() % 2000;
        receiving.got.clear();
        for (const auto& record : cut(frame, capacity, static_cast<uint32_t>(i))) {
            CHECK(record.size() <= capacity);
            receiving.record(record);
        }
        REQUIRE(receiving.got.size() == 1);  // at once, without a flush
        REQUIRE(identical(receiving.got[0], frame));
        CHECK(receiving.got[0].connector == 7);
    }
    CHECK(receiving.drops.empty());
    CHECK(receiving.joiner.incomplete() == 0);
}

TEST_CASE("tunnel segment: slices are as many as are needed, and equal but for the last") {
    for (const size_t capacity : capacities)
        for (const bool gso : {false, true})
            for (const size_t payload : {1u, 100u, 227u, 1300u, 1448u, 3000u, 30000u, 65400u}) {
                Shape shape;
                shape.payload = payload;
                shape.gso_size = gso ? 1448 : 0;
                Frame frame = make_frame(shape);
                const size_t size = frame.bytes().size(), header = gso ? 54 : 0;
                const size_t room = capacity - slice_headroom - header;
                Cutter cutter(1, frame.offload, frame.bytes(), 1, capacity);
                CHECK(cutter.slices() == (size - header + room - 1) / room);
                for (size_t i = 0; i < cutter.slices(); ++i) {
                    const auto slice = cutter.next();
                    REQUIRE_FALSE(slice.empty());
                    CHECK(cutter.record_bytes() <= capacity);
                    if (i + 1 < cutter.slices())
                        CHECK(slice.size() == cutter.record_bytes());
                    else
                        CHECK(slice.size() <= cutter.record_bytes());
                }
                CHECK(cutter.next().empty());
                CHECK(cutter.next().empty());
            }
}

TEST_CASE("tunnel segment: the Cutter writes within the frame and its headroom, copying no payload") {
    Shape shape;
    shape.payload = 4000;
    shape.gso_size = 1000;
    Frame frame = make_frame(shape);
    const auto before = frame.buffer;
    Cutter cutter(1, frame.offload, frame.bytes(), 1, 1000);
    for (auto slice = cutter.next(); !slice.empty(); slice = cutter.next()) {
        const auto at = static_cast<size_t>(slice.data() - frame.buffer.data());
        REQUIRE(at + slice.size() <= frame.buffer.size());
        const size_t payload = slice_headroom + 54;
        CHECK(std::equal(slice.begin() + payload, slice.end(), before.begin() + static_cast<ptrdiff_t>(at + payload)));
        CHECK(std::equal(slice.begin() + slice_headroom, slice.begin() + payload, before.begin() + slice_headroom));
    }
}

TEST_CASE("tunnel segment: without one slice of a TCP frame, all the others' bytes are delivered") {
    for (const Shape& shape : tcp_shapes()) {
        const Frame frame = make_frame(shape);
        REQUIRE(checksum_fault(frame.offload, frame.bytes()) == "");
        const size_t header = gso_header_bytes(frame.offload, frame.bytes());
        for (const size_t capacity : {400u, 1391u}) {
            const auto records = cut(frame, capacity);
            REQUIRE(records.size() > 3);
            for (size_t lost = 0; lost < records.size(); ++lost) {
                Receiving receiving;
                for (size_t i = 0; i < records.size(); ++i)
                    if (i != lost) receiving.record(records[i]);
                receiving.flush();
                CHECK(receiving.got.size() == (lost == 0 || lost + 1 == records.size() ? 1 : 2));
                const auto come = parts(receiving, frame);
                const size_t begin = payload_at(records[lost], header);
                const size_t end = lost + 1 == records.size() ? come.size() : payload_at(records[lost + 1], header);
                std::vector<bool> wanted(come.size(), true);
                std::fill(wanted.begin() + static_cast<ptrdiff_t>(begin), wanted.begin() + static_cast<ptrdiff_t>(end),
                          false);
                CHECK((come == wanted));
                CHECK(receiving.drops.empty());
            }
        }
    }
}

TEST_CASE("tunnel segment: a TCP frame's slices in any order are all delivered") {
    std::mt19937 random(7);
    for (const Shape& shape : tcp_shapes()) {
        const Frame frame = make_frame(shape);
        auto records = cut(frame, 500);
        for (int round = 0; round < 5; ++round) {
            std::shuffle(records.begin(), records.end(), random);
            Receiving receiving;
            for (const auto& record : records) receiving.record(record);
            receiving.flush();
            const auto come = parts(receiving, frame);
            CHECK(std::ranges::all_of(come, std::identity()));
        }
    }
}

TEST_CASE("tunnel segment: FIN and PSH go with a frame's end, CWR and its mark with the beginning") {
    Shape shape;
    shape.payload = 3000;
    shape.gso_size = 500;
    shape.tcp_flags = 0x99;
    const Frame frame = make_frame(shape);
    const auto records = cut(frame, 1100);
    REQUIRE(records.size() == 3);
    Receiving receiving;
    for (const size_t i : {0, 2, 1}) receiving.record(records[i]);
    receiving.flush();
    REQUIRE(receiving.got.size() == 3);
    const size_t flags = 14 + 20 + 13;
    CHECK(receiving.got[0].bytes[flags] == 0x90);
    CHECK(receiving.got[0].offload.gso_type == (Offload::tcp4 | Offload::ecn));
    CHECK(receiving.got[1].bytes[flags] == 0x19);
    CHECK(receiving.got[1].offload.gso_type == Offload::tcp4);
    CHECK(receiving.got[2].bytes[flags] == 0x10);
    CHECK(receiving.got[2].offload.gso_type == Offload::tcp4);
    CHECK(receiving.got[2].offload.gso_size == 500);
}

TEST_CASE("tunnel segment: a run of one segment has no GSO any more, and a partial checksum still") {
    Shape shape;
    shape.payload = 3000;
    shape.gso_size = 1000;
    const Frame frame = make_frame(shape);
    const auto records = cut(frame, slice_headroom + 54 + 1000);
    REQUIRE(records.size() == 3);
    Receiving receiving;
    receiving.record(records[1]);
    receiving.flush();
    REQUIRE(receiving.got.size() == 1);
    CHECK(receiving.got[0].offload == Offload{Offload::needs_csum, Offload::none, 0, 34, 16});
    parts(receiving, frame);
}

TEST_CASE("tunnel segment: a run ends where another frame or wire begins") {
    Shape shape;
    shape.payload = 3000;
    shape.gso_size = 1000;
    const Frame first = make_frame(shape);
    shape.seed = 2;
    const Frame second = make_frame(shape);
    Receiving receiving;
    receiving.record(cut(first, 800, 1)[0]);
    SUBCASE("the next frame") { receiving.record(cut(second, 800, 2)[1]); }
    SUBCASE("another wire's frame of that number") { receiving.record(cut(second, 800, 1, 8)[1]); }
    SUBCASE("a plain one") { receiving.record(cut(make_frame(plain_shape(1400)), 800, 2)[0]); }
    REQUIRE(receiving.got.size() == 1);
    CHECK(receiving.got[0].connector == 7);
    parts(receiving, first);
}

TEST_CASE("tunnel segment: both checksums are mended rightly whatever they were") {
    Shape shape;
    shape.payload = 100;
    shape.gso_size = 20;
    Frame frame = make_frame(shape);
    const auto bytes = frame.bytes();
    bytes[16] = bytes[17] = 0;  // a total length that is less than the run's: its sum carries twice
    Entry slice;
    slice.is_slice = true;
    slice.offload = frame.offload;
    slice.header_bytes = 54;
    slice.frame_bytes = 154;
    slice.data = bytes.first(54 + 40);
    const auto word = [](std::span<const uint8_t> in, size_t at) { return uint32_t{in[at]} << 8 | in[at + 1]; };
    Joiner joiner;
    size_t right = 0;
    for (uint32_t value = 0; value < 0x10000; ++value) {
        for (const size_t at : {24, 50}) {  // IPv4 header checksum, TCP checksum
            bytes[at] = static_cast<uint8_t>(value >> 8);
            bytes[at + 1] = static_cast<uint8_t>(value);
        }
        const Deliver deliver = [&](uint32_t, const Offload&, std::span<uint8_t> got) {
            const auto ip = testing::ones_sum(got.subspan(14, 20)), was = testing::ones_sum(bytes.subspan(14, 20));
            // 120 bytes of TCP have become 60
            right += ip % 65535 == was % 65535 && (word(got, 50) + 60) % 65535 == value % 65535;
        };
        joiner.add(slice, deliver);
        joiner.flush(deliver);
    }
    CHECK(right == 0x10000);
}

TEST_CASE("tunnel segment: frames whose headers leave no room are cut without them") {
    Shape shape;
    shape.ipv6 = true;
    shape.ip_options = 104;
    shape.tcp_options = 40;
    shape.payload = 3000;
    shape.gso_size = 1000;
    const Frame frame = make_frame(shape);
    REQUIRE(gso_header_bytes(frame.offload, frame.bytes()) == 218);
    const auto without = cut(frame, 300), with = cut(frame, 400);
    std::span<const uint8_t> rest = without[1];
    CHECK(next_entry(rest)->header_bytes == 0);
    rest = with[1];
    CHECK(next_entry(rest)->header_bytes == 218);
    Receiving receiving;
    for (const auto& record : without) receiving.record(record);
    REQUIRE(receiving.got.size() == 1);
    CHECK(identical(receiving.got[0], frame));
}

TEST_CASE("tunnel segment: plain frames' slices come in any order") {
    std::mt19937 random(11);
    Shape udp_gso = plain_shape(30000);
    udp_gso.gso_size = 1000;
    for (const Shape& shape : {plain_shape(186), plain_shape(1472), plain_shape(8000), udp_gso})
        for (const size_t capacity : {256u, 700u, 1391u}) {
            const Frame frame = make_frame(shape);
            auto records = cut(frame, capacity);
            Receiving receiving;
            for (int round = 0; round < 10; ++round) {
                std::shuffle(records.begin(), records.end(), random);
                for (const auto& record : records) receiving.record(record);
                REQUIRE(receiving.got.size() == static_cast<size_t>(round + 1));
                CHECK(identical(receiving.got.back(), frame));
            }
            CHECK(receiving.drops.empty());
        }
}

TEST_CASE("tunnel segment: of a plain frame, all slices are needed; each is taken once") {
    const Frame frame = make_frame(plain_shape(1472));
    const auto records = cut(frame, 400);
    REQUIRE(records.size() == 5);
    for (size_t lost = 0; lost < records.size(); ++lost) {
        Receiving receiving;
        for (size_t i = 0; i < records.size(); ++i) {
            if (i == lost) continue;
            receiving.record(records[i]);
            receiving.record(records[i]);
        }
        receiving.flush();
        CHECK(receiving.got.empty());
        CHECK(receiving.drops[Drop::bad_entry] == records.size() - 1);
        receiving.record(records[lost]);
        REQUIRE(receiving.got.size() == 1);
        CHECK(identical(receiving.got[0], frame));
    }
}

TEST_CASE("tunnel segment: several plain frames are under way; the oldest gives way") {
    constexpr uint32_t count = Joiner::frames_under_way;
    std::vector<Frame> frames;
    std::vector<std::vector<std::vector<uint8_t>>> records;
    for (uint32_t i = 0; i <= count; ++i) {
        frames.push_back(make_frame(plain_shape(1000 + i, i + 1)));
        records.push_back(cut(frames.back(), 600, i, 100 + i));
        REQUIRE(records.back().size() == 2);
    }
    Receiving receiving;
    for (uint32_t i = 0; i < count; ++i) receiving.record(records[i][0]);
    SUBCASE("all of them are completed") {
        for (uint32_t i = count; i-- > 0;) receiving.record(records[i][1]);
        REQUIRE(receiving.got.size() == count);
        for (uint32_t i = 0; i < count; ++i) CHECK(identical(receiving.got[count - 1 - i], frames[i]));
        CHECK(receiving.joiner.incomplete() == 0);
    }
    SUBCASE("one more, and the first is given up") {
        receiving.record(records[count][0]);
        CHECK(receiving.drops[Drop::incomplete] == 1);
        CHECK(receiving.lost == std::vector<uint32_t>{100});
        for (uint32_t i = 1; i <= count; ++i) receiving.record(records[i][1]);
        REQUIRE(receiving.got.size() == count);
        for (uint32_t i = 1; i <= count; ++i) CHECK(identical(receiving.got[i - 1], frames[i]));
        CHECK(receiving.joiner.incomplete() == 1);
    }
}

TEST_CASE("tunnel segment: what is left of a frame is gone long before its number comes again") {
    const Frame old = make_frame(plain_shape(1000, 1)), young = make_frame(plain_shape(1000, 2));
    Shape tcp;
    tcp.payload = 3000;
    tcp.gso_size = 1000;
    Receiving receiving;
    const uint32_t number = 0xffffffe0;  // the numbers wrap meanwhile
    receiving.record(cut(old, 600, number)[0]);
    SUBCASE("a plain frame follows") {
        receiving.record(cut(young, 600, number + Joiner::frames_apart_max)[0]);
        CHECK(receiving.joiner.incomplete() == 0);
        receiving.record(cut(young, 600, number + Joiner::frames_apart_max + 1)[0]);
    }
    SUBCASE("a TCP frame follows") {
        receiving.record(cut(make_frame(tcp), 600, number + Joiner::frames_apart_max)[0]);
        CHECK(receiving.joiner.incomplete() == 0);
        receiving.record(cut(make_frame(tcp), 600, number + Joiner::frames_apart_max + 1)[0]);
    }
    CHECK(receiving.joiner.incomplete() == 1);
    CHECK(receiving.drops[Drop::incomplete] == 1);
    CHECK(receiving.lost == std::vector<uint32_t>{7});
    receiving.got.clear();
    for (const auto& record : cut(young, 600, number)) receiving.record(record);
    receiving.flush();
    CHECK(std::ranges::any_of(receiving.got, [&](const auto& got) { return identical(got, young); }));
}
