#include <doctest/doctest.h>

#include <ctime>
#include <filesystem>
#include <fstream>

#include "base/bytes.h"
#include "pki/files.h"
#include "pki/issue.h"
#include "pki/sign.h"

using namespace banana;
using namespace banana::pki;
namespace fs = std::filesystem;

namespace {

class Cluster {
public:
    Cluster() : path_(fs::temp_directory_path() / ("banana-sign-" + random_hex(8))) {
        InitOptions options;
        options.dir = path_;
        REQUIRE(init(options).ok());
    }
    ~Cluster() { fs::remove_all(path_); }
    std::string operator/(const std::string& name) const { return path_ / name; }

    Result<Issued> host(IssueOptions options) const {
        options.dir = path_;
        return issue(options);
    }
    Signer signer(IssueOptions options) const {
        auto issued = host(std::move(options));
        REQUIRE(issued.ok());
        auto loaded = Signer::load(issued->certificate, issued->key);
        REQUIRE(loaded.ok());
        return std::move(*loaded);
    }
    Signer signer(const std::string& host) const {
        IssueOptions options;
        options.host = host;
        return signer(options);
    }
    Verifier verifier() const {
        auto loaded = Verifier::load(*this / "ca.crt");
        REQUIRE(loaded.ok());
        return std::move(*loaded);
    }

private:
    fs::path path_;
};

Signature sign(const Signer& signer, std::string_view text) {
    auto signature = signer.sign(text);
    REQUIRE(signature.ok());
    return *signature;
}

// The refusal's text; "" when it was accepted.
std::string refusal(const Verifier& verifier, std::string_view text, const Signature& signature) {
    const auto result = verifier.verify(text, signature.signature_hex, signature.certificate_pem);
    if (result) return "";
    CHECK(result.error().code() == Errc::refused);
    return result.error().message();
}

bool contains(const std::string& text, const std::string& part) {
    CAPTURE(text);
    return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("sign: what a controller signed is its own, for every holder of the CA's certificate") {
    const Cluster cluster;
    const Signer signer = cluster.signer("hv1");
    CHECK(signer.info().host == "hv1");
    const Signature signature = sign(signer, "a text");
    const auto info = cluster.verifier().verify("a text", signature.signature_hex, signature.certificate_pem);
    REQUIRE(info.ok());
    CHECK(info->host == "hv1");
    CHECK(signature.certificate_pem.find("PRIVATE") == std::string::npos);
    CHECK(refusal(cluster.verifier(), "", sign(signer, "")).empty());
}

TEST_CASE("sign: another text, another signature, another's certificate") {
    const Cluster cluster;
    const Verifier verifier = cluster.verifier();
    const Signer one = cluster.signer("hv1"), two = cluster.signer("hv2");
    const Signature good = sign(one, "a text");
    const std::string not_its = "the signature is not that of certificate 'CN=hv1'";
    CHECK(refusal(verifier, "b text", good) == not_its);
    CHECK(refusal(verifier, "a text ", good) == not_its);
    CHECK(refusal(verifier, "a text", {sign(two, "a text").signature_hex, good.certificate_pem}) == not_its);
    for (const std::string& hex : {std::string(), std::string("zz"), std::string("30"), good.signature_hex + "00",
                                   good.signature_hex.substr(2), std::string(100000, '0')}) {
        CAPTURE(hex.size());
        CHECK(refusal(verifier, "a text", {hex, good.certificate_pem}) == not_its);
    }
    std::string flipped = good.signature_hex;
    flipped.back() = flipped.back() == '0' ? '1' : '0';
    CHECK(refusal(verifier, "a text", {flipped, good.certificate_pem}) == not_its);
}

TEST_CASE("sign: whose certificate is no good") {
    const Cluster cluster, other;
    const Verifier verifier = cluster.verifier();
    const int64_t now = ::time(nullptr);

    IssueOptions options;
    options.host = "hv1";
    options.role = role_tunnel;
    CHECK(refusal(verifier, "t", sign(cluster.signer(options), "t")) ==
          "certificate 'CN=hv1' has role 'tunnel'; signatures need role 'controller'");

    options = {};
    options.host = "hv2";
    options.not_before = now - 7200;
    options.not_after = now - 3600;
    CHECK(refusal(verifier, "t", sign(cluster.signer(options), "t")) ==
          "certificate 'CN=hv2' expired on " + utc_text(now - 3600));

    options = {};
    options.host = "hv3";
    options.not_before = now + 3600;
    options.not_after = now + 7200;
    CHECK(contains(refusal(verifier, "t", sign(cluster.signer(options), "t")), "is not yet valid, not before"));

    CHECK(contains(refusal(verifier, "t", sign(other.signer("hv1"), "t")),
                   "is not signed by this cluster's CA (" + cluster / "ca.crt"));
    // The CA itself is no controller, and its key is not made for texts.
    const auto ca = Signer::load(cluster / "ca.crt", cluster / "ca.key");
    REQUIRE_FALSE(ca.ok());
    CHECK(contains(ca.error().message(), "is not made for signatures"));
    const auto ca_pem = read_file(cluster / "ca.crt");
    CHECK(contains(refusal(verifier, "t", {"00", *ca_pem}), "has no role; signatures need role 'controller'"));
}

TEST_CASE("sign: garbage for a certificate") {
    const Cluster cluster;
    const Verifier verifier = cluster.verifier();
    const Signature good = sign(cluster.signer("hv1"), "t");
    const std::string half = good.certificate_pem.substr(0, good.certificate_pem.size() / 2);
    for (const std::string& pem : {std::string(), std::string("x"), std::string(1000, '\0'), half}) {
        CAPTURE(pem.size());
        CHECK(contains(refusal(verifier, "t", {good.signature_hex, pem}), "the signer's certificate cannot be read"));
    }
    CHECK(contains(refusal(verifier, "t", {good.signature_hex, std::string(1 << 20, 'x') + good.certificate_pem}),
                   "is larger than"));
    // What follows the first certificate is not looked at: it cannot lend its name.
    const Signature second = sign(cluster.signer("hv2"), "t");
    const auto info = verifier.verify("t", good.signature_hex, good.certificate_pem + second.certificate_pem);
    REQUIRE(info.ok());
    CHECK(info->host == "hv1");
}

TEST_CASE("sign: files that are no identity are refused by name") {
    const Cluster cluster;
    IssueOptions options;
    options.host = "hv1";
    const auto one = cluster.host(options);
    options.host = "hv2";
    const auto two = cluster.host(options);
    REQUIRE((one.ok() && two.ok()));
    CHECK(Signer::load(one->certificate, two->key).error().message() ==
          two->key + " does not belong to " + one->certificate);
    CHECK(Signer::load(cluster / "none.crt", one->key).error().code() == Errc::not_found);
    CHECK(Signer::load(one->certificate, cluster / "none.key").error().code() == Errc::not_found);
    CHECK(contains(Signer::load(one->key, one->key).error().message(), "read certificate " + one->key));
    CHECK(contains(Verifier::load(cluster / "none.crt").error().message(), "none.crt"));
    CHECK(contains(Verifier::load(one->key).error().message(), "read CA certificate " + one->key));
    fs::permissions(one->key, fs::perms::group_read, fs::perm_options::add);
    CHECK(contains(Signer::load(one->certificate, one->key).error().message(), "lets others read it"));
    std::ofstream(cluster / "bad.key") << "no key\n";
    fs::permissions(cluster / "bad.key", fs::perms::owner_read);
    CHECK(contains(Signer::load(one->certificate, cluster / "bad.key").error().message(), "read key"));
}
