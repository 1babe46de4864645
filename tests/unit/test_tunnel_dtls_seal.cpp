// Records with frames, looked at by somebody who has the session's exporter and OpenSSL's plain AEAD interface, and has
// read doc/dtls-wire.md: so the format is what it says, and no more than OpenSSL's ciphers is in it.
#include <algorithm>
#include <string>

#include "tests/unit/tunnel_dtls_parties.h"
#include "tunnel/dtls_internal.h"

using namespace banana;
using namespace banana::tunnel;
using namespace banana::tunnel::testing;

namespace {

using ContextOfCipher = std::unique_ptr<EVP_CIPHER_CTX, pki::OpensslFree<EVP_CIPHER_CTX_free>>;

// Two associations joined by mail, without a listener and its cookies.
struct Joined {
    Mail from_dialler, from_listener;
    std::unique_ptr<Association> dialler, listener;

    explicit Joined(CipherPreference preference) {
        dialler = end("hv1", preference, from_dialler);
        listener = end("hv2", preference, from_listener);
        SSL_set_connect_state(dialler->ssl.get());
        SSL_set_accept_state(listener->ssl.get());
        dialler->dialled = true;
        dialler->expected = "hv2";
        for (int round = 0; round < 20; ++round) {
            step(*dialler, from_listener);
            step(*listener, from_dialler);
        }
        REQUIRE(dialler->state == Session::State::up);
        REQUIRE(listener->state == Session::State::up);
    }

    static std::unique_ptr<Association> end(const char* host, CipherPreference preference, Mail& mail) {
        auto made = make_association(Hosts::all()(host, preference), 1200);
        REQUIRE(made.ok());
        SSL_clear_options((*made)->ssl.get(), SSL_OP_COOKIE_EXCHANGE);
        (*made)->link.sink = &mail;
        return std::move(*made);
    }
    static void step(Association& to, Mail& from) {
        if (from.out.empty()) advance(to);
        for (const auto& datagram : from.take()) {
            to.link.in = datagram;
            advance(to);
        }
    }

    Bytes exported(size_t bytes) const {
        const std::string label = "EXPERIMENTAL banana frames";
        Bytes out(bytes), other(bytes);
        REQUIRE(SSL_export_keying_material(dialler->ssl.get(), out.data(), bytes, label.data(), label.size(), nullptr,
                                           0, 0) == 1);
        REQUIRE(SSL_export_keying_material(listener->ssl.get(), other.data(), bytes, label.data(), label.size(),
                                           nullptr, 0, 0) == 1);
        REQUIRE(out == other);
        return out;
    }
};

Bytes part(const Bytes& all, size_t from, size_t bytes) {
    return {all.begin() + static_cast<ptrdiff_t>(from), all.begin() + static_cast<ptrdiff_t>(from + bytes)};
}

// Empty: it does not authenticate.
Bytes decrypted(const char* algorithm, const Bytes& key, const Bytes& nonce, const Bytes& associated,
                const Bytes& ciphertext, Bytes tag) {
    const ContextOfCipher context(EVP_CIPHER_CTX_new());
    std::unique_ptr<EVP_CIPHER, pki::OpensslFree<EVP_CIPHER_free>> cipher(
        EVP_CIPHER_fetch(nullptr, algorithm, nullptr));
    Bytes plain(ciphertext.size());
    int size = 0;
    REQUIRE(EVP_DecryptInit_ex(context.get(), cipher.get(), nullptr, key.data(), nonce.data()) == 1);
    REQUIRE(EVP_DecryptUpdate(context.get(), nullptr, &size, associated.data(), static_cast<int>(associated.size())));
    REQUIRE(
        EVP_DecryptUpdate(context.get(), plain.data(), &size, ciphertext.data(), static_cast<int>(ciphertext.size())));
    REQUIRE(EVP_CIPHER_CTX_ctrl(context.get(), EVP_CTRL_AEAD_SET_TAG, 16, tag.data()));
    return EVP_DecryptFinal_ex(context.get(), plain.data() + size, &size) == 1 ? plain : Bytes{};
}

Bytes sealed_by(Association& by, const Bytes& plain) {
    Bytes record(by.records->overhead() + plain.size());
    std::copy(plain.begin(), plain.end(), record.begin() + static_cast<ptrdiff_t>(by.records->head()));
    REQUIRE(by.keys.own.seal(record));
    return record;
}

const Bytes payload = bytes_of("an entry, and what is in it");

}  // namespace

