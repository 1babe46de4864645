#include "base/bytes.h"

#include <arpa/inet.h>
#include <fmt/core.h>
#include <sys/random.h>

#include <charconv>
#include <cstdlib>
#include <cstring>

namespace banana {

namespace {
int hex_value(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}
}  // namespace

std::string Mac::text() const {
    return fmt::format("{:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}", bytes[0], bytes[1], bytes[2], bytes[3], bytes[4],
                       bytes[5]);
}

Result<Mac> Mac::parse(std::string_view text) {
    Mac mac;
    bool good = text.size() == 17;
    for (size_t i = 0; good && i < 6; ++i) {
        const int high = hex_value(text[3 * i]), low = hex_value(text[3 * i + 1]);
        good = high >= 0 && low >= 0 && (i == 5 || text[3 * i + 2] == ':');
        mac.bytes[i] = static_cast<uint8_t>(high << 4 | low);
    }
    if (!good)
        return Error(Errc::invalid, fmt::format("'{}' is not a MAC address (xx:xx:xx:xx:xx:xx)", printable(text, 40)));
    return mac;
}

size_t IpAddress::size() const { return family == AF_INET ? 4 : family == AF_INET6 ? 16 : 0; }

std::string IpAddress::text() const {
    char buffer[INET6_ADDRSTRLEN] = "";
    if (size() != 0) inet_ntop(family, bytes.data(), buffer, sizeof buffer);
    return buffer;
}

Result<IpAddress> IpAddress::parse(std::string_view text) {
    IpAddress ip;
    const std::string copy(text);
    for (int family : {AF_INET, AF_INET6}) {
        if (inet_pton(family, copy.c_str(), ip.bytes.data()) == 1) {
            ip.family = family;
            return ip;
        }
    }
    return Error(Errc::invalid, fmt::format("'{}' is not an IPv4 or IPv6 address", printable(text, 60)));
}

void random_bytes(std::span<uint8_t> out) {
    size_t done = 0;
    while (done < out.size()) {
        const ssize_t n = getrandom(out.data() + done, out.size() - done, 0);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) std::abort();
        done += static_cast<size_t>(n);
    }
}

uint32_t random_u32() {
    std::array<uint8_t, 4> raw{};
    random_bytes(raw);
    uint32_t value = 0;
    std::memcpy(&value, raw.data(), sizeof value);
    return value;
}

std::string random_hex(size_t bytes) {
    std::string raw(bytes, '\0');
    std::span<uint8_t> view(reinterpret_cast<uint8_t*>(raw.data()), raw.size());
    random_bytes(view);
    return to_hex(view);
}

std::string to_hex(std::span<const uint8_t> data) {
    std::string out;
    out.reserve(data.size() * 2);
    for (uint8_t b : data) out += fmt::format("{:02x}", b);
    return out;
}

Result<std::string> from_hex(std::string_view hex) {
    if (hex.size() % 2 != 0) return Error(Errc::invalid, "hexadecimal text of odd length");
    std::string out(hex.size() / 2, '\0');
    for (size_t i = 0; i < out.size(); ++i) {
        const int high = hex_value(hex[2 * i]), low = hex_value(hex[2 * i + 1]);
        if (high < 0 || low < 0) return Error(Errc::invalid, "not hexadecimal text");
        out[i] = static_cast<char>(high << 4 | low);
    }
    return out;
}

std::string hex32(uint32_t value) { return fmt::format("{:08x}", value); }

std::optional<uint32_t> parse_hex32(std::string_view text) {
    uint32_t value = 0;
    if (text.size() != 8) return std::nullopt;
    const auto [end, ec] = std::from_chars(text.data(), text.data() + text.size(), value, 16);
    if (ec != std::errc{} || end != text.data() + text.size()) return std::nullopt;
    return value;
}

std::string printable(std::string_view text, size_t max) {
    std::string out;
    for (unsigned char c : text) {
        if (out.size() >= max) return out + "...";
        if (c >= 0x20 && c < 0x7f && c != '\\')
            out += static_cast<char>(c);
        else
            out += fmt::format("\\x{:02x}", c);
    }
    return out;
}

}  // namespace banana
