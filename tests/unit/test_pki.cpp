#include <doctest/doctest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <set>

#include "base/bytes.h"
#include "pki/files.h"
#include "pki/issue.h"
#include "pki/openssl.h"

using namespace banana;
using namespace banana::pki;
namespace fs = std::filesystem;

namespace {

class Folder {
public:
    Folder() : path_(fs::temp_directory_path() / ("banana-pki-" + random_hex(8))) { fs::create_directory(path_); }
    ~Folder() { fs::remove_all(path_); }
    std::string operator/(const std::string& name) const { return path_ / name; }
    std::set<std::string> names(const std::string& below) const {
        std::set<std::string> out;
        for (const auto& entry : fs::directory_iterator(path_ / below)) out.insert(entry.path().filename());
        return out;
    }

private:
    fs::path path_;
};

mode_t mode_of(const std::string& path) {
    struct stat info {};
    REQUIRE(::stat(path.c_str(), &info) == 0);
    return info.st_mode & 07777;
}

std::string text_of(const std::string& path) {
    auto text = read_file(path);
    REQUIRE(text.ok());
    return *text;
}

X509Ptr load(const std::string& path) {
    const std::string text = text_of(path);
    const BioPtr bio(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
    return X509Ptr(PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr));
}

// What OpenSSL itself says of a host certificate under a CA, as either side of a connection.
int verify(const std::string& ca, const std::string& certificate, int purpose) {
    const X509Ptr ca_x509 = load(ca), host = load(certificate);
    const std::unique_ptr<X509_STORE, OpensslFree<X509_STORE_free>> store(X509_STORE_new());
    X509_STORE_add_cert(store.get(), ca_x509.get());
    const std::unique_ptr<X509_STORE_CTX, OpensslFree<X509_STORE_CTX_free>> context(X509_STORE_CTX_new());
    X509_STORE_CTX_init(context.get(), store.get(), host.get(), nullptr);
    X509_STORE_CTX_set_purpose(context.get(), purpose);
    X509_verify_cert(context.get());
    return X509_STORE_CTX_get_error(context.get());
}

InitOptions init_in(const std::string& dir) {
    InitOptions options;
    options.dir = dir;
    return options;
}

IssueOptions issue_in(const std::string& dir, const std::string& host) {
    IssueOptions options;
    options.host = host;
    options.dir = dir;
    return options;
}

}  // namespace

TEST_CASE("pki: a CA and its hosts") {
    const Folder folder;
    const std::string dir = folder / "pki";
    const auto ca = init(init_in(dir));
    REQUIRE(ca.ok());
    CHECK(mode_of(dir) == 0700);
    CHECK(mode_of(ca->key) == 0600);
    CHECK(mode_of(ca->certificate) == 0644);
    CHECK(ca->info.is_ca);
    CHECK(ca->info.subject == "CN=banana CA");
    const X509Ptr ca_x509 = load(ca->certificate);
    CHECK(X509_get_pathlen(ca_x509.get()) == 0);
    CHECK(X509_get_key_usage(ca_x509.get()) == KU_KEY_CERT_SIGN);
    CHECK(X509_get_signature_nid(ca_x509.get()) == NID_ecdsa_with_SHA256);

    const auto host = issue(issue_in(dir, "hv1"));
    REQUIRE(host.ok());
    CHECK(host->certificate == dir + "/hv1.crt");
    CHECK(mode_of(host->key) == 0600);
    const auto info = inspect(host->certificate);
    REQUIRE(info.ok());
    CHECK(info->host == "hv1");
    CHECK(info->role == "controller");
    CHECK(info->subject == "CN=hv1");
    CHECK(info->issuer == "CN=banana CA");
    CHECK_FALSE(info->is_ca);
    CHECK(info->not_before < ::time(nullptr));
    CHECK(info->not_after > ::time(nullptr) + 800 * 86400);
    CHECK(verify(ca->certificate, host->certificate, X509_PURPOSE_SSL_SERVER) == X509_V_OK);
    CHECK(verify(ca->certificate, host->certificate, X509_PURPOSE_SSL_CLIENT) == X509_V_OK);

    auto tunnel = issue_in(dir, "hv1");
    tunnel.role = role_tunnel;
    const auto second = issue(tunnel);
    REQUIRE(second.ok());
    CHECK(second->certificate == dir + "/hv1-tunnel.crt");
    CHECK(second->info.role == "tunnel");
    CHECK(second->info.serial != host->info.serial);
}

