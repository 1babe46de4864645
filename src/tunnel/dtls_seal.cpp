#include "tunnel/dtls_seal.h"

#include <fmt/core.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/params.h>

#include <algorithm>
#include <array>
#include <string_view>

#include "tunnel/dtls.h"
#include "tunnel/octets.h"

namespace banana::tunnel {

namespace {

constexpr std::array<RecordCipher, 2> ciphers{{
    {TLS1_CK_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, "AES-128-GCM", 16, 4, 8},
    {TLS1_CK_ECDHE_ECDSA_WITH_CHACHA20_POLY1305, "CHACHA20-POLY1305", 32, 12, 0},
}};
static_assert(ciphers[0].overhead() == record_overhead && ciphers[1].overhead() < record_overhead);

constexpr std::string_view label = "EXPERIMENTAL banana frames";  // RFC 5705, 4: such need not be registered

using CipherPtr = std::unique_ptr<EVP_CIPHER, pki::OpensslFree<EVP_CIPHER_free>>;

// Both directions' keys and fixed nonces; wiped when it goes.
struct KeyMaterial {
    std::array<uint8_t, 2 * (32 + 12)> bytes{};
    ~KeyMaterial() { OPENSSL_cleanse(bytes.data(), bytes.size()); }
};

}  // namespace

const RecordCipher* record_cipher(uint32_t suite) {
    const auto it = std::find_if(ciphers.begin(), ciphers.end(), [&](const auto& c) { return c.suite == suite; });
    return it == ciphers.end() ? nullptr : &*it;
}

Result<RecordKeys> RecordKeys::of(SSL* ssl, const RecordCipher& cipher, bool dialled) {
    const auto failed = [] { return Error(fmt::format("make keys for frames: {}", pki::openssl_reason())); };
    // Without it, exported keys are not bound to this handshake (RFC 7627, 5.4).
    if (SSL_get_extms_support(ssl) != 1) return Error(Errc::refused, "no extended master secret");
    KeyMaterial material;
    const size_t each = cipher.key_bytes + cipher.fixed_bytes;
    if (SSL_export_keying_material(ssl, material.bytes.data(), 2 * each, label.data(), label.size(), nullptr, 0, 0) !=
        1)
        return failed();
    const CipherPtr algorithm(EVP_CIPHER_fetch(nullptr, cipher.name, nullptr));
    if (!algorithm) return failed();
    RecordKeys keys;
    for (const bool own : {true, false}) {
        uint8_t* const key = material.bytes.data() + (own == dialled ? 0 : each);  // the dialling end's comes first
        const OSSL_PARAM nonce[] = {OSSL_PARAM_construct_octet_string(OSSL_CIPHER_PARAM_AEAD_TLS1_IV_FIXED,
                                                                      key + cipher.key_bytes, cipher.fixed_bytes),
                                    OSSL_PARAM_construct_end()};
        auto& context = (own ? keys.own : keys.peers).context_;
        context.reset(EVP_CIPHER_CTX_new());
        if (!context || EVP_CipherInit_ex(context.get(), algorithm.get(), nullptr, key, nullptr, own ? 1 : 0) != 1 ||
            EVP_CIPHER_CTX_set_params(context.get(), nonce) != 1)
            return failed();
    }
    return keys;
}

// `payload_bytes`: as the associated data has them: with the explicit nonce, and when opening with the tag.
bool RecordKey::run(std::span<uint8_t> record, size_t payload_bytes) {
    std::array<uint8_t, 13> associated;  // epoch and number, type and version, length
    std::copy_n(&record[3], 8, &associated[0]);
    std::copy_n(&record[0], 3, &associated[8]);
    put16(&associated[11], static_cast<uint16_t>(payload_bytes));
    const OSSL_PARAM parameters[] = {
        OSSL_PARAM_construct_octet_string(OSSL_CIPHER_PARAM_AEAD_TLS1_AAD, associated.data(), associated.size()),
        OSSL_PARAM_construct_end()};
    const auto payload = record.subspan(RecordHeader::bytes);
    return EVP_CIPHER_CTX_set_params(context_.get(), parameters) == 1 &&
           EVP_Cipher(context_.get(), payload.data(), payload.data(), static_cast<unsigned>(payload.size())) > 0;
}

// The library writes the explicit nonce, which it counts up from a random one.
bool RecordKey::seal(std::span<uint8_t> record) {
    write_record_header(record, frames_epoch, next_++);
    return run(record, record.size() - RecordHeader::bytes - RecordCipher::tag_bytes);
}

bool RecordKey::open(std::span<uint8_t> record) { return run(record, record.size() - RecordHeader::bytes); }

}  // namespace banana::tunnel
