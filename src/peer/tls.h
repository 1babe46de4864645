// This host's TLS identity, and what certificates mean to peers.
//
// Concepts: TLS 1.3 alone, no tickets, so every connection verifies both certificates against the one cluster CA. What
// the verifier saw is kept as a Verdict and told in words that name the certificate, since an OpenSSL code tells an
// operator nothing. Name and role are checked after the handshake, so that a refusal can be sent as text.
// Threading: the io_context's single thread. Errors: loading names the file; verification is Errc::refused.
#pragma once

#include <asio/ip/tcp.hpp>
#include <asio/ssl.hpp>
#include <memory>
#include <string>

#include "base/result.h"
#include "peer/streams.h"
#include "pki/cert.h"
#include "pki/openssl.h"
#include "pki/verify.h"

namespace banana::peer {

using Tcp = asio::ip::tcp;
using TlsLayer = asio::ssl::stream<Tcp::socket>;
using TlsStream = rpc::AsioStream<TlsLayer>;

struct Identity {
    std::shared_ptr<asio::ssl::context> context;  // for both roles
    pki::CertInfo own, ca;
    std::string own_path, ca_path;

    // Unreadable files, a key of another certificate and a key that others may read are errors. An own certificate
    // that peers will refuse is not: everything local must go on; problem() says what is wrong.
    static Result<std::shared_ptr<const Identity>> load(const std::string& ca, const std::string& certificate,
                                                        const std::string& key);
    std::string problem(const std::string& host) const;  // "": none

    // Chain and validity, now, by this CA.
    Status verify(X509* certificate) const;
};

using pki::Verdict;

std::unique_ptr<TlsStream> make_tls_stream(Tcp::socket socket, const std::shared_ptr<const Identity>& identity);
// Records into the verdict, and changes nothing in what OpenSSL decides.
std::shared_ptr<Verdict> watch_verification(TlsLayer& layer);

Error verdict_error(const Verdict& verdict, const Identity& identity);
Error tls_error(const asio::error_code& code, const std::string& own_certificate);

struct PeerCertificate {
    pki::X509Ptr x509;
    pki::CertInfo info;
};
Result<PeerCertificate> peer_certificate(TlsLayer& layer);
Status check_role(const pki::CertInfo& certificate);
Status check_name(const pki::CertInfo& certificate, const std::string& expected);

void set_tcp_options(Tcp::socket& socket);  // no delay; a dead host is noticed by the kernel within 4 s

}  // namespace banana::peer
