#include "controller/certificates.h"

#include <doctest/doctest.h>

#include <ctime>
#include <filesystem>

#include "pki/issue.h"

using namespace banana;
using namespace banana::controller;
namespace fs = std::filesystem;

namespace {

constexpr int64_t day = 86400;

// A CA and hv1's two certificates, each good for 100 days.
struct Files {
    fs::path folder;
    Config config;
    int64_t now = ::time(nullptr);

    Files() {
        std::string name = fs::temp_directory_path() / "banana-certificates-XXXXXX";
        REQUIRE(::mkdtemp(name.data()) != nullptr);
        folder = name;
        make_ca(folder / "pki");
        issue("hv1", pki::role_controller, 100);
        issue("hv1", pki::role_tunnel, 100);
        const std::string dir = folder / "pki";
        config.host = "hv1";
        config.tls = {dir + "/ca.crt", dir + "/hv1.crt", dir + "/hv1.key"};
        config.tunnel.certificate = dir + "/hv1-tunnel.crt";
    }
    ~Files() { fs::remove_all(folder); }

    static void make_ca(const fs::path& dir) {
        pki::InitOptions options;
        options.dir = dir;
        REQUIRE(pki::init(options).ok());
    }
    void issue(const std::string& host, const char* role, int64_t days, const char* ca = "pki") const {
        pki::IssueOptions options;
        options.host = host;
        options.dir = folder / ca;
        options.role = role;
        options.overwrite = true;
        options.not_before = now - 200 * day;
        options.not_after = now + days * day + 60;
        REQUIRE(pki::issue(options).ok());
    }
    CertificateReport report() const { return examine_certificates(config, now); }
};

bool starts(const std::vector<std::string>& texts, const std::string& words) {
    if (texts.size() == 1 && texts[0].starts_with(words)) return true;
    for (const auto& text : texts) MESSAGE(text);
    return false;
}

}  // namespace

TEST_CASE("good certificates tell how long they are good for") {
    Files files;
    const auto report = files.report();
    CHECK(report.problems().empty());
    REQUIRE(report.good.size() == 3);
    CHECK(report.good[0] == "controller's of hv1: 100 days left");
    CHECK(report.good[1] == "tunnel's: 100 days left");
    CHECK(report.good[2].starts_with("CA 'CN=banana CA': 36"));
    fs::remove(files.config.tunnel.certificate);  // a host without DTLS wires
    CHECK(files.report().problems().empty());
    CHECK(files.report().good.size() == 2);
}

TEST_CASE("a certificate that ends soon is told of, with its end") {
    Files files;
    files.issue("hv1", pki::role_controller, 1);
    const std::string path = files.config.tls.certificate;
    CHECK(starts(files.report().ending, "certificate " + path + " ends in 1 day, on 20"));
    CHECK(files.report().refused.empty());
    files.issue("hv1", pki::role_controller, 29);
    CHECK(starts(files.report().ending, "certificate " + path + " ends in 29 days, on "));
    files.issue("hv1", pki::role_controller, 30);
    files.issue("hv1", pki::role_tunnel, 3);
    CHECK(starts(files.report().ending, "certificate " + files.config.tunnel.certificate + " ends in 3 days, on "));
}

TEST_CASE("what peers will refuse is told before they do") {
    Files files;
    const std::string refused = "peers will refuse this host (" + files.config.tls.certificate + "): certificate 'CN=";
    SUBCASE("expired") {
        files.issue("hv1", pki::role_controller, -2);
        CHECK(starts(files.report().refused, refused + "hv1' expired on "));
    }
    SUBCASE("another host's") {
        files.issue("hv7", pki::role_controller, 100);
        files.config.tls.certificate = files.folder / "pki/hv7.crt";
        files.config.tls.key = files.folder / "pki/hv7.key";
        CHECK(starts(files.report().refused, "peers will refuse this host (" + files.config.tls.certificate +
                                                 "): certificate 'CN=hv7' is of host 'hv7'; 'hv1' was expected"));
    }
    SUBCASE("another CA's") {
        Files::make_ca(files.folder / "other");
        files.config.tls.ca = files.folder / "other/ca.crt";
        CHECK(starts(files.report().refused, refused));
        CHECK(files.report().refused[0].find("is not signed by this cluster's CA") != std::string::npos);
        CHECK(files.report().unusable.size() == 1);
    }
    SUBCASE("another role") {
        files.issue("hv1", pki::role_tunnel, 100);
        files.config.tls.certificate = files.folder / "pki/hv1-tunnel.crt";
        files.config.tls.key = files.folder / "pki/hv1-tunnel.key";
        CHECK(files.report().refused[0].find("peers need role 'controller'") != std::string::npos);
    }
    SUBCASE("no key of its own") {
        files.config.tls.key = files.folder / "pki/hv1-tunnel.key";
        CHECK(files.report().refused[0] == "read key " + files.config.tls.key + ": key values mismatch");
    }
    CHECK(files.report().refused.size() == 1);
}

TEST_CASE("the tunnel's certificate has its own role and this host's name") {
    Files files;
    files.config.tunnel.certificate = files.config.tls.certificate;
    const std::string unusable =
        "no DTLS wires with " + files.config.tls.certificate + ": certificate 'CN=hv1' has role ";
    CHECK(starts(files.report().unusable, unusable + "'controller'; DTLS wires need role 'tunnel'"));
    files.issue("hv7", pki::role_tunnel, 100);
    files.config.tunnel.certificate = files.folder / "pki/hv7-tunnel.crt";
    CHECK(files.report().unusable[0].ends_with("is of host 'hv7'; 'hv1' was expected"));
    CHECK(files.report().refused.empty());
}
