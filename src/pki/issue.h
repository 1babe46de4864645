// A small certificate authority for one cluster: `banana pki init` and `banana pki issue`.
//
// Concepts: EC P-256 keys, ECDSA with SHA-256. The CA (basicConstraints CA, pathlen 0, keyUsage keyCertSign) lives in
// one directory as ca.crt and ca.key; a host gets HOST.crt and HOST.key (role tunnel: HOST-tunnel.crt and .key),
// fit for both sides of a TLS connection. Whoever holds ca.key can name hosts: it belongs on none of them.
// Files are written beside their name, synced, then given it, and never over an existing one without `overwrite`; a
// key is 0600 from its first byte. An error leaves nothing new behind.
// Threading: blocking; any one thread. Errors: exists, invalid (name, days), not_found (no CA), else the file's errno.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "pki/cert.h"

namespace banana::pki {

struct InitOptions {
    std::string dir;                 // made with mode 0700 if it is not there
    std::string cluster = "banana";  // the CA's subject: CN=<cluster> CA
    int days = 3650;
    bool overwrite = false;
    std::optional<int64_t> not_before, not_after;  // seconds since the epoch, in place of now and `days`
};

struct IssueOptions {
    std::string host;
    std::string dir;                     // the CA's
    std::string out;                     // "" : dir
    std::string role = role_controller;  // or role_tunnel
    int days = 825;                      // cut to the CA's own end
    bool overwrite = false;
    std::optional<int64_t> not_before, not_after;
};

struct Issued {
    std::string certificate, key, ca;  // paths
    CertInfo info;
    std::vector<std::string> foreign;  // issue(): certificates beside it that are not this CA's: an earlier one's
};

Result<Issued> init(const InitOptions& options);
Result<Issued> issue(const IssueOptions& options);  // copies ca.crt to `out` where that is another directory

}  // namespace banana::pki
