// What both ends may negotiate. All of it is fixed: nothing here is for an operator to weaken.
#include <fmt/core.h>

#include "pki/files.h"
#include "tunnel/dtls_internal.h"

namespace banana::tunnel {

namespace {

constexpr const char* aes_first = "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-CHACHA20-POLY1305";
constexpr const char* chacha_first = "ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-ECDSA-AES128-GCM-SHA256";
constexpr long certificate_list_max = 8192;  // ours are below 1 000 bytes; it bounds what a stranger can make us keep

Error openssl_error(const std::string& what) {
    return {Errc::invalid, fmt::format("{}: {}", what, pki::openssl_reason())};
}

// An alert's arrival is told here only: OpenSSL's own report of it is mixed with other errors.
void on_info(const SSL* ssl, int where, int value) {
    constexpr int close_notify = 0;
    if (where == SSL_CB_READ_ALERT && (value & 0xff) != close_notify) association_of(ssl).alert = value & 0xff;
}

Status set_protocol(SSL_CTX* ssl, CipherPreference preference) {
    SSL_CTX_set_options(ssl, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_TICKET | SSL_OP_NO_COMPRESSION | SSL_OP_NO_QUERY_MTU |
                                 SSL_OP_COOKIE_EXCHANGE);
    // A listener that prefers ChaCha20 insists; otherwise the dialler's order holds. So either gets it.
    if (preference == CipherPreference::chacha) SSL_CTX_set_options(ssl, SSL_OP_CIPHER_SERVER_PREFERENCE);
    SSL_CTX_set_session_cache_mode(ssl, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_security_level(ssl, 2);
    SSL_CTX_set_verify(ssl, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, on_verify);
    SSL_CTX_set_verify_depth(ssl, 1);
    SSL_CTX_set_max_cert_list(ssl, certificate_list_max);
    SSL_CTX_set_cookie_generate_cb(ssl, on_make_cookie);
    SSL_CTX_set_cookie_verify_cb(ssl, on_check_cookie);
    SSL_CTX_set_info_callback(ssl, on_info);
    if (SSL_CTX_set_min_proto_version(ssl, DTLS1_2_VERSION) != 1 ||
        SSL_CTX_set_max_proto_version(ssl, DTLS1_2_VERSION) != 1)
        return openssl_error("choose DTLS 1.2");
    if (SSL_CTX_set_cipher_list(ssl, preference == CipherPreference::aes ? aes_first : chacha_first) != 1)
        return openssl_error("choose ciphers");
    if (SSL_CTX_set1_groups_list(ssl, "X25519:P-256") != 1 || SSL_CTX_set1_sigalgs_list(ssl, "ECDSA+SHA256") != 1)
        return openssl_error("choose key exchange and signatures");
    return {};
}

Status load_files(SSL_CTX* ssl, const Credentials& paths) {
    TRY(pki::check_key_mode(paths.key));
    if (SSL_CTX_load_verify_file(ssl, paths.ca.c_str()) != 1)
        return openssl_error(fmt::format("read CA certificate {}", paths.ca));
    if (SSL_CTX_use_certificate_file(ssl, paths.certificate.c_str(), SSL_FILETYPE_PEM) != 1)
        return openssl_error(fmt::format("read certificate {}", paths.certificate));
    // No pass phrase is ever asked for on a daemon's terminal.
    SSL_CTX_set_default_passwd_cb(ssl, [](char*, int, int, void*) { return 0; });
    if (SSL_CTX_use_PrivateKey_file(ssl, paths.key.c_str(), SSL_FILETYPE_PEM) != 1)
        return openssl_error(fmt::format("read key {}", paths.key));
    if (SSL_CTX_check_private_key(ssl) != 1)
        return openssl_error(fmt::format("key {} of certificate {}", paths.key, paths.certificate));
    return {};
}

}  // namespace

Context::Context() : impl_(std::make_unique<Impl>()) {}
Context::~Context() = default;

const std::string& Context::host() const { return impl_->own.host; }

Result<std::shared_ptr<const Context>> Context::load(const Credentials& credentials, CipherPreference preference,
                                                     OwnCertificate own) {
    const std::shared_ptr<Context> context(new Context);
    Impl& impl = *context->impl_;
    impl.paths = credentials;
    TRY(pki::inspect(
        credentials.ca));  // both for their own errors: OpenSSL's do not tell a missing file from a bad one
    TRY_SET(impl.own, pki::inspect(credentials.certificate));
    ERR_clear_error();
    impl.ssl.reset(SSL_CTX_new(DTLS_method()));
    if (!impl.ssl) return openssl_error("DTLS");
    TRY(set_protocol(impl.ssl.get(), preference));
    TRY(load_files(impl.ssl.get(), credentials));
    if (own == OwnCertificate::must_fit) {
        const std::string which = fmt::format("own certificate {}", credentials.certificate);
        SSL_CTX* ssl = impl.ssl.get();
        TRY(pki::verify_chain(SSL_CTX_get_cert_store(ssl), SSL_CTX_get0_certificate(ssl), credentials.ca)
                .context(which));
        TRY(judge(impl.own, "").context(which));
    }
    return std::shared_ptr<const Context>(context);
}

}  // namespace banana::tunnel
