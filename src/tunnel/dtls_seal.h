// Sealing and opening the records that carry frames, under keys exported from a session.
//
// Concepts: whom a session is with and which keys it has is OpenSSL's DTLS to find; what is done to each frame is done
// here, with OpenSSL's ciphers, as its own record layer copies every record twice. The keys come from the session by
// its exporter (RFC 5705), as SRTP's do (RFC 5764): its two ends alone have them, and they tell nothing of its own. A
// record looks as DTLS 1.2 would have it, in the epoch behind OpenSSL's: header, AES-GCM's explicit nonce, ciphertext,
// tag. It is sealed and opened where it stands. Threading: the session's thread. Errors: the library's, when keys are
// made; a record that does not authenticate is not opened, and its bytes are lost.
// Source: RFC 6347, 4.1 (record); RFC 5246, 6.2.3.3 (associated data); RFC 5288 and RFC 7905 (nonces); OpenSSL's
// EVP_EncryptInit(3), "tlsaad" and "tlsivfixed".
#pragma once

#include <openssl/evp.h>
#include <openssl/ssl.h>

#include <cstdint>
#include <memory>
#include <span>

#include "base/result.h"
#include "pki/openssl.h"
#include "tunnel/dtls_record.h"

namespace banana::tunnel {

// 0 is the handshake's, 1 OpenSSL's own; there is no renegotiation.
inline constexpr uint16_t frames_epoch = 2;

// What goes with a session's cipher suite. Sizes in bytes.
struct RecordCipher {
    static constexpr size_t tag_bytes = 16;
    uint32_t suite;
    const char* name;  // OpenSSL's, which does not mind the case
    size_t key_bytes;
    size_t fixed_bytes;     // of the nonce: comes from the session
    size_t explicit_bytes;  // of the nonce: stands in each record
    constexpr size_t head() const { return RecordHeader::bytes + explicit_bytes; }  // before the plaintext
    constexpr size_t overhead() const { return head() + tag_bytes; }
};
const RecordCipher* record_cipher(uint32_t suite);  // null: none of ours

// One direction of a session.
class RecordKey {
public:
    // `record`: head() bytes of room, the plaintext, tag_bytes of room. Numbers count up from 0. False: the library
    // does not do it.
    bool seal(std::span<uint8_t> record);
    // `record`: exactly one, of at least overhead() bytes. True: what was the ciphertext is the plaintext.
    bool open(std::span<uint8_t> record);

private:
    friend struct RecordKeys;
    bool run(std::span<uint8_t> record, size_t payload_bytes);
    std::unique_ptr<EVP_CIPHER_CTX, pki::OpensslFree<EVP_CIPHER_CTX_free>> context_;
    uint64_t next_ = 0;
};

struct RecordKeys {
    RecordKey own, peers;
    // Of a session whose handshake is done. `dialled`: by this end.
    static Result<RecordKeys> of(SSL* ssl, const RecordCipher& cipher, bool dialled);
};

}  // namespace banana::tunnel
