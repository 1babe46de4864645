#include <doctest/doctest.h>
#include <sys/socket.h>

#include "base/bytes.h"

using namespace banana;

TEST_CASE("MAC addresses: text and back, and nothing else") {
    CHECK(Mac::parse("52:54:00:12:34:Ab")->text() == "52:54:00:12:34:ab");
    for (const char* bad :
         {"", "52:54:00:12:34", "52:54:00:12:34:5", "52-54-00-12-34-56", "52:54:00:12:34:5g", "52:54:00:12:34:56:78"})
        CHECK_FALSE(Mac::parse(bad).ok());
    CHECK(Mac::parse("01:80:c2:00:00:0e")->is_multicast());
}

TEST_CASE("IP addresses of both families") {
    CHECK(IpAddress::parse("10.0.0.1")->family == AF_INET);
    CHECK(IpAddress::parse("fd00::1")->text() == "fd00::1");
    CHECK_FALSE(IpAddress::parse("10.0.0").ok());
    CHECK(IpAddress{}.text().empty());
}

TEST_CASE("hexadecimal ids have eight digits") {
    CHECK(hex32(0x2a) == "0000002a");
    CHECK(*parse_hex32("0000002a") == 0x2a);
    CHECK_FALSE(parse_hex32("2a").has_value());
    CHECK_FALSE(parse_hex32("0000002g").has_value());
    CHECK(*from_hex("00ff") == std::string("\0\xff", 2));
    CHECK_FALSE(from_hex("0f0").ok());
}

TEST_CASE("printable escapes what a guest could put into a log") {
    CHECK(printable("a\nb\x1b[0m") == "a\\x0ab\\x1b[0m");
    CHECK(printable(std::string(500, 'x'), 10) == "xxxxxxxxxx...");
}
