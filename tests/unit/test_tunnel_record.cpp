#include <doctest/doctest.h>

#include <set>
#include <string>

#include "base/bytes.h"
#include "tests/fuzz/frames.h"
#include "tunnel/record.h"
#include "tunnel/wire_format.h"

using namespace banana;
using namespace banana::tunnel;
using testing::make_frame;
using testing::Shape;

namespace {

std::vector<uint8_t> bytes_of(const std::string& hex) {
    std::string compact;
    for (const char c : hex)
        if (c != ' ') compact += c;
    const auto raw = from_hex(compact);
    REQUIRE(raw.ok());
    return {raw->begin(), raw->end()};
}

Entry frame_entry() {
    Entry entry;
    entry.connector = 0x0badcafe;
    entry.offload = {Offload::needs_csum, Offload::tcp4 | Offload::ecn, 1448, 34, 16};
    return entry;
}

Entry slice_entry() {
    Entry entry = frame_entry();
    entry.is_slice = true;
    entry.header_bytes = 66;
    entry.frame_number = 0x01020304;
    entry.offset = 0xabcd;
    entry.frame_bytes = 0x0001000d;
    return entry;
}

std::vector<uint8_t> written(const Entry& entry, const std::vector<uint8_t>& data) {
    std::vector<uint8_t> record(entry_bytes + slice_bytes);
    record.resize(write_entry(record.data(), entry, data.size()));
    record.insert(record.end(), data.begin(), data.end());
    return record;
}

void check_same(const Entry& got, const Entry& wanted) {
    CHECK(got.connector == wanted.connector);
    CHECK(got.offload == wanted.offload);
    CHECK(got.is_slice == wanted.is_slice);
    CHECK(got.header_bytes == wanted.header_bytes);
    CHECK(got.frame_number == wanted.frame_number);
    CHECK(got.offset == wanted.offset);
    CHECK(got.frame_bytes == wanted.frame_bytes);
}

std::optional<Drop> verdict(const testing::Frame& frame, uint32_t mtu = 1500) {
    return check_frame(frame.offload, frame.bytes(), mtu);
}

}  // namespace

TEST_CASE("tunnel record: entries are read as they were written, several in a record") {
    std::vector<uint8_t> record = written(frame_entry(), {1, 2, 3});
    CHECK(record.size() == entry_bytes + 3);
    const auto second = written(slice_entry(), {4, 5});
    CHECK(second.size() == entry_bytes + slice_bytes + 2);
    record.insert(record.end(), second.begin(), second.end());
    const auto empty = written({}, {});
    record.insert(record.end(), empty.begin(), empty.end());

    std::span<const uint8_t> rest = record;
    auto entry = next_entry(rest);
    REQUIRE(entry);
    check_same(*entry, frame_entry());
    CHECK(std::vector(entry->data.begin(), entry->data.end()) == std::vector<uint8_t>{1, 2, 3});
    entry = next_entry(rest);
    REQUIRE(entry);
    check_same(*entry, slice_entry());
    CHECK(std::vector(entry->data.begin(), entry->data.end()) == std::vector<uint8_t>{4, 5});
    entry = next_entry(rest);
    REQUIRE(entry);
    check_same(*entry, {});
    CHECK(entry->data.empty());
    CHECK(rest.empty());
    CHECK_FALSE(next_entry(rest));
}

TEST_CASE("tunnel record: an entry that is cut short or unknown is not read, and stays") {
    for (const auto& record : {written(frame_entry(), {1, 2, 3}), written(slice_entry(), {4, 5})}) {
        for (size_t size = 1; size < record.size(); ++size) {
            const std::vector<uint8_t> short_one(record.begin(), record.begin() + static_cast<ptrdiff_t>(size));
            std::span<const uint8_t> rest = short_one;
            CHECK_FALSE(next_entry(rest));
            CHECK(rest.size() == size);
        }
        for (int bit = 0; bit < 8; ++bit) {
            const uint8_t flag = static_cast<uint8_t>(1 << bit);
            auto changed = record;
            changed[6] |= flag;
            std::span<const uint8_t> rest = changed;
            const bool known = flag == Offload::needs_csum || flag == Offload::csum_valid || changed == record;
            // A frame's entry that claims to be a slice is read as one, and is too short.
            CHECK(next_entry(rest).has_value() == known);
        }
    }
    auto record = written(frame_entry(), {1});
    record[15] = 1;  // headers repeated, in what is no slice
    std::span<const uint8_t> rest = record;
    CHECK_FALSE(next_entry(rest));
}

TEST_CASE("tunnel record: virtio's flags beside ours do not get into an entry's") {
    Entry entry = frame_entry();
    entry.offload.flags = 0xff;
    const auto record = written(entry, {1});
    std::span<const uint8_t> rest = record;
    const auto got = next_entry(rest);
    REQUIRE(got);
    CHECK(got->offload.flags == (Offload::needs_csum | Offload::csum_valid));
    CHECK_FALSE(got->is_slice);
}

