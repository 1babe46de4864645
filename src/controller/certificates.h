// Certificates: what those in this host's files are good for, as `doctor`, `status` and `reload` tell of them.
//
// Threading: reads files; no state. Errors: told as text.
#pragma once

#include <string>
#include <vector>

#include "controller/config.h"

namespace banana::controller {

inline constexpr int64_t certificate_warning_days = 30;

struct CertificateReport {
    std::vector<std::string> good;              // "controller's of hv1: 824 days left"
    std::vector<std::string> refused;           // why peers will refuse the controller, or it cannot start
    std::vector<std::string> unusable;          // why there will be no DTLS wires: what is wrong with the tunnel's
    std::vector<std::string> ending;            // those that are good, and soon no more
    std::vector<std::string> problems() const;  // the last three
};

// The controller's, the tunnel's if there is one, and the CA's: chain, validity, role, host, the controller's key.
// `now`: wall time, seconds; what is valid is decided by the clock.
CertificateReport examine_certificates(const Config& config, int64_t now);

}  // namespace banana::controller
