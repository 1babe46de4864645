// What is wrong with a certificate, in words that name it: shared by TLS (peer/tls.h) and signatures (sign.h).
//
// Concepts: OpenSSL decides; a Verdict keeps the first thing that it found wrong with a chain, since its last code
// tells an operator nothing. Role and key file are checked by us. Threading: pure functions but check_key_mode().
// Errors: Errc::refused; those about an object of OpenSSL's carry its own words.
#pragma once

#include <string>

#include "base/result.h"
#include "pki/cert.h"
#include "pki/openssl.h"

namespace banana::pki {

using StorePtr = std::unique_ptr<X509_STORE, OpensslFree<X509_STORE_free>>;

struct Verdict {
    int error = X509_V_OK;
    int depth = 0;
    CertInfo certificate;
};

void keep_first(Verdict& verdict, X509_STORE_CTX* context);
Error verdict_error(const Verdict& verdict, const std::string& ca_path);
// Chain and validity, now.
Status verify_chain(X509_STORE* trusted, X509* certificate, const std::string& ca_path);
Result<CertInfo> verify_file(const std::string& path, const std::string& ca_path);  // the same of a PEM file's first

// `who`: what needs the role, in the plural: "peers".
Status check_role(const CertInfo& certificate, const char* role, const std::string& who);
inline Status check_controller(const CertInfo& certificate, const std::string& who) {
    return check_role(certificate, role_controller, who);
}
Status check_key_mode(const std::string& path);  // a key that others may read is no key

}  // namespace banana::pki
