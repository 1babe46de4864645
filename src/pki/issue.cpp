#include "pki/issue.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cstring>
#include <ctime>
#include <filesystem>

#include "base/bytes.h"
#include "pki/files.h"
#include "pki/openssl.h"

namespace banana::pki {

namespace {

constexpr int64_t day = 86400;
constexpr int max_days = 36500;
constexpr int64_t clock_skew = 3600;  // hosts' clocks may be that far behind the CA's
constexpr int serial_bytes = 16;

Error openssl_error(const std::string& what) { return Error(fmt::format("{}: {}", what, openssl_reason())); }

struct Validity {
    int64_t not_before, not_after;
};

Result<Validity> validity(int days, std::optional<int64_t> not_before, std::optional<int64_t> not_after) {
    if (days < 1 || days > max_days)
        return Error(Errc::invalid, fmt::format("{} days of validity; it must be 1 to {}", days, max_days));
    const int64_t now = ::time(nullptr);
    const Validity out{not_before.value_or(now - clock_skew), not_after.value_or(now + days * day)};
    if (out.not_before >= out.not_after) return Error(Errc::invalid, "the validity's beginning is not before its end");
    return out;
}

// Positive, so that its DER form has no padding octet, and never zero.
Status set_random_serial(X509* certificate) {
    std::array<uint8_t, serial_bytes> raw{};
    random_bytes(raw);
    raw[0] = static_cast<uint8_t>((raw[0] & 0x7f) | 0x40);
    const BignumPtr number(BN_bin2bn(raw.data(), static_cast<int>(raw.size()), nullptr));
    if (!number || BN_to_ASN1_INTEGER(number.get(), X509_get_serialNumber(certificate)) == nullptr)
        return openssl_error("set serial number");
    return {};
}

Status add_extension(X509* certificate, X509* issuer, int nid, const std::string& value) {
    X509V3_CTX context;
    X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
    const ExtensionPtr extension(X509V3_EXT_conf_nid(nullptr, &context, nid, value.c_str()));
    if (!extension || X509_add_ext(certificate, extension.get(), -1) != 1)
        return openssl_error(fmt::format("add extension {}", OBJ_nid2sn(nid)));
    return {};
}

// Everything but the extensions and the signature. Without `issuer`: self-issued.
Result<X509Ptr> blank_certificate(const std::string& common_name, const Validity& when, EVP_PKEY* key, X509* issuer) {
    const std::string what = fmt::format("make certificate '{}'", common_name);
    X509Ptr certificate(X509_new());
    if (!certificate || X509_set_version(certificate.get(), X509_VERSION_3) != 1) return openssl_error(what);
    TRY(set_random_serial(certificate.get()));
    X509_NAME* subject = X509_get_subject_name(certificate.get());
    const auto* text = reinterpret_cast<const unsigned char*>(common_name.c_str());
    if (X509_NAME_add_entry_by_NID(subject, NID_commonName, MBSTRING_UTF8, text, -1, -1, 0) != 1 ||
        X509_set_issuer_name(certificate.get(), issuer != nullptr ? X509_get_subject_name(issuer) : subject) != 1 ||
        ASN1_TIME_set(X509_getm_notBefore(certificate.get()), when.not_before) == nullptr ||
        ASN1_TIME_set(X509_getm_notAfter(certificate.get()), when.not_after) == nullptr ||
        X509_set_pubkey(certificate.get(), key) != 1)
        return openssl_error(what);
    return certificate;
}

Status sign(X509* certificate, EVP_PKEY* key) {
    if (X509_sign(certificate, key, EVP_sha256()) == 0) return openssl_error("sign certificate");
    return {};
}

std::string contents(BIO* bio) {
    const char* data = nullptr;
    const long size = BIO_get_mem_data(bio, &data);
    return {data, static_cast<size_t>(std::max(size, 0L))};
}

Result<std::string> certificate_pem(X509* certificate) {
    const BioPtr bio(BIO_new(BIO_s_mem()));
    if (PEM_write_bio_X509(bio.get(), certificate) != 1) return openssl_error("encode certificate");
    return contents(bio.get());
}

Result<std::string> key_pem(EVP_PKEY* key) {
    const BioPtr bio(BIO_new(BIO_s_secmem()));
    if (PEM_write_bio_PrivateKey(bio.get(), key, nullptr, nullptr, 0, nullptr, nullptr) != 1)
        return openssl_error("encode key");
    return contents(bio.get());
}

Status check_cluster_name(const std::string& name) {
    bool good = !name.empty() && name.size() <= 40;
    for (const char c : name) good = good && (isalnum(static_cast<unsigned char>(c)) != 0 || strchr(" ._-", c));
    if (good) return {};
    return Error(Errc::invalid, fmt::format("'{}' is not a cluster name: 1 to 40 letters, digits, ' ', '.', '_' or '-'",
                                            printable(name, 60)));
}

struct Authority {
    X509Ptr certificate;
    KeyPtr key;
    std::string pem;
    CertInfo info;
};

Result<Authority> load_authority(const std::string& dir) {
    Authority ca;
    const std::string certificate_path = dir + "/ca.crt", key_path = dir + "/ca.key";
    auto pem = read_file(certificate_path);
    if (!pem && pem.error().code() == Errc::not_found)
        return Error(Errc::not_found, fmt::format("{}; --dir names the CA's directory, `banana pki init` makes one",
                                                  pem.error().message()));
    TRY_SET(ca.pem, std::move(pem));
    const BioPtr bio(BIO_new_mem_buf(ca.pem.data(), static_cast<int>(ca.pem.size())));
    ca.certificate.reset(PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr));
    if (!ca.certificate) return openssl_error(fmt::format("read certificate {}", certificate_path));
    TRY_SET(std::string secret, read_file(key_path));
    const BioPtr key_bio(BIO_new_mem_buf(secret.data(), static_cast<int>(secret.size())));
    // The callback refuses a pass phrase; without one OpenSSL would ask on the terminal.
    ca.key.reset(PEM_read_bio_PrivateKey(
        key_bio.get(), nullptr, [](char*, int, int, void*) { return 0; }, nullptr));
    OPENSSL_cleanse(secret.data(), secret.size());
    if (!ca.key) return openssl_error(fmt::format("read key {}", key_path));
    if (X509_check_private_key(ca.certificate.get(), ca.key.get()) != 1) {
        ERR_clear_error();
        return Error(Errc::invalid, fmt::format("{} does not belong to {}", key_path, certificate_path));
    }
    TRY_SET(ca.info, describe(ca.certificate.get()));
    if (!ca.info.is_ca) return Error(Errc::invalid, fmt::format("{} is not a CA's certificate", certificate_path));
    return ca;
}

Result<Validity> host_validity(const IssueOptions& options, const CertInfo& ca) {
    TRY_SET(Validity when, validity(options.days, options.not_before, options.not_after));
    if (options.not_after) return when;
    if (ca.not_after <= ::time(nullptr))
        return Error(Errc::refused, fmt::format("the CA's certificate '{}' expired on {}: make a new one with `banana "
                                                "pki init`",
                                                ca.subject, utc_text(ca.not_after)));
    when.not_after = std::min(when.not_after, ca.not_after);
    return when;
}

Status add_host_extensions(X509* certificate, X509* ca, const IssueOptions& options) {
    TRY(add_extension(certificate, ca, NID_basic_constraints, "critical,CA:FALSE"));
    TRY(add_extension(certificate, ca, NID_key_usage, "critical,digitalSignature"));
    TRY(add_extension(certificate, ca, NID_ext_key_usage, "serverAuth,clientAuth"));
    TRY(add_extension(certificate, ca, NID_subject_key_identifier, "hash"));
    TRY(add_extension(certificate, ca, NID_authority_key_identifier, "keyid:always"));
    return add_extension(certificate, ca, NID_subject_alt_name,
                         fmt::format("DNS:{},URI:{}{}", options.host, role_urn_prefix, options.role));
}

// "ca" would take the CA's own file names, "x-tunnel" those of host x's tunnel.
Status check_issue_options(const IssueOptions& options) {
    TRY(check_host_name(options.host));
    if (options.host == "ca" || options.host.ends_with("-tunnel"))
        return Error(Errc::invalid,
                     fmt::format("'{}' cannot be a host's name: its files would bear another's names", options.host));
    if (options.role != role_controller && options.role != role_tunnel)
        return Error(Errc::invalid, fmt::format("role '{}'; it is {} or {}", printable(options.role, 40),
                                                role_controller, role_tunnel));
    return {};
}

// Beside a host's files stands the CA's certificate; another CA's is not replaced unasked.
Status add_ca(std::vector<NewFile>& files, const std::string& pem, const std::string& to, bool overwrite) {
    const auto there = read_file(to);
    if (there && *there == pem) return {};
    if (there && !overwrite)
        return Error(Errc::exists,
                     fmt::format("write {}: another CA's certificate is there; --overwrite replaces it", to));
    files.push_back({to, pem, 0644});
    return {};
}

// Hosts' certificates in a directory that `ca` has not signed. What cannot be read is nobody's.
std::vector<std::string> foreign_certificates(const std::string& folder, X509* ca) {
    std::vector<std::string> out;
    std::error_code error;
    for (std::filesystem::directory_iterator entry(folder, error), end; !error && entry != end;
         entry.increment(error)) {
        if (entry->path().extension() != ".crt" || entry->path().filename() == "ca.crt") continue;
        const auto text = read_file(entry->path());
        if (!text) continue;
        const BioPtr bio(BIO_new_mem_buf(text->data(), static_cast<int>(text->size())));
        const X509Ptr certificate(PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr));
        if (certificate && X509_verify(certificate.get(), X509_get0_pubkey(ca)) != 1) out.push_back(entry->path());
    }
    ERR_clear_error();
    std::sort(out.begin(), out.end());
    return out;
}

}  // namespace