TEST_CASE("pki: nothing is overwritten unasked") {
    const Folder folder;
    const std::string dir = folder / "pki";
    REQUIRE(init(init_in(dir)).ok());
    REQUIRE(issue(issue_in(dir, "hv1")).ok());
    const std::string ca_key = text_of(dir + "/ca.key"), host_key = text_of(dir + "/hv1.key");
    const auto again = init(init_in(dir));
    REQUIRE_FALSE(again.ok());
    CHECK(again.error().code() == Errc::exists);
    CHECK(again.error().message() == "write " + dir + "/ca.key: it is there already; --overwrite replaces it");
    CHECK(issue(issue_in(dir, "hv1")).error().code() == Errc::exists);
    CHECK(text_of(dir + "/ca.key") == ca_key);
    CHECK(text_of(dir + "/hv1.key") == host_key);

    // The certificate alone is in the way: the key must not appear either.
    fs::remove(dir + "/hv1.key");
    CHECK(issue(issue_in(dir, "hv1")).error().code() == Errc::exists);
    CHECK(folder.names("pki") == std::set<std::string>{"ca.crt", "ca.key", "hv1.crt"});

    auto forced = issue_in(dir, "hv1");
    forced.overwrite = true;
    REQUIRE(issue(forced).ok());
    CHECK(text_of(dir + "/hv1.key") != host_key);
}

TEST_CASE("pki: --out takes the CA's certificate along, and no key of it") {
    const Folder folder;
    const std::string dir = folder / "pki";
    REQUIRE(init(init_in(dir)).ok());
    auto options = issue_in(dir, "hv2");
    options.out = folder / "hv2";
    // All of them or none.
    std::filesystem::create_directory(options.out);
    std::ofstream(options.out + "/hv2.crt") << "somebody's";
    CHECK(issue(options).error().code() == Errc::exists);
    CHECK(folder.names("hv2") == std::set<std::string>{"hv2.crt"});
    std::filesystem::remove_all(options.out);
    REQUIRE(issue(options).ok());
    CHECK(folder.names("hv2") == std::set<std::string>{"ca.crt", "hv2.crt", "hv2.key"});
    CHECK(mode_of(options.out) == 0700);

    const std::string other = folder / "other";
    REQUIRE(init(init_in(other)).ok());
    auto foreign = issue_in(other, "hv3");
    foreign.out = options.out;
    const auto refused = issue(foreign);
    REQUIRE_FALSE(refused.ok());
    CHECK(refused.error().message().find("another CA's certificate") != std::string::npos);
    CHECK(verify(other + "/ca.crt", options.out + "/hv2.crt", X509_PURPOSE_SSL_CLIENT) != X509_V_OK);
}

TEST_CASE("pki: certificates of an earlier CA that stay in the directory are named") {
    const Folder folder;
    const std::string dir = folder / "pki", out = folder / "hv1";
    const auto issue_for = [&](const char* role) {
        auto options = issue_in(dir, "hv1");
        options.out = out;
        options.role = role;
        options.overwrite = true;
        const auto issued = issue(options);
        REQUIRE(issued.ok());
        return issued->foreign;
    };
    REQUIRE(init(init_in(dir)).ok());
    CHECK(issue_for(role_controller).empty());
    std::ofstream(out + "/none.crt") << "no certificate\n";
    CHECK(issue_for(role_tunnel).empty());
    auto renewed = init_in(dir);
    renewed.overwrite = true;
    REQUIRE(init(renewed).ok());
    CHECK(issue_for(role_controller) == std::vector<std::string>{out + "/hv1-tunnel.crt"});
    CHECK(issue_for(role_tunnel).empty());
}

