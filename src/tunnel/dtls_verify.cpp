// Whose certificate is good enough, and why a handshake was none, told at both ends.
//
// OpenSSL checks chain and validity; role and name are ours, checked inside its verification, so that the refusal goes
// out as an alert while the other end still waits, and once more when the handshake is done, on what SSL then holds. An
// alert is one number: each of our reasons is given an OpenSSL code that leaves as an alert of its own.
#include <fmt/core.h>

#include "tunnel/dtls_internal.h"

namespace banana::tunnel {

namespace {

constexpr int wrong_role = X509_V_ERR_INVALID_PURPOSE;      // leaves as "unsupported certificate"
constexpr int wrong_name = X509_V_ERR_PERMITTED_VIOLATION;  // leaves as "certificate unknown"

// What the other end's alert says of our certificate; "" when it is about something else.
const char* refusal_of(int alert) {
    switch (alert) {
        case SSL_AD_CERTIFICATE_EXPIRED: return "it has expired";
        case SSL_AD_UNKNOWN_CA: return "it is not signed by the CA in use there";
        case SSL_AD_BAD_CERTIFICATE: return "it is not valid there (not valid yet, or damaged)";
        case SSL_AD_UNSUPPORTED_CERTIFICATE: return "it has not the role 'tunnel'";
        case SSL_AD_CERTIFICATE_UNKNOWN: return "it does not name the host that was expected";
        case SSL_AD_CERTIFICATE_REVOKED: return "it has been revoked";
        default: return "";
    }
}

std::string alert_text(const Association& association) {
    if (const char* refusal = refusal_of(association.alert); *refusal != '\0')
        return fmt::format("the other end refused this host's certificate ({}): {}",
                           association.context->impl().paths.certificate, refusal);
    return fmt::format("the other end gave up: {}", SSL_alert_desc_string_long(association.alert));
}

}  // namespace

Status judge(const pki::CertInfo& certificate, const std::string& expected_host) {
    TRY(pki::check_role(certificate, pki::role_tunnel, "DTLS wires"));
    if (certificate.host.empty())
        return Error(Errc::refused, fmt::format("certificate '{}' names no host, or several", certificate.subject));
    if (expected_host.empty() || certificate.host == expected_host) return {};
    return Error(Errc::refused, fmt::format("certificate '{}' is of host '{}'; '{}' was expected", certificate.subject,
                                            certificate.host, expected_host));
}

int on_verify(int good, X509_STORE_CTX* store) {
    const auto* ssl = static_cast<const SSL*>(X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx()));
    Association& association = association_of(ssl);
    if (good == 0) {
        pki::keep_first(association.verdict, store);
        return 0;
    }
    if (X509_STORE_CTX_get_error_depth(store) > 0) return 1;
    const auto info = pki::describe(X509_STORE_CTX_get_current_cert(store));
    const Status verdict = info ? judge(*info, association.expected) : Status(info.error());
    if (verdict) return 1;
    association.objection = verdict.error().message();
    const bool role = info.ok() && info->role != pki::role_tunnel;
    X509_STORE_CTX_set_error(store, role ? wrong_role : wrong_name);
    return 0;
}

std::string failure_text(const Association& association, unsigned long reason) {
    if (!association.objection.empty()) return association.objection;
    if (association.verdict.error != X509_V_OK)
        return pki::verdict_error(association.verdict, association.context->impl().paths.ca).message();
    if (association.alert >= 0) return alert_text(association);
    if (ERR_GET_REASON(reason) == SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE) return "no certificate was shown";
    const char* text = ERR_reason_error_string(reason);
    return fmt::format("handshake: {}", text != nullptr ? text : "failed");
}

}  // namespace banana::tunnel
