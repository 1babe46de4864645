// pki init, issue, show: local work on files; no daemon is asked.
#include <fmt/core.h>

#include <algorithm>
#include <ctime>
#include <filesystem>

#include "cli/local.h"
#include "cli/run.h"
#include "cli/session.h"
#include "cli/table.h"
#include "pki/issue.h"

namespace banana::cli {

namespace {

Json issued_json(const pki::Issued& issued) {
    return Json::object({{"certificate", issued.certificate},
                         {"key", issued.key},
                         {"ca", issued.ca},
                         {"info", issued.info.json()},
                         {"foreign", Json::array(issued.foreign)}});
}

// The certificates in a directory, by name.
Result<std::vector<std::string>> certificates_in(const std::string& dir) {
    std::vector<std::string> out;
    std::error_code error;
    for (std::filesystem::directory_iterator entry(dir, error), end; !error && entry != end; entry.increment(error))
        if (entry->path().extension() == ".crt") out.push_back(entry->path());
    if (error) return errno_error(error.value(), fmt::format("read directory {}", dir));
    if (out.empty()) return Error(Errc::not_found, fmt::format("read directory {}: no certificate (*.crt) in it", dir));
    std::sort(out.begin(), out.end());
    return out;
}

}  // namespace

Result<int> run_pki_init(Session& session, const Command& command, const Json& params) {
    pki::InitOptions options;
    options.dir = params.get("dir").as_string();
    options.cluster = params.get("cluster").as_string();
    options.days = static_cast<int>(params.get("days").as_int(options.days));
    options.overwrite = params.get("overwrite").as_bool();
    TRY_SET(const pki::Issued issued, pki::init(options));
    session.show(command.print, params, issued_json(issued));
    return exit_done;
}

Result<int> run_pki_issue(Session& session, const Command& command, const Json& params) {
    pki::IssueOptions options;
    options.host = params.get("host").as_string();
    options.dir = params.get("dir").as_string();
    options.out = params.get("out").as_string();
    options.role = params.get("role").as_string();
    options.days = static_cast<int>(params.get("days").as_int(options.days));
    options.overwrite = params.get("overwrite").as_bool();
    TRY_SET(const pki::Issued issued, pki::issue(options));
    for (const auto& file : issued.foreign)
        session.complain(
            fmt::format("warning: {} is not of this CA, and hosts of this CA will refuse it: issue it anew, "
                        "with --overwrite",
                        file));
    session.show(command.print, params, issued_json(issued));
    return exit_done;
}

void print_issued(const Page& page, const Json&, const Json& result) {
    if (page.brief) {
        page.out << cell(result.get("certificate")) << '\n';
        return;
    }
    print_fields(page.out, result, {{"certificate", "certificate"}, {"key (secret)", "key"}, {"CA", "ca"}});
    page.out << fmt::format("{}, valid until {}\n", cell(at_path(result, "info.subject")),
                            pki::utc_text(at_path(result, "info.not_after").as_int()));
}

Result<int> run_pki_show(Session& session, const Command& command, const Json& params) {
    std::vector<std::string> files;
    const Json named = params.get("files");
    for (size_t i = 0; i < named.size(); ++i) files.push_back(named.at(i).as_string());
    if (files.empty()) {
        TRY_SET(files, certificates_in(params.get("dir").as_string()));
    }
    Json certificates = Json::array();
    for (const auto& file : files) {
        TRY_SET(const pki::CertInfo info, pki::inspect(file));
        Json certificate = info.json();
        certificate.set("file", file);
        certificates.push(certificate);
    }
    session.show(command.print, params, Json::object({{"certificates", certificates}}));
    return exit_done;
}

void print_certificates(const Page& page, const Json&, const Json& result) {
    const Json certificates = result.get("certificates");
    const int64_t now = ::time(nullptr);
    Table table({"FILE", "SUBJECT", "HOST", "ROLE", "ISSUER", "VALID UNTIL", "SHA-256"});
    for (size_t i = 0; i < certificates.size(); ++i) {
        const Json one = certificates.at(i);
        if (page.brief) {
            page.out << cell(one.get("file")) << '\n';
            continue;
        }
        const int64_t until = one.get("not_after").as_int();
        const char* validity = until <= now ? " (expired)" : one.get("not_before").as_int() > now ? " (not yet)" : "";
        table.add({cell(one.get("file")), cell(one.get("subject")), cell(one.get("host")),
                   one.get("ca").as_bool() ? "CA" : cell(one.get("role")), cell(one.get("issuer")),
                   pki::utc_text(until) + validity, cell(one.get("sha256"))});
    }
    if (!page.brief) table.print(page.out);
}

}  // namespace banana::cli
