#include "peer/tls.h"

#include <fmt/core.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include "base/bytes.h"
#include "pki/files.h"

namespace banana::peer {

namespace {

constexpr int user_timeout_ms = 4000;
constexpr int keep_idle_s = 2, keep_interval_s = 1, keep_count = 2;

std::string named(const pki::CertInfo& certificate) { return fmt::format("certificate '{}'", certificate.subject); }

Status configure(SSL_CTX* ssl, const std::string& ca, const std::string& certificate, const std::string& key) {
    const auto failed = [](const std::string& what) {
        return Error(Errc::invalid, fmt::format("{}: {}", what, pki::openssl_reason()));
    };
    ERR_clear_error();
    if (SSL_CTX_set_min_proto_version(ssl, TLS1_3_VERSION) != 1) return failed("choose TLS 1.3");
    SSL_CTX_set_num_tickets(ssl, 0);
    SSL_CTX_set_session_cache_mode(ssl, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_verify_depth(ssl, 1);
    if (SSL_CTX_load_verify_file(ssl, ca.c_str()) != 1) return failed(fmt::format("read CA certificate {}", ca));
    if (SSL_CTX_use_certificate_file(ssl, certificate.c_str(), SSL_FILETYPE_PEM) != 1)
        return failed(fmt::format("read certificate {}", certificate));
    // No pass phrase is ever asked for on a daemon's terminal.
    SSL_CTX_set_default_passwd_cb(ssl, [](char*, int, int, void*) { return 0; });
    if (SSL_CTX_use_PrivateKey_file(ssl, key.c_str(), SSL_FILETYPE_PEM) != 1)
        return failed(fmt::format("read key {}", key));
    if (SSL_CTX_check_private_key(ssl) != 1) return failed(fmt::format("key {} of certificate {}", key, certificate));
    return {};
}

// What the other end's alert says of our certificate; "" when the code is about something else.
const char* refusal_of(int reason) {
    switch (reason) {
        case SSL_R_SSLV3_ALERT_CERTIFICATE_EXPIRED: return "it has expired";
        case SSL_R_TLSV1_ALERT_UNKNOWN_CA: return "it is not signed by the CA in use there";
        case SSL_R_SSLV3_ALERT_BAD_CERTIFICATE: return "it is not valid there (not valid yet, or damaged)";
        case SSL_R_SSLV3_ALERT_UNSUPPORTED_CERTIFICATE: return "it is not made for this purpose";
        case SSL_R_SSLV3_ALERT_CERTIFICATE_REVOKED: return "it has been revoked";
        case SSL_R_SSLV3_ALERT_CERTIFICATE_UNKNOWN: return "it was not accepted";
        case SSL_R_TLSV1_ALERT_ACCESS_DENIED: return "access denied";
        case SSL_R_TLSV13_ALERT_CERTIFICATE_REQUIRED: return "none was shown";
        default: return "";
    }
}

}  // namespace

Result<std::shared_ptr<const Identity>> Identity::load(const std::string& ca, const std::string& certificate,
                                                       const std::string& key) {
    auto identity = std::make_shared<Identity>();
    identity->own_path = certificate;
    identity->ca_path = ca;
    TRY_SET(identity->ca, pki::inspect(ca));
    TRY_SET(identity->own, pki::inspect(certificate));
    TRY(pki::check_key_mode(key));
    identity->context = std::make_shared<asio::ssl::context>(asio::ssl::context::tls);
    identity->context->set_verify_mode(asio::ssl::verify_peer | asio::ssl::verify_fail_if_no_peer_cert);
    TRY(configure(identity->context->native_handle(), ca, certificate, key));
    return std::shared_ptr<const Identity>(identity);
}

std::string Identity::problem(const std::string& host) const {
    if (auto good = verify(SSL_CTX_get0_certificate(context->native_handle())); !good) return good.error().message();
    if (auto good = check_role(own); !good) return good.error().message();
    if (auto good = check_name(own, host); !good) return good.error().message();
    return "";
}

Status Identity::verify(X509* certificate) const {
    return pki::verify_chain(SSL_CTX_get_cert_store(context->native_handle()), certificate, ca_path);
}

std::unique_ptr<TlsStream> make_tls_stream(Tcp::socket socket, const std::shared_ptr<const Identity>& identity) {
    // The context must outlive the layer: the explaining function, which lives in the stream, holds it.
    auto explain = [identity](const asio::error_code& code) { return tls_error(code, identity->own_path); };
    return std::make_unique<TlsStream>(TlsLayer(std::move(socket), *identity->context), std::move(explain));
}

std::shared_ptr<Verdict> watch_verification(TlsLayer& layer) {
    auto verdict = std::make_shared<Verdict>();
    layer.set_verify_callback([verdict](bool good, asio::ssl::verify_context& context) {
        if (!good) pki::keep_first(*verdict, context.native_handle());
        return good;
    });
    return verdict;
}

Error verdict_error(const Verdict& verdict, const Identity& identity) {
    return pki::verdict_error(verdict, identity.ca_path);
}

Error tls_error(const asio::error_code& code, const std::string& own_certificate) {
    if (code == asio::ssl::error::stream_truncated) return {Errc::unreachable, "the other end closed the connection"};
    if (code.category() != asio::error::get_ssl_category()) return {Errc::unreachable, code.message()};
    const int reason = ERR_GET_REASON(static_cast<unsigned>(code.value()));
    if (const char* refusal = refusal_of(reason); *refusal != '\0')
        return {Errc::refused, fmt::format("it refused this host's certificate ({}): {}", own_certificate, refusal)};
    if (reason == SSL_R_WRONG_VERSION_NUMBER || reason == SSL_R_HTTP_REQUEST)
        return {Errc::refused, "it does not speak TLS"};
    if (reason == SSL_R_UNSUPPORTED_PROTOCOL || reason == SSL_R_TLSV1_ALERT_PROTOCOL_VERSION)
        return {Errc::refused, "it does not speak TLS 1.3"};
    return {Errc::refused, "TLS: " + code.message()};
}

Result<PeerCertificate> peer_certificate(TlsLayer& layer) {
    PeerCertificate out;
    out.x509.reset(SSL_get1_peer_certificate(layer.native_handle()));
    if (!out.x509) return Error(Errc::refused, "no certificate was shown");
    TRY_SET(out.info, pki::describe(out.x509.get()));
    return out;
}

Status check_role(const pki::CertInfo& certificate) { return pki::check_controller(certificate, "peers"); }

Status check_name(const pki::CertInfo& certificate, const std::string& expected) {
    if (certificate.host == expected && !expected.empty()) return {};
    if (certificate.host.empty())
        return Error(Errc::refused, fmt::format("{} names no host; '{}' was expected", named(certificate), expected));
    return Error(Errc::refused,
                 fmt::format("{} is of host '{}'; '{}' was expected", named(certificate), certificate.host, expected));
}

void set_tcp_options(Tcp::socket& socket) {
    const auto set = [fd = socket.native_handle()](int level, int option, int value) {
        ::setsockopt(fd, level, option, &value, sizeof value);  // each only sharpens what pings find out anyway
    };
    set(IPPROTO_TCP, TCP_NODELAY, 1);
    set(SOL_SOCKET, SO_KEEPALIVE, 1);
    set(IPPROTO_TCP, TCP_KEEPIDLE, keep_idle_s);
    set(IPPROTO_TCP, TCP_KEEPINTVL, keep_interval_s);
    set(IPPROTO_TCP, TCP_KEEPCNT, keep_count);
    set(IPPROTO_TCP, TCP_USER_TIMEOUT, user_timeout_ms);
}

}  // namespace banana::peer
