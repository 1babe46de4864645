#include "tunnel/wire_format.h"

#include <doctest/doctest.h>

#include <array>
#include <vector>

using namespace banana::tunnel;

namespace {
using Bytes = std::vector<uint8_t>;

Bytes written(const DatagramHeader& header) {
    Bytes bytes(16, 0xee);
    bytes.resize(write_header(bytes.data(), header));
    return bytes;
}
}  // namespace

TEST_CASE("a data datagram's header is four bytes") {
    DatagramHeader header{DatagramKind::data, 3, 0x1234, 9, 0x5678};  // the sender's half does not travel
    CHECK(header.bytes() == data_header_bytes);
    CHECK(written(header) == Bytes{0x22, 3, 0x12, 0x34});
    auto read = read_header(Bytes{0x22, 3, 0x12, 0x34, 0xff, 0xff, 0xff, 0xff});
    REQUIRE(read);
    CHECK(read->kind == DatagramKind::data);
    CHECK(read->lane == 3);
    CHECK(read->index == 0x1234);
    CHECK(read->from_lane == 0);
    CHECK(read->from_index == 0);
}

TEST_CASE("hello and handshake name the sender's session too") {
    for (DatagramKind kind : {DatagramKind::hello, DatagramKind::handshake}) {
        DatagramHeader header{kind, 255, 0xfffe, 7, 0x0102};
        CHECK(header.bytes() == handshake_header_bytes);
        Bytes bytes = written(header);
        CHECK(bytes == Bytes{static_cast<uint8_t>(0x20 | static_cast<int>(kind)), 255, 0xff, 0xfe, 0, 7, 1, 2});
        auto read = read_header(bytes);
        REQUIRE(read);
        CHECK(read->kind == kind);
        CHECK(read->lane == 255);
        CHECK(read->index == 0xfffe);
        CHECK(read->from_lane == 7);
        CHECK(read->from_index == 0x0102);
    }
}

TEST_CASE("what is not ours is no header") {
    for (size_t bytes = 0; bytes < data_header_bytes; ++bytes) CHECK_FALSE(read_header(Bytes(bytes, 0x22)));
    for (uint8_t kind : {uint8_t{0x20}, uint8_t{0x21}}) {
        for (size_t bytes = data_header_bytes; bytes < handshake_header_bytes; ++bytes)
            CHECK_FALSE(read_header(Bytes(bytes, kind)));
        CHECK(read_header(Bytes(handshake_header_bytes, kind)));
    }
    CHECK(read_header(Bytes(data_header_bytes, 0x22)));
    for (int first = 0; first < 256; ++first) {  // version 2, kinds 0 to 2
        Bytes bytes(handshake_header_bytes, static_cast<uint8_t>(first));
        CHECK(read_header(bytes).has_value() == (first >= 0x20 && first <= 0x22));
    }
}

TEST_CASE("a byte that is reserved may come to mean something: it is not looked at") {
    CHECK(read_header(Bytes{0x20, 0, 0, 0, 0xff, 0, 0, 1}));
}