TEST_CASE("dtls seal: AES-128-GCM records are what the document says") {
    Joined ends(CipherPreference::aes);
    const Bytes keys = ends.exported(2 * (16 + 4));
    std::vector<Bytes> nonces;
    for (const bool dialled : {true, false}) {
        const size_t at = dialled ? 0 : 20;
        for (uint8_t number = 0; number < 3; ++number) {
            const Bytes record = sealed_by(dialled ? *ends.dialler : *ends.listener, payload);
            REQUIRE(record.size() == 13 + 8 + payload.size() + 16);
            CHECK(part(record, 0, 13) == Bytes{23, 0xfe, 0xfd, 0, 2, 0, 0, 0, 0, 0, number, 0, 27 + 24});
            Bytes nonce = part(keys, at + 16, 4);
            const Bytes explicit_nonce = part(record, 13, 8);
            nonce.insert(nonce.end(), explicit_nonce.begin(), explicit_nonce.end());
            nonces.push_back(nonce);
            const Bytes associated{0, 2, 0, 0, 0, 0, 0, number, 23, 0xfe, 0xfd, 0, 27};
            CHECK(decrypted("AES-128-GCM", part(keys, at, 16), nonce, associated, part(record, 21, payload.size()),
                            part(record, 21 + payload.size(), 16)) == payload);
            CHECK(decrypted("AES-128-GCM", part(keys, 20 - at, 16), nonce, associated, part(record, 21, payload.size()),
                            part(record, 21 + payload.size(), 16))
                      .empty());
        }
    }
    std::sort(nonces.begin(), nonces.end());
    CHECK(std::adjacent_find(nonces.begin(), nonces.end()) == nonces.end());
}

TEST_CASE("dtls seal: ChaCha20-Poly1305 records are what the document says") {
    Joined ends(CipherPreference::chacha);
    const Bytes keys = ends.exported(2 * (32 + 12));
    for (const bool dialled : {true, false}) {
        const size_t at = dialled ? 0 : 44;
        for (uint8_t number = 0; number < 3; ++number) {
            const Bytes record = sealed_by(dialled ? *ends.dialler : *ends.listener, payload);
            REQUIRE(record.size() == 13 + payload.size() + 16);
            CHECK(part(record, 0, 13) == Bytes{23, 0xfe, 0xfd, 0, 2, 0, 0, 0, 0, 0, number, 0, 27 + 16});
            Bytes nonce = part(keys, at + 32, 12);
            const Bytes with_number{0, 2, 0, 0, 0, 0, 0, number};
            for (size_t i = 0; i < with_number.size(); ++i)
                nonce[4 + i] = static_cast<uint8_t>(nonce[4 + i] ^ with_number[i]);
            const Bytes associated{0, 2, 0, 0, 0, 0, 0, number, 23, 0xfe, 0xfd, 0, 27};
            CHECK(decrypted("ChaCha20-Poly1305", part(keys, at, 32), nonce, associated,
                            part(record, 13, payload.size()), part(record, 13 + payload.size(), 16)) == payload);
        }
    }
}

TEST_CASE("dtls seal: two sessions have nothing in common") {
    Joined first(CipherPreference::aes), second(CipherPreference::aes);
    CHECK(first.exported(40) != second.exported(40));
    Bytes record = sealed_by(*first.dialler, payload);
    Bytes same = record, own = record;
    CHECK_FALSE(second.listener->keys.peers.open(record));
    CHECK_FALSE(first.dialler->keys.peers.open(own));  // reflected
    CHECK(first.listener->keys.peers.open(same));
    CHECK(part(same, 21, payload.size()) == payload);
}
