#include "tunnel/dtls_cookie.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>

#include "base/bytes.h"

namespace banana::tunnel {

namespace {

Cookies::Cookie mac(std::span<const uint8_t> key, std::span<const uint8_t> sender) {
    Cookies::Cookie out{};
    unsigned size = 0;
    if (HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()), sender.data(), sender.size(), out.data(), &size) ==
        nullptr)
        random_bytes(out);  // without memory: a cookie that will not be good, rather than one that can be guessed
    return out;
}

bool equal(std::span<const uint8_t> cookie, const Cookies::Cookie& expected) {
    return cookie.size() == expected.size() && CRYPTO_memcmp(cookie.data(), expected.data(), expected.size()) == 0;
}

}  // namespace

Cookies::Cookies(int64_t now) : made_(now) {
    random_bytes(key_);
    random_bytes(before_);
}

void Cookies::renew(int64_t now) {
    if (now - made_ < lifetime_ns) return;
    before_ = key_;
    if (now - made_ >= 2 * lifetime_ns) random_bytes(before_);  // nobody asked for long: that one is too old as well
    random_bytes(key_);
    made_ = now;
}

Cookies::Cookie Cookies::make(std::span<const uint8_t> sender, int64_t now) {
    renew(now);
    return mac(key_, sender);
}

bool Cookies::good(std::span<const uint8_t> cookie, std::span<const uint8_t> sender, int64_t now) {
    renew(now);
    return equal(cookie, mac(key_, sender)) || equal(cookie, mac(before_, sender));
}

}  // namespace banana::tunnel
