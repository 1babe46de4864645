// DTLS sessions by OpenSSL, without sockets: datagrams in, datagrams out (doc/dtls-wire.md, "Sessions").
//
// Concepts: a Context holds this host's key, certificate and CA, what both ends may negotiate (DTLS 1.2, later when the
// library has it; ECDHE with AES-128-GCM or ChaCha20-Poly1305; mutual certificates; no renegotiation, no resumption, no
// compression). A Listener answers first ClientHellos without keeping anything per sender, until one brings its cookie
// back. A Session is one DTLS association from there on. Whose it is (`peer()`) is found by our own check of the
// certificate after the handshake: chain, validity, role "tunnel", and for a dialled session the name that was dialled.
// Until then nothing that it carries is passed on. Frames are sealed and opened in place, under keys that it exports
// (dtls_seal.h). Cipher: each end says which of the two it does faster (measured at start); ChaCha20-Poly1305 is taken
// when either end prefers it, as the slower end is the one that counts. What a handshake or an alert sends is handed to
// a Sink, a datagram's DTLS part at a time, in the same call. Threading: a Context is shared and const once made (its
// OpenSSL object counts references by atomics); a Listener and a Session belong to one thread. Errors: texts say whose
// certificate and what is wrong with it. Source: RFC 6347 (DTLS 1.2; 4.1.2.6 replay, 4.2.1 cookies), RFC 5288,
// RFC 7905; OpenSSL 3.0's ssl(7) pages.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"

namespace banana::tunnel {

// Bytes of a record besides its plaintext, at most: AES-GCM's (RFC 5288: 13 + 8 + 16).
inline constexpr size_t record_overhead = 37;

enum class CipherPreference { aes, chacha };
CipherPreference faster_cipher();  // times both, some milliseconds

struct Credentials {
    std::string ca, certificate, key;  // paths, PEM
};

enum class OwnCertificate {
    must_fit,  // be one that peers accept: the CA's, valid now, role "tunnel", one host name
    as_it_is,  // for tests of those that do not
};

// Takes what a session sends: the DTLS part of one datagram.
class Sink {
public:
    virtual ~Sink() = default;
    virtual void put(std::span<const uint8_t> record) = 0;
};

class Context {
public:
    // The key must be readable by its owner only.
    static Result<std::shared_ptr<const Context>> load(const Credentials& credentials, CipherPreference preference,
                                                       OwnCertificate own = OwnCertificate::must_fit);
    const std::string& host() const;  // as the own certificate names it
    ~Context();
    struct Impl;
    const Impl& impl() const { return *impl_; }

private:
    Context();
    std::unique_ptr<Impl> impl_;
};

// Why an arriving record was not opened.
enum class Refusal : uint8_t {
    none,
    malformed,  // no DTLS record, truncated, or a type or epoch that has no business here
    replayed,   // its number came before
    too_old,    // its number is 64 or more behind (the window that DTLS 1.2 has)
    forged,     // the authentication tag does not hold
    count_
};
const char* refusal_name(Refusal refusal);

struct Association;

class Session {
public:
    enum class State { handshaking, up, closed };

    // `expected_peer`: the host name that the certificate must bear. Sends the first ClientHello at once.
    // `datagram_bytes`: of DTLS per datagram during the handshake, at least handshake_datagram_min.
    static Result<std::unique_ptr<Session>> dial(std::shared_ptr<const Context> context,
                                                 const std::string& expected_peer, size_t datagram_bytes, Sink& sink);
    ~Session();

    State state() const;
    bool dialled() const;
    const std::string& peer() const;  // once up: the host that its certificate proves
    std::string cipher() const;       // once up: "AES-128-GCM", "CHACHA20-POLY1305"
    const std::string& why_closed() const;
    uint64_t records_sealed() const;
    uint64_t records_opened() const;

    // A datagram's DTLS part while handshaking, or one of a handshake's stragglers later. The state may change. The
    // listener's end is up first: what it seals before it has opened anything may overtake its Finished and be refused.
    void on_handshake(std::span<const uint8_t> records, Sink& sink);
    // Up: opens one record where it stands, whose bytes are lost if it is not authentic. Returns the plaintext, a part
    // of `record`; empty with `refusal` set when nothing was opened, and with Refusal::none after an alert, which was
    // authentic, too; a close alert changes the state.
    std::span<uint8_t> open(std::span<uint8_t> record, Refusal& refusal, Sink& sink);
    // Up: seals one record where it stands. `record`: head() bytes of room, the plaintext (1 to 16 384 bytes), room
    // for the tag; overhead() bytes besides the plaintext in all. False: the session is closed, at the latest now (its
    // records are used up).
    bool seal(std::span<uint8_t> record);
    size_t head() const;
    size_t overhead() const;            // at most record_overhead
    void limit_records(uint64_t most);  // that seal() makes; 2^36 if not said, long before record numbers run out

    // Handshake retransmission: when on_timer() is due, as monotonic ns; 0: not at all.
    int64_t timer_due() const;
    void on_timer(Sink& sink);          // retransmits; gives up after `handshake_deadline` or `handshake_silence`
    void close(Sink& sink);             // says so to the peer (close_notify), once
    void fail(const std::string& why);  // closed without a word

private:
    friend class Listener;
    explicit Session(std::unique_ptr<Association> association);
    std::span<uint8_t> open_frames(std::span<uint8_t> record, uint64_t number, Refusal& refusal);
    std::unique_ptr<Association> association_;
};

inline constexpr size_t handshake_datagram_min = 256;
inline constexpr int64_t handshake_first_retry_ns = 250'000'000;  // doubles up to:
inline constexpr int64_t handshake_retry_max_ns = 1'000'000'000;
inline constexpr int64_t handshake_deadline_ns = 10'000'000'000;
// From the last flight that brought it on: the other end was started again meanwhile, and knows nothing of it.
inline constexpr int64_t handshake_silence_ns = 4'000'000'000;

// The side that is dialled, before there is a session. One a lane; holds one scratch association whatever comes.
class Listener {
public:
    Listener(std::shared_ptr<const Context> context, size_t datagram_bytes);
    ~Listener();
    // `sender`: address, port, lane and index as bytes: what the cookie is bound to. `records`: the DTLS part of a
    // hello datagram. A ClientHello without a good cookie is answered with a challenge that is no larger than it;
    // anything else is met with silence. With a good cookie: the new session, which has answered into `sink` already,
    // and may be closed already (why_closed()). A hello may come twice: who has a session of that sender passes it to
    // Session::on_handshake() instead. Cookies live for minutes, so an onlooker can repeat a hello: bound the sessions
    // that are handshaking, and how many begin in a second. Not `may_accept`: a good cookie is met with silence, too.
    std::unique_ptr<Session> on_hello(std::span<const uint8_t> records, std::span<const uint8_t> sender, Sink& sink,
                                      bool may_accept = true);
    uint64_t challenges() const;   // sent so far
    uint64_t ignored() const;      // datagrams that were no ClientHello
    uint64_t turned_away() const;  // good cookies that came when none was to be accepted

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace banana::tunnel
