// Reading certificates: what a certificate says about a host, as plain values.
//
// Concepts: a host's certificate names it in exactly one SAN DNS entry and gives its role in one SAN URI,
// "urn:banana:role:controller" or "urn:banana:role:tunnel". The subject is for people; nothing is decided by it.
// Threading: pure functions. Errors name the file or certificate. Reference: RFC 5280, sections 4.1 and 4.2.1.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/json.h"
#include "base/result.h"

struct x509_st;

namespace banana::pki {

inline constexpr const char* role_controller = "controller";
inline constexpr const char* role_tunnel = "tunnel";
inline constexpr const char* role_urn_prefix = "urn:banana:role:";

struct CertInfo {
    std::string subject;                    // "CN=hv1"
    std::string issuer;                     // "CN=banana CA"
    std::string host;                       // the one SAN DNS entry; "" when there is none or more than one
    std::string role;                       // after the URN prefix; "" when there is none or more than one
    std::string serial;                     // hexadecimal
    std::string sha256;                     // fingerprint, hexadecimal
    int64_t not_before = 0, not_after = 0;  // seconds since the epoch, UTC
    bool is_ca = false;
    Json json() const;
};

Result<CertInfo> inspect(const std::string& path);  // the first certificate in a PEM file
Result<CertInfo> describe(const x509_st* certificate);

// [a-z0-9][a-z0-9-]{0,31}; the error says what is wrong.
Status check_host_name(std::string_view name);
std::string utc_text(int64_t seconds);  // "2026-01-31 12:00:00 UTC"

}  // namespace banana::pki
