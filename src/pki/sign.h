// Signatures over short texts by a controller's own key, checked against the cluster's CA.
//
// Concepts: ECDSA on P-256 with SHA-256 (FIPS 186-5, section 6), DER in hexadecimal, and beside it the signer's
// certificate, so that a verifier needs nothing but the CA. The same key proves the host in TLS; a TLS 1.3 signature is
// over a text that begins with 64 blanks (RFC 8446, section 4.4.3), so what is signed here must begin with a purpose of
// its own ("banana-grant-1\n"), and neither can pass for the other.
// Threading: values after load(); const functions from one thread at a time.
// Errors: loading names the file; a signature that does not hold is Errc::refused and says whose it claims to be.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"
#include "pki/verify.h"

namespace banana::pki {

struct Signature {
    std::string signature_hex;
    std::string certificate_pem;
};

class Signer {
public:
    // The key must be P-256, belong to the certificate, and be readable by its owner only.
    static Result<Signer> load(const std::string& certificate_path, const std::string& key_path);
    Result<Signature> sign(std::string_view text) const;
    const CertInfo& info() const { return info_; }

private:
    KeyPtr key_;
    std::string certificate_pem_;
    CertInfo info_;
};

class Verifier {
public:
    static Result<Verifier> load(const std::string& ca_path);
    // Chain to the cluster's CA, validity now, role controller, fit for signatures, and the signature. Returns who
    // signed. The arguments may be anybody's: their sizes are bounded and nothing of them is trusted before.
    Result<CertInfo> verify(std::string_view text, std::string_view signature_hex,
                            std::string_view certificate_pem) const;

private:
    StorePtr trusted_;
    std::string ca_path_;
};

}  // namespace banana::pki