TEST_CASE("tunnel record: a tap's header is little-endian") {
    const auto vnet = bytes_of("01 81 4200 a805 2200 1000");
    REQUIRE(vnet.size() == vnet_bytes);
    CHECK(read_vnet(vnet.data()) == frame_entry().offload);
    std::vector<uint8_t> made(vnet_bytes);
    write_vnet(made.data(), frame_entry().offload, 66);
    CHECK(made == vnet);
}

TEST_CASE("tunnel record: test vectors of doc/dtls-wire.md") {
    SUBCASE("datagram headers") {
        uint8_t raw[handshake_header_bytes];
        CHECK(write_header(raw, {DatagramKind::data, 3, 0x0102, 0, 0}) == 4);
        CHECK(std::vector<uint8_t>(raw, raw + 4) == bytes_of("22 03 0102"));
        CHECK(write_header(raw, {DatagramKind::hello, 3, 0, 1, 0x0203}) == 8);
        CHECK(std::vector<uint8_t>(raw, raw + 8) == bytes_of("20 03 0000 00 01 0203"));
        CHECK(write_header(raw, {DatagramKind::handshake, 3, 0x0102, 1, 0x0203}) == 8);
        CHECK(std::vector<uint8_t>(raw, raw + 8) == bytes_of("21 03 0102 00 01 0203"));
    }
    SUBCASE("a frame without offload, then one with a partial checksum") {
        Entry plain;
        plain.connector = 0x0badcafe;
        auto record = written(plain, bytes_of("ffffffffffff 525400123456 88b5 beef"));
        Entry udp = plain;
        udp.offload = {Offload::needs_csum, Offload::none, 0, 34, 6};
        const auto second = written(udp, bytes_of("525400123456 525400654321 0800"));
        record.insert(record.end(), second.begin(), second.end());
        CHECK(record == bytes_of("0badcafe 0010 00 00 0000 0000 0000 0000 ffffffffffff 525400123456 88b5 beef"
                                 "0badcafe 000e 01 00 0000 0022 0006 0000 525400123456 525400654321 0800"));
    }
    SUBCASE("a slice of a TCP frame") {
        CHECK(written(slice_entry(), bytes_of("0011")) ==
              bytes_of("0badcafe 0002 81 81 05a8 0022 0010 0042 01020304 0000abcd 0001000d 0011"));
    }
    SUBCASE("slices of a TCP frame, as the Cutter makes them") {
        // 54 bytes of headers, 400 of payload, capacity 400: two slices with 200 bytes of payload each.
        Shape shape;
        shape.payload = 400;
        shape.gso_size = 300;
        const auto frame = make_frame(shape);
        const auto records = testing::cut(frame, 400, 0x2a, 0x0badcafe);
        REQUIRE(records.size() == 2);
        const auto begins = [](const std::vector<uint8_t>& record) {
            return std::vector<uint8_t>(record.begin(), record.begin() + slice_headroom);
        };
        CHECK(begins(records[0]) == bytes_of("0badcafe 00fe 81 01 012c 0022 0010 0036 0000002a 00000000 000001c6"));
        CHECK(begins(records[1]) == bytes_of("0badcafe 00fe 81 01 012c 0022 0010 0036 0000002a 000000fe 000001c6"));
    }
    SUBCASE("slices of a plain frame") {
        const auto frame = testing::frame_of(std::vector<uint8_t>(301, 0x55), {});
        const auto records = testing::cut(frame, 256, 0x2b, 0x0badcafe);
        REQUIRE(records.size() == 2);
        std::vector<uint8_t> first = bytes_of("0badcafe 0097 80 00 0000 0000 0000 0000 0000002b 00000000 0000012d");
        std::vector<uint8_t> second = bytes_of("0badcafe 0096 80 00 0000 0000 0000 0000 0000002b 00000097 0000012d");
        first.resize(first.size() + 151, 0x55);
        second.resize(second.size() + 150, 0x55);
        CHECK(records[0] == first);
        CHECK(records[1] == second);
    }
}

