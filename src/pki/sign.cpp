#include "pki/sign.h"

#include <fmt/core.h>

#include "base/bytes.h"
#include "pki/files.h"

namespace banana::pki {

namespace {

constexpr size_t max_certificate_pem = 16384;  // ours are below 1 000 bytes
constexpr size_t max_signature_hex = 2 * 72;   // DER of two 256-bit integers

using DigestPtr = std::unique_ptr<EVP_MD_CTX, OpensslFree<EVP_MD_CTX_free>>;

const unsigned char* bytes_of(std::string_view text) { return reinterpret_cast<const unsigned char*>(text.data()); }

// nullptr with an OpenSSL error queued when there is no certificate in it.
X509Ptr parse_certificate(std::string_view pem) {
    const BioPtr bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
    return X509Ptr(PEM_read_bio_X509(
        bio.get(), nullptr, [](char*, int, int, void*) { return 0; }, nullptr));
}

// One certificate, without what else the file may hold.
Result<std::string> to_pem(X509* certificate) {
    const BioPtr bio(BIO_new(BIO_s_mem()));
    if (!bio || PEM_write_bio_X509(bio.get(), certificate) != 1)
        return Error(fmt::format("encode certificate: {}", openssl_reason()));
    const char* data = nullptr;
    const long size = BIO_get_mem_data(bio.get(), &data);
    return std::string(data, static_cast<size_t>(size));
}

bool is_p256(const EVP_PKEY* key) {
    char group[64] = "";
    size_t size = 0;
    if (EVP_PKEY_get_base_id(key) != EVP_PKEY_EC) return false;
    return EVP_PKEY_get_group_name(key, group, sizeof group, &size) == 1 &&
           std::string_view(group, size) == SN_X9_62_prime256v1;
}

Status check_fitness(X509* certificate, const std::string& which) {
    if ((X509_get_key_usage(certificate) & KU_DIGITAL_SIGNATURE) == 0)
        return Error(Errc::refused, fmt::format("{} is not made for signatures", which));
    const EVP_PKEY* key = X509_get0_pubkey(certificate);
    if (key == nullptr || !is_p256(key)) return Error(Errc::refused, fmt::format("{} has no EC P-256 key", which));
    return {};
}

}  // namespace

Result<Signer> Signer::load(const std::string& certificate_path, const std::string& key_path) {
    ERR_clear_error();
    Signer signer;
    TRY_SET(const std::string text, read_file(certificate_path));
    const X509Ptr certificate = parse_certificate(text);
    if (!certificate)
        return Error(Errc::invalid, fmt::format("read certificate {}: {}", certificate_path, openssl_reason()));
    TRY_SET(signer.info_, describe(certificate.get()));
    TRY_SET(signer.certificate_pem_, to_pem(certificate.get()));
    TRY(check_key_mode(key_path));
    TRY_SET(std::string secret, read_file(key_path));
    {
        const BioPtr bio(BIO_new_mem_buf(secret.data(), static_cast<int>(secret.size())));
        // The callback refuses a pass phrase; without one OpenSSL would ask on the terminal.
        signer.key_.reset(PEM_read_bio_PrivateKey(
            bio.get(), nullptr, [](char*, int, int, void*) { return 0; }, nullptr));
    }
    OPENSSL_cleanse(secret.data(), secret.size());
    if (!signer.key_) return Error(Errc::invalid, fmt::format("read key {}: {}", key_path, openssl_reason()));
    if (X509_check_private_key(certificate.get(), signer.key_.get()) != 1) {
        ERR_clear_error();
        return Error(Errc::invalid, fmt::format("{} does not belong to {}", key_path, certificate_path));
    }
    TRY(check_fitness(certificate.get(), fmt::format("certificate {}", certificate_path)));
    return signer;
}

Result<Signature> Signer::sign(std::string_view text) const {
    const auto failed = [] { return Error(fmt::format("sign: {}", openssl_reason())); };
    ERR_clear_error();
    const DigestPtr digest(EVP_MD_CTX_new());
    size_t size = 0;
    if (!digest || EVP_DigestSignInit(digest.get(), nullptr, EVP_sha256(), nullptr, key_.get()) != 1 ||
        EVP_DigestSign(digest.get(), nullptr, &size, bytes_of(text), text.size()) != 1)
        return failed();
    std::string raw(size, '\0');
    auto* out = reinterpret_cast<unsigned char*>(raw.data());
    if (EVP_DigestSign(digest.get(), out, &size, bytes_of(text), text.size()) != 1) return failed();
    return Signature{to_hex({out, size}), certificate_pem_};
}

Result<Verifier> Verifier::load(const std::string& ca_path) {
    ERR_clear_error();
    Verifier verifier;
    verifier.ca_path_ = ca_path;
    TRY(read_file(ca_path));  // for the file's own error; OpenSSL would tell of its BIO
    verifier.trusted_.reset(X509_STORE_new());
    if (!verifier.trusted_ || X509_STORE_load_file(verifier.trusted_.get(), ca_path.c_str()) != 1 ||
        X509_STORE_set_depth(verifier.trusted_.get(), 1) != 1)
        return Error(Errc::invalid, fmt::format("read CA certificate {}: {}", ca_path, openssl_reason()));
    return verifier;
}

Result<CertInfo> Verifier::verify(std::string_view text, std::string_view signature_hex,
                                  std::string_view certificate_pem) const {
    ERR_clear_error();
    if (certificate_pem.size() > max_certificate_pem)
        return Error(Errc::refused,
                     fmt::format("the signer's certificate is larger than {} bytes", max_certificate_pem));
    const X509Ptr certificate = parse_certificate(certificate_pem);
    if (!certificate)
        return Error(Errc::refused, fmt::format("the signer's certificate cannot be read: {}", openssl_reason()));
    TRY(verify_chain(trusted_.get(), certificate.get(), ca_path_));
    TRY_SET(CertInfo info, describe(certificate.get()));
    TRY(check_controller(info, "signatures"));
    TRY(check_fitness(certificate.get(), fmt::format("certificate '{}'", info.subject)));

    const auto wrong = [&info] {
        ERR_clear_error();
        return Error(Errc::refused, fmt::format("the signature is not that of certificate '{}'", info.subject));
    };
    if (signature_hex.size() > max_signature_hex) return wrong();
    const auto raw = from_hex(signature_hex);
    if (!raw) return wrong();
    const DigestPtr digest(EVP_MD_CTX_new());
    EVP_PKEY* key = X509_get0_pubkey(certificate.get());
    if (!digest || EVP_DigestVerifyInit(digest.get(), nullptr, EVP_sha256(), nullptr, key) != 1)
        return Error(fmt::format("verify a signature: {}", openssl_reason()));
    if (EVP_DigestVerify(digest.get(), bytes_of(*raw), raw->size(), bytes_of(text), text.size()) != 1) return wrong();
    return info;
}

}  // namespace banana::pki
