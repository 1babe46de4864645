// Small value types that every part speaks: MAC and IP addresses, random numbers, hexadecimal text.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"

namespace banana {

// An EUI-48 address. Text is lower-case, colon-separated: "52:54:00:12:34:56".
struct Mac {
    std::array<uint8_t, 6> bytes{};
    auto operator<=>(const Mac&) const = default;
    std::string text() const;
    bool is_multicast() const { return bytes[0] & 1; }
    static Result<Mac> parse(std::string_view text);
};

// An IPv4 or IPv6 address in network byte order; family is AF_INET or AF_INET6.
struct IpAddress {
    int family = 0;
    std::array<uint8_t, 16> bytes{};  // the first 4 for AF_INET
    auto operator<=>(const IpAddress&) const = default;
    size_t size() const;  // 4 or 16; 0 when unset
    std::string text() const;
    static Result<IpAddress> parse(std::string_view text);
};

// Fills `out` from getrandom(2); never fails on a running system (aborts otherwise).
void random_bytes(std::span<uint8_t> out);
uint32_t random_u32();
std::string random_hex(size_t bytes);

std::string to_hex(std::span<const uint8_t> data);
Result<std::string> from_hex(std::string_view hex);          // the raw bytes, as a string
std::string hex32(uint32_t value);                           // eight lower-case digits: device names, connector ids
std::optional<uint32_t> parse_hex32(std::string_view text);  // exactly eight digits

// Guest- or peer-controlled text made safe for a log line: control bytes and non-ASCII become \xNN, cut at `max`.
std::string printable(std::string_view text, size_t max = 200);

}  // namespace banana
