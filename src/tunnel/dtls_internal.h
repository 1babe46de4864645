// What the files of dtls.h share: the owners of OpenSSL's objects, a context's insides and an association.
//
// Concepts: an Association is one SSL object with its datagram link and what was found out about the other end; a
// Session owns one for good, a Listener one until a cookie turns it into a session's. OpenSSL's callbacks find theirs
// by the SSL object's application data, so it stands at one address for life. Threading: as dtls.h.
#pragma once

#include <openssl/ssl.h>

#include <memory>
#include <string>

#include "pki/verify.h"
#include "tunnel/dtls.h"
#include "tunnel/dtls_bio.h"
#include "tunnel/dtls_cookie.h"
#include "tunnel/dtls_record.h"
#include "tunnel/dtls_seal.h"

namespace banana::tunnel {

using SslContextPtr = std::unique_ptr<SSL_CTX, pki::OpensslFree<SSL_CTX_free>>;
using SslPtr = std::unique_ptr<SSL, pki::OpensslFree<SSL_free>>;

struct Context::Impl {
    SslContextPtr ssl;
    Credentials paths;
    pki::CertInfo own;
};

// The hello that a listener is answering.
struct CookieRequest {
    Cookies* cookies;
    std::span<const uint8_t> sender;
    int64_t now;
    bool may_accept;
    mutable bool turned_away = false;
};

struct Association {
    std::shared_ptr<const Context> context;
    Link link;
    SslPtr ssl;
    Session::State state = Session::State::handshaking;
    bool dialled = false;
    std::string expected;  // dialled: the host that was meant
    std::string peer, why;
    const RecordCipher* records = nullptr;  // once up
    RecordKeys keys;
    pki::Verdict verdict;   // what OpenSSL found wrong with the peer's certificate
    std::string objection;  // what we did
    int alert = -1;         // the last that came, but for close_notify
    const CookieRequest* hello = nullptr;
    ReplayWindow window;
    uint64_t sealed = 0, opened = 0;
    uint64_t sealed_max = uint64_t{1} << 36;
    unsigned early = 0;              // records that came encrypted before the handshake was done
    int64_t started = 0, timer = 0;  // monotonic ns
    int64_t answered = 0;            // when a flight last brought the handshake on; 0: not yet
    bool heard = false;              // anything at all
};

// `ssl` is without a role yet: SSL_set_connect_state() or SSL_set_accept_state().
Result<std::unique_ptr<Association>> make_association(std::shared_ptr<const Context> context, size_t datagram_bytes);
void set_state(Association& association, Session::State to, const std::string& why);
void advance(Association& association);  // the handshake, as far as it goes

// dtls_verify.cpp: whose certificate is good enough.
int on_verify(int good, X509_STORE_CTX* store);  // OpenSSL's verify callback
Status judge(const pki::CertInfo& certificate, const std::string& expected_host);
// Why a handshake failed, out of the association's findings and `reason`, OpenSSL's code.
std::string failure_text(const Association& association, unsigned long reason);

// dtls_listener.cpp: OpenSSL's cookie callbacks.
int on_make_cookie(SSL* ssl, unsigned char* cookie, unsigned* size);
int on_check_cookie(SSL* ssl, const unsigned char* cookie, unsigned size);

inline Association& association_of(const SSL* ssl) { return *static_cast<Association*>(SSL_get_app_data(ssl)); }

}  // namespace banana::tunnel