TEST_CASE("pki: bad input is refused by name, before anything is written") {
    const Folder folder;
    const std::string dir = folder / "pki";
    REQUIRE(init(init_in(dir)).ok());
    for (const char* host : {"", "-a", "A", "a_b", "a.b", "../a", "a/b", "ca", "a-tunnel", "a,URI:urn:x", "a\n",
                             "abcdefghijklmnopqrstuvwxyz0123456"}) {
        CAPTURE(host);
        const auto result = issue(issue_in(dir, host));
        REQUIRE_FALSE(result.ok());
        CHECK(result.error().code() == Errc::invalid);
    }
    auto role = issue_in(dir, "hv1");
    role.role = "root";
    CHECK(issue(role).error().code() == Errc::invalid);
    auto days = issue_in(dir, "hv1");
    days.days = 0;
    CHECK(issue(days).error().code() == Errc::invalid);
    auto cluster = init_in(folder / "x");
    cluster.cluster = "a/b";
    CHECK(init(cluster).error().code() == Errc::invalid);
    CHECK_FALSE(fs::exists(folder / "x"));
    const auto nowhere = issue(issue_in(folder / "none", "hv1"));
    REQUIRE_FALSE(nowhere.ok());
    CHECK(nowhere.error().code() == Errc::not_found);
    CHECK(nowhere.error().message() == "read " + (folder / "none/ca.crt") +
                                           ": No such file or directory; --dir names the "
                                           "CA's directory, `banana pki init` makes one");
    CHECK(folder.names("pki") == std::set<std::string>{"ca.crt", "ca.key"});
}

TEST_CASE("pki: validity can be chosen, and ends with the CA's") {
    const Folder folder;
    const std::string dir = folder / "pki";
    const int64_t now = ::time(nullptr);
    auto short_lived = init_in(dir);
    short_lived.days = 10;
    const auto ca = init(short_lived);
    REQUIRE(ca.ok());
    const auto cut = issue(issue_in(dir, "hv1"));
    REQUIRE(cut.ok());
    CHECK(cut->info.not_after == ca->info.not_after);
    auto expired = issue_in(dir, "hv2");
    expired.not_before = now - 7200;
    expired.not_after = now - 3600;
    REQUIRE(issue(expired).ok());
    CHECK(verify(dir + "/ca.crt", dir + "/hv2.crt", X509_PURPOSE_SSL_SERVER) == X509_V_ERR_CERT_HAS_EXPIRED);

    auto dead = init_in(folder / "dead");
    dead.not_before = now - 7200;
    dead.not_after = now - 3600;
    REQUIRE(init(dead).ok());
    const auto refused = issue(issue_in(folder / "dead", "hv1"));
    REQUIRE_FALSE(refused.ok());
    CHECK(refused.error().code() == Errc::refused);
}

TEST_CASE("pki: a file that cannot be written whole is not there at all") {
    const Folder folder;
    const std::string dir = folder / "pki";
    REQUIRE(init(init_in(dir)).ok());
    // A file size limit cuts write(2) short, as a full disk does, and needs no mount.
    rlimit old{};
    REQUIRE(getrlimit(RLIMIT_FSIZE, &old) == 0);
    const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
    const rlimit tight{300, old.rlim_max};  // a key fits, a certificate does not
    REQUIRE(setrlimit(RLIMIT_FSIZE, &tight) == 0);
    const auto result = issue(issue_in(dir, "hv1"));
    setrlimit(RLIMIT_FSIZE, &old);
    std::signal(SIGXFSZ, old_handler);
    REQUIRE_FALSE(result.ok());
    CHECK(result.error().message().starts_with("write " + dir + "/hv1.crt: "));
    CHECK(folder.names("pki") == std::set<std::string>{"ca.crt", "ca.key"});
}

TEST_CASE("pki: inspect names the file that is no certificate") {
    const Folder folder;
    std::ofstream(folder / "x.crt") << "no certificate\n";
    const auto result = inspect(folder / "x.crt");
    REQUIRE_FALSE(result.ok());
    CHECK(result.error().message() == "read certificate " + (folder / "x.crt") + ": there is none in it, in PEM form");
    CHECK(inspect(folder / "none.crt").error().code() == Errc::not_found);
}
