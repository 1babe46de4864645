#include "controller/certificates.h"

#include <fmt/core.h>
#include <unistd.h>

#include "peer/tls.h"

namespace banana::controller {

namespace {

constexpr int64_t day_s = 86400;

std::string days_text(int64_t days) { return fmt::format("{} day{}", days, days == 1 ? "" : "s"); }

void tell_days(CertificateReport& report, const std::string& which, const std::string& path,
               const pki::CertInfo& certificate, int64_t now) {
    const int64_t days = (certificate.not_after - now) / day_s;
    if (days < 0) return;  // a CA that is over: that is why peers refuse
    report.good.push_back(fmt::format("{}: {} left", which, days_text(days)));
    if (days < certificate_warning_days)
        report.ending.push_back(fmt::format("certificate {} ends in {}, on {}", path, days_text(days),
                                            pki::utc_text(certificate.not_after)));
}

Result<pki::CertInfo> check_tunnel(const Config& config) {
    TRY_SET(const pki::CertInfo info, pki::verify_file(config.tunnel.certificate, config.tls.ca));
    TRY(pki::check_role(info, pki::role_tunnel, "DTLS wires"));
    TRY(peer::check_name(info, config.host));
    return info;
}

}  // namespace

std::vector<std::string> CertificateReport::problems() const {
    std::vector<std::string> out = refused;
    out.insert(out.end(), unusable.begin(), unusable.end());
    out.insert(out.end(), ending.begin(), ending.end());
    return out;
}

CertificateReport examine_certificates(const Config& config, int64_t now) {
    CertificateReport report;
    const TlsConfig& tls = config.tls;
    const auto identity = peer::Identity::load(tls.ca, tls.certificate, tls.key);
    if (!identity) {
        report.refused.push_back(identity.error().message());
        return report;
    }
    if (const std::string problem = (*identity)->problem(config.host); !problem.empty())
        report.refused.push_back(fmt::format("peers will refuse this host ({}): {}", tls.certificate, problem));
    else
        tell_days(report, "controller's of " + config.host, tls.certificate, (*identity)->own, now);
    if (::access(config.tunnel.certificate.c_str(), F_OK) == 0) {
        if (const auto tunnel = check_tunnel(config))
            tell_days(report, "tunnel's", config.tunnel.certificate, *tunnel, now);
        else
            report.unusable.push_back(
                fmt::format("no DTLS wires with {}: {}", config.tunnel.certificate, tunnel.error().message()));
    }
    tell_days(report, fmt::format("CA '{}'", (*identity)->ca.subject), tls.ca, (*identity)->ca, now);
    return report;
}

}  // namespace banana::controller