TEST_CASE("tunnel record: test vector of doc/dtls-wire.md: a run is mended") {
    const auto sent = bytes_of(
        "525400123456 525400654321 0800 45000034123440004006148e0a0000010a000002"
        "1f90c35010000000010203045098fff014290000 6162636465666768696a6b6c");
    const auto mended = bytes_of(
        "525400123456 525400654321 0800 4500003012344000400614920a0000010a000002"
        "1f90c35010000004010203045018fff014250000 65666768696a6b6c");
    const testing::Frame frame =
        testing::frame_of(sent, {Offload::needs_csum, Offload::tcp4 | Offload::ecn, 4, 34, 16});
    CHECK(testing::checksum_fault(frame.offload, sent) == "");
    std::vector<uint8_t> data(sent.begin(), sent.begin() + 54);
    data.insert(data.end(), sent.begin() + 58, sent.end());
    Entry slice;
    slice.connector = 7;
    slice.offload = frame.offload;
    slice.is_slice = true;
    slice.header_bytes = 54;
    slice.offset = 58;
    slice.frame_bytes = 66;
    slice.data = data;
    testing::Receiving receiving;
    receiving.slice(slice);
    receiving.flush();
    REQUIRE(receiving.got.size() == 1);
    CHECK(receiving.got[0].bytes == mended);
    CHECK(receiving.got[0].offload == Offload{Offload::needs_csum, Offload::tcp4, 4, 34, 16});
}

TEST_CASE("tunnel record: a frame's size is held to the MTU, a VLAN tag aside") {
    const auto of_size = [](size_t bytes, uint16_t type) {
        std::vector<uint8_t> frame(bytes, 0);
        if (bytes > 13) {
            frame[12] = static_cast<uint8_t>(type >> 8);
            frame[13] = static_cast<uint8_t>(type);
        }
        return check_frame({}, frame, 1500);
    };
    CHECK(of_size(0, 0) == Drop::runt);
    CHECK(of_size(13, 0x0800) == Drop::runt);
    CHECK_FALSE(of_size(14, 0x0800));
    CHECK(of_size(17, 0x8100) == Drop::runt);
    CHECK_FALSE(of_size(18, 0x8100));
    CHECK_FALSE(of_size(1514, 0x0800));
    CHECK(of_size(1515, 0x0800) == Drop::oversized);
    CHECK_FALSE(of_size(1518, 0x8100));
    CHECK_FALSE(of_size(1518, 0x88a8));
    CHECK(of_size(1519, 0x8100) == Drop::oversized);
}

TEST_CASE("tunnel record: headers of frames with GSO are measured") {
    Shape shape;
    shape.payload = 3000;
    shape.gso_size = 1000;
    size_t wanted = 54;
    SUBCASE("IPv4") {}
    SUBCASE("IPv4 and TCP options, tagged") {
        shape.vlan = true;
        shape.ip_options = 8;
        shape.tcp_options = 12;
        wanted = 78;
    }
    SUBCASE("IPv6") {
        shape.ipv6 = true;
        wanted = 74;
    }
    SUBCASE("IPv6 with an extension header") {
        shape.ipv6 = true;
        shape.ip_options = 16;
        shape.tcp_options = 40;
        wanted = 130;
    }
    SUBCASE("UDP over IPv4") {
        shape.udp = true;
        wanted = 42;
    }
    SUBCASE("UDP over IPv6") {
        shape.udp = shape.ipv6 = true;
        wanted = 62;
    }
    const auto frame = make_frame(shape);
    CHECK(gso_header_bytes(frame.offload, frame.bytes()) == wanted);
    CHECK(gso_header_bytes(frame.offload, frame.bytes().first(wanted)) == wanted);
    for (size_t size = 0; size < wanted; ++size) {
        const std::vector<uint8_t> beginning(frame.bytes().begin(),
                                             frame.bytes().begin() + static_cast<ptrdiff_t>(size));
        CHECK(gso_header_bytes(frame.offload, beginning) == 0);
    }
    CHECK_FALSE(verdict(frame));
    // headers + gso_size are what a segment of it is long
    const uint32_t fits = static_cast<uint32_t>(wanted + shape.gso_size - (shape.vlan ? 18 : 14));
    CHECK_FALSE(verdict(frame, fits));
    CHECK(verdict(frame, fits - 1) == Drop::oversized);
}

TEST_CASE("tunnel record: GSO frames up to the largest IP packet, UDP up to 128 segments") {
    Shape shape;
    shape.gso_size = 1448;
    shape.payload = 65535 - 40;
    CHECK_FALSE(verdict(make_frame(shape)));
    shape.payload += 1;
    CHECK(verdict(make_frame(shape)) == Drop::oversized);
    shape.vlan = true;
    shape.payload -= 1;
    CHECK_FALSE(verdict(make_frame(shape)));
    shape.payload += 1;
    CHECK(verdict(make_frame(shape)) == Drop::oversized);
    shape = {};
    shape.udp = true;
    shape.gso_size = 10;
    shape.payload = 1280;
    CHECK_FALSE(verdict(make_frame(shape)));
    shape.payload = 1281;
    CHECK(verdict(make_frame(shape)) == Drop::bad_offload);
}

