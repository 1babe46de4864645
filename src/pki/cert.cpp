#include "pki/cert.h"

#include <fmt/core.h>

#include <array>
#include <ctime>
#include <span>
#include <vector>

#include "base/bytes.h"
#include "pki/files.h"
#include "pki/openssl.h"

namespace banana::pki {

namespace {

std::string name_text(const X509_NAME* name) {
    const BioPtr bio(BIO_new(BIO_s_mem()));
    X509_NAME_print_ex(bio.get(), name, 0, XN_FLAG_RFC2253);
    const char* data = nullptr;
    const long size = BIO_get_mem_data(bio.get(), &data);
    return size > 0 ? printable({data, static_cast<size_t>(size)}) : "";
}

Result<int64_t> seconds(const ASN1_TIME* time) {
    tm parts{};
    if (ASN1_TIME_to_tm(time, &parts) != 1) return Error(Errc::invalid, "certificate: a date that cannot be read");
    return int64_t{timegm(&parts)};
}

std::string ia5_text(const ASN1_IA5STRING* text) {
    const auto* data = reinterpret_cast<const char*>(ASN1_STRING_get0_data(text));
    return {data, static_cast<size_t>(ASN1_STRING_length(text))};
}

// Two names would let the bearer choose who to be; so one that is not the only one counts as none.
void read_alternative_names(const X509* certificate, CertInfo& info) {
    const NamesPtr names(
        static_cast<GENERAL_NAMES*>(X509_get_ext_d2i(certificate, NID_subject_alt_name, nullptr, nullptr)));
    std::vector<std::string> hosts, roles;
    for (int i = 0; names && i < sk_GENERAL_NAME_num(names.get()); ++i) {
        const GENERAL_NAME* name = sk_GENERAL_NAME_value(names.get(), i);
        if (name->type == GEN_DNS) hosts.push_back(ia5_text(name->d.dNSName));
        if (name->type != GEN_URI) continue;
        const std::string uri = ia5_text(name->d.uniformResourceIdentifier);
        if (uri.starts_with(role_urn_prefix)) roles.push_back(uri.substr(std::string_view(role_urn_prefix).size()));
    }
    if (hosts.size() == 1 && check_host_name(hosts[0])) info.host = hosts[0];
    if (roles.size() == 1 && (roles[0] == role_controller || roles[0] == role_tunnel)) info.role = roles[0];
}

}  // namespace

Json CertInfo::json() const {
    return Json::object({{"subject", subject},
                         {"issuer", issuer},
                         {"host", host},
                         {"role", role},
                         {"serial", serial},
                         {"sha256", sha256},
                         {"not_before", not_before},
                         {"not_after", not_after},
                         {"ca", is_ca}});
}

Result<CertInfo> describe(const x509_st* certificate) {
    CertInfo info;
    info.subject = name_text(X509_get_subject_name(certificate));
    info.issuer = name_text(X509_get_issuer_name(certificate));
    TRY_SET(info.not_before, seconds(X509_get0_notBefore(certificate)));
    TRY_SET(info.not_after, seconds(X509_get0_notAfter(certificate)));
    // Both only fill caches inside the X509, which OpenSSL's own prototypes do not call const.
    auto* readable = const_cast<X509*>(certificate);
    info.is_ca = X509_check_ca(readable) == 1;
    const ASN1_INTEGER* serial = X509_get0_serialNumber(certificate);
    info.serial = to_hex({ASN1_STRING_get0_data(serial), static_cast<size_t>(ASN1_STRING_length(serial))});
    std::array<uint8_t, EVP_MAX_MD_SIZE> digest{};
    unsigned size = 0;
    if (X509_digest(certificate, EVP_sha256(), digest.data(), &size) == 1)
        info.sha256 = to_hex(std::span(digest).first(size));
    read_alternative_names(certificate, info);
    return info;
}

Result<CertInfo> inspect(const std::string& path) {
    TRY_SET(const std::string text, read_file(path));
    const BioPtr bio(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
    const X509Ptr certificate(PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr));
    if (!certificate) return Error(Errc::invalid, fmt::format("read certificate {}: {}", path, openssl_reason()));
    return describe(certificate.get()).context(path);
}

Status check_host_name(std::string_view name) {
    constexpr size_t max = 32;
    const auto letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); };
    bool good = !name.empty() && name.size() <= max && letter(name[0]);
    for (const char c : name) good = good && (letter(c) || c == '-');
    if (good) return {};
    return Error(Errc::invalid,
                 fmt::format("'{}' is not a host name: 1 to {} of a-z, 0-9 and '-', not beginning with '-'",
                             printable(name, 60), max));
}

std::string utc_text(int64_t seconds_since_epoch) {
    const auto time = static_cast<time_t>(seconds_since_epoch);
    tm parts{};
    gmtime_r(&time, &parts);
    return fmt::format("{:04}-{:02}-{:02} {:02}:{:02}:{:02} UTC", parts.tm_year + 1900, parts.tm_mon + 1, parts.tm_mday,
                       parts.tm_hour, parts.tm_min, parts.tm_sec);
}

}  // namespace banana::pki
