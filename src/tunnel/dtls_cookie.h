// Cookies: proof that a ClientHello's sender receives at the address that it claims, without remembering it.
//
// Concepts: HMAC-SHA256 over the sender's bytes under a random key that nobody else has. The key is renewed every
// `lifetime_ns`; the one before stays good, so a cookie lives for one to two lifetimes, then its bearer is challenged
// again. Threading: one thread. Errors: none. Source: RFC 6347, section 4.2.1.
#pragma once

#include <array>
#include <cstdint>
#include <span>

namespace banana::tunnel {

class Cookies {
public:
    static constexpr size_t bytes = 32;
    static constexpr int64_t lifetime_ns = 120'000'000'000;
    using Cookie = std::array<uint8_t, bytes>;

    explicit Cookies(int64_t now);
    Cookie make(std::span<const uint8_t> sender, int64_t now);
    bool good(std::span<const uint8_t> cookie, std::span<const uint8_t> sender, int64_t now);

private:
    using Key = std::array<uint8_t, 32>;
    void renew(int64_t now);
    Key key_{}, before_{};
    int64_t made_;
};

}  // namespace banana::tunnel