TEST_CASE("tunnel record: offload states that do not fit their frame are refused") {
    Shape shape;
    shape.payload = 3000;
    shape.gso_size = 1000;
    shape.vlan = true;
    auto frame = make_frame(shape);
    const size_t ip = 18, tcp = 38;
    REQUIRE_FALSE(verdict(frame));
    Offload& offload = frame.offload;
    SUBCASE("no partial checksum") { offload.flags = 0; }
    SUBCASE("an unknown flag") { offload.flags |= 4; }
    SUBCASE("no segment size") { offload.gso_size = 0; }
    SUBCASE("the other IP version's type") { offload.gso_type = Offload::tcp6; }
    SUBCASE("UDP for TCP") { offload.gso_type = Offload::udp_l4; }
    SUBCASE("UDP fragmentation, which no kernel does any more") { offload.gso_type = 3; }
    SUBCASE("a type that is not known") { offload.gso_type = 2; }
    SUBCASE("ECN without TCP") { offload.gso_type = Offload::ecn; }
    SUBCASE("ECN with UDP") { offload.gso_type = Offload::udp_l4 | Offload::ecn; }
    SUBCASE("checksum elsewhere") { offload.csum_offset = 6; }
    SUBCASE("transport elsewhere") { offload.csum_start += 4; }
    SUBCASE("transport before the IP header") { offload.csum_start = ip; }
    SUBCASE("transport in the Ethernet header") { offload.csum_start = 4; }
    SUBCASE("transport beyond the frame") { offload.csum_start = 3100; }
    SUBCASE("another protocol") { frame.bytes()[ip + 9] = 17; }
    SUBCASE("another IP version") { frame.bytes()[ip] = 0x65; }
    SUBCASE("IP header too short") {
        frame.bytes()[ip] = 0x44;
        offload.csum_start -= 4;
        frame.bytes()[tcp - 4 + 12] = 0x50;
    }
    SUBCASE("a fragment") { frame.bytes()[ip + 7] = 1; }
    SUBCASE("more fragments") { frame.bytes()[ip + 6] = 0x20; }
    SUBCASE("TCP header too short") { frame.bytes()[tcp + 12] = 0x40; }
    SUBCASE("not IP") { frame.bytes()[16] = 0x86; }
    CHECK(verdict(frame) == Drop::bad_offload);
}

TEST_CASE("tunnel record: UDP with GSO") {
    Shape shape;
    shape.udp = true;
    shape.payload = 3000;
    shape.gso_size = 1000;
    auto frame = make_frame(shape);
    REQUIRE_FALSE(verdict(frame));
    SUBCASE("checksum elsewhere") { frame.offload.csum_offset = 16; }
    SUBCASE("ECN") { frame.offload.gso_type |= Offload::ecn; }
    SUBCASE("TCP's type") { frame.offload.gso_type = Offload::tcp4; }
    CHECK(verdict(frame) == Drop::bad_offload);
}

TEST_CASE("tunnel record: IPv6 with GSO") {
    Shape shape;
    shape.ipv6 = true;
    shape.payload = 3000;
    shape.gso_size = 1000;
    auto frame = make_frame(shape);
    REQUIRE_FALSE(verdict(frame));
    SUBCASE("another next header where the transport follows") { frame.bytes()[20] = 17; }
    SUBCASE("the IPv4 type") { frame.offload.gso_type = Offload::tcp4; }
    SUBCASE("transport inside the IPv6 header") {
        frame.offload.csum_start = 50;
        frame.bytes()[62] = 0x50;
    }
    SUBCASE("another version") { frame.bytes()[14] = 0x45; }
    CHECK(verdict(frame) == Drop::bad_offload);
}

TEST_CASE("tunnel record: a partial checksum lies within its frame") {
    const std::vector<uint8_t> frame(60, 0);
    const auto with = [&](uint16_t start, uint16_t offset) {
        return check_frame({Offload::needs_csum, Offload::none, 0, start, offset}, frame, 1500);
    };
    CHECK_FALSE(with(34, 6));
    CHECK_FALSE(with(34, 24));
    CHECK(with(34, 25) == Drop::bad_offload);
    CHECK(with(59, 0) == Drop::bad_offload);
    CHECK(with(0xffff, 0xffff) == Drop::bad_offload);
    CHECK(with(13, 0) == Drop::bad_offload);
    // without the flag the fields mean nothing
    CHECK_FALSE(check_frame({0, Offload::none, 0, 0xffff, 0xffff}, frame, 1500));
    CHECK_FALSE(check_frame({Offload::csum_valid, Offload::none, 0, 0, 0}, frame, 1500));
    CHECK(check_frame({4, Offload::none, 0, 0, 0}, frame, 1500) == Drop::bad_offload);
}

TEST_CASE("tunnel record: each reason of a drop has a name of its own") {
    std::set<std::string> names;
    for (int i = 0; i < static_cast<int>(Drop::count_); ++i) names.insert(drop_name(static_cast<Drop>(i)));
    CHECK(names.size() == static_cast<size_t>(Drop::count_));
    CHECK_FALSE(names.contains("unknown"));
}
