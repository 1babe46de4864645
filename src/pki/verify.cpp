#include "pki/verify.h"

#include <fmt/core.h>
#include <sys/stat.h>

#include <cerrno>

#include "pki/files.h"

namespace banana::pki {

namespace {

bool is_foreign(int error) {
    switch (error) {
        case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
        case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
        case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
        case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
        case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
        case X509_V_ERR_CERT_SIGNATURE_FAILURE:
        case X509_V_ERR_CERT_UNTRUSTED:
        case X509_V_ERR_AKID_SKID_MISMATCH: return true;
        default: return false;
    }
}

}  // namespace

void keep_first(Verdict& verdict, X509_STORE_CTX* context) {
    const int error = X509_STORE_CTX_get_error(context);
    if (error == X509_V_OK || verdict.error != X509_V_OK) return;
    verdict.error = error;
    verdict.depth = X509_STORE_CTX_get_error_depth(context);
    const X509* current = X509_STORE_CTX_get_current_cert(context);
    if (current == nullptr) return;
    if (auto info = describe(current)) verdict.certificate = std::move(*info);
}

Error verdict_error(const Verdict& verdict, const std::string& ca_path) {
    const auto& certificate = verdict.certificate;
    const std::string which = fmt::format("{}certificate '{}'", verdict.depth > 0 ? "CA " : "", certificate.subject);
    if (is_foreign(verdict.error))
        return {Errc::refused, fmt::format("{} of issuer '{}' is not signed by this cluster's CA ({})", which,
                                           certificate.issuer, ca_path)};
    if (verdict.error == X509_V_ERR_CERT_HAS_EXPIRED)
        return {Errc::refused, fmt::format("{} expired on {}", which, utc_text(certificate.not_after))};
    if (verdict.error == X509_V_ERR_CERT_NOT_YET_VALID)
        return {Errc::refused, fmt::format("{} is not yet valid, not before {} (are the clocks right?)", which,
                                           utc_text(certificate.not_before))};
    return {Errc::refused, fmt::format("{}: {}", which, X509_verify_cert_error_string(verdict.error))};
}

Status verify_chain(X509_STORE* trusted, X509* certificate, const std::string& ca_path) {
    const std::unique_ptr<X509_STORE_CTX, OpensslFree<X509_STORE_CTX_free>> context(X509_STORE_CTX_new());
    if (!context || X509_STORE_CTX_init(context.get(), trusted, certificate, nullptr) != 1)
        return Error(fmt::format("verify a certificate: {}", openssl_reason()));
    if (X509_verify_cert(context.get()) == 1) return {};
    Verdict verdict;
    keep_first(verdict, context.get());
    ERR_clear_error();
    return verdict_error(verdict, ca_path);
}

Result<CertInfo> verify_file(const std::string& path, const std::string& ca_path) {
    ERR_clear_error();
    TRY(read_file(ca_path));  // for the file's own error; OpenSSL would tell of its BIO
    TRY_SET(const std::string text, read_file(path));
    const StorePtr trusted(X509_STORE_new());
    if (!trusted || X509_STORE_load_file(trusted.get(), ca_path.c_str()) != 1 ||
        X509_STORE_set_depth(trusted.get(), 1) != 1)
        return Error(Errc::invalid, fmt::format("read CA certificate {}: {}", ca_path, openssl_reason()));
    const BioPtr bio(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
    const X509Ptr certificate(PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr));
    if (!certificate) return Error(Errc::invalid, fmt::format("read certificate {}: {}", path, openssl_reason()));
    TRY(verify_chain(trusted.get(), certificate.get(), ca_path));
    return describe(certificate.get()).context(path);
}

Status check_role(const CertInfo& certificate, const char* role, const std::string& who) {
    if (certificate.role == role) return {};
    return Error(
        Errc::refused,
        fmt::format("certificate '{}' has {}; {} need role '{}'", certificate.subject,
                    certificate.role.empty() ? "no role" : fmt::format("role '{}'", certificate.role), who, role));
}

Status check_key_mode(const std::string& path) {
    struct stat info {};
    if (::stat(path.c_str(), &info) != 0) return errno_error(errno, fmt::format("read key {}", path));
    if ((info.st_mode & 077) == 0) return {};
    return Error(Errc::refused, fmt::format("read key {}: mode {:04o} lets others read it; it must be 0600", path,
                                            info.st_mode & 07777));
}

}  // namespace banana::pki