Result<Issued> init(const InitOptions& options) {
    TRY(check_cluster_name(options.cluster));
    TRY_SET(const Validity when, validity(options.days, options.not_before, options.not_after));
    const KeyPtr key(EVP_EC_gen("P-256"));
    if (!key) return openssl_error("make CA key");
    TRY_SET(const X509Ptr certificate, blank_certificate(options.cluster + " CA", when, key.get(), nullptr));
    X509* self = certificate.get();
    TRY(add_extension(self, self, NID_basic_constraints, "critical,CA:TRUE,pathlen:0"));
    TRY(add_extension(self, self, NID_key_usage, "critical,keyCertSign"));
    TRY(add_extension(self, self, NID_subject_key_identifier, "hash"));
    TRY(sign(self, key.get()));

    Issued out;
    out.certificate = out.ca = options.dir + "/ca.crt";
    out.key = options.dir + "/ca.key";
    TRY_SET(out.info, describe(self));
    TRY_SET(const std::string certificate_text, certificate_pem(self));
    TRY_SET(const std::string key_text, key_pem(key.get()));
    TRY(make_private_dir(options.dir));
    TRY(write_files({{out.key, key_text, 0600}, {out.certificate, certificate_text, 0644}}, options.overwrite));
    return out;
}

Result<Issued> issue(const IssueOptions& options) {
    TRY(check_issue_options(options));
    TRY_SET(const Authority ca, load_authority(options.dir));
    TRY_SET(const Validity when, host_validity(options, ca.info));
    const KeyPtr key(EVP_EC_gen("P-256"));
    if (!key) return openssl_error("make host key");
    TRY_SET(const X509Ptr certificate, blank_certificate(options.host, when, key.get(), ca.certificate.get()));
    TRY(add_host_extensions(certificate.get(), ca.certificate.get(), options));
    TRY(sign(certificate.get(), ca.key.get()));

    const std::string folder = options.out.empty() ? options.dir : options.out;
    const std::string stem = folder + "/" + options.host + (options.role == role_tunnel ? "-tunnel" : "");
    Issued out{stem + ".crt", stem + ".key", folder + "/ca.crt", {}, {}};
    TRY_SET(out.info, describe(certificate.get()));
    TRY_SET(const std::string certificate_text, certificate_pem(certificate.get()));
    TRY_SET(const std::string key_text, key_pem(key.get()));
    TRY(make_private_dir(folder));
    std::vector<NewFile> files{{out.key, key_text, 0600}, {out.certificate, certificate_text, 0644}};
    if (folder != options.dir) TRY(add_ca(files, ca.pem, out.ca, options.overwrite));
    TRY(write_files(files, options.overwrite));
    out.foreign = foreign_certificates(folder, ca.certificate.get());
    return out;
}

}  // namespace banana::pki
