#include <doctest/doctest.h>

#include <ctime>
#include <filesystem>
#include <functional>

#include "base/bytes.h"
#include "migration/grant.h"
#include "pki/issue.h"

using namespace banana;
using namespace banana::migration;
namespace fs = std::filesystem;

namespace {

class Cluster {
public:
    Cluster() : path_(fs::temp_directory_path() / ("banana-grant-" + random_hex(8))) {
        pki::InitOptions options;
        options.dir = path_;
        REQUIRE(pki::init(options).ok());
    }
    ~Cluster() { fs::remove_all(path_); }

    GrantFiles files(pki::IssueOptions options) const {
        options.dir = path_;
        options.overwrite = true;
        const auto issued = pki::issue(options);
        REQUIRE(issued.ok());
        return {issued->ca, issued->certificate, issued->key};
    }
    GrantFiles files(const std::string& host) const {
        pki::IssueOptions options;
        options.host = host;
        return files(options);
    }
    Grants of(const pki::IssueOptions& options) const { return load(files(options)); }
    Grants of(const std::string& host) const { return load(files(host)); }
    static Grants load(const GrantFiles& files) {
        auto grants = Grants::load(files);
        REQUIRE(grants.ok());
        return std::move(*grants);
    }

private:
    fs::path path_;
};

Grant sample() {
    Grant grant;
    grant.spike = "6f0ea4e2-6ac5-4f3b-a3f5-3f2c6b1f7a10/52:54:00:12:34:56";
    grant.name = "hv1/vm1/net0";
    grant.owner = "hv1";
    grant.owner_epoch = 7;
    grant.destination = "hv2";
    grant.corm = "hv3/lab";
    grant.expires = wall_seconds() + 120;
    return grant;
}

Json issue(const Grants& grants, const Grant& grant) {
    auto envelope = grants.issue(grant);
    REQUIRE(envelope.ok());
    // As a peer sees it: a copy by text, not a shared object.
    return *Json::parse(envelope->dump());
}

std::string refusal(const Grants& grants, const Json& envelope, Errc code = Errc::refused) {
    const auto result = grants.verify(envelope);
    if (result) return "";
    CHECK(std::string(errc_name(result.error().code())) == errc_name(code));
    return result.error().message();
}

bool contains(const std::string& text, const std::string& part) {
    CAPTURE(text);
    return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("grant: the text that is signed, byte for byte") {
    Grant grant = sample();
    grant.nonce = "00112233445566778899aabbccddeeff";
    grant.expires = 1790000000;
    CHECK(grant.text() ==
          "banana-grant-1\n"
          "spike 54:6f0ea4e2-6ac5-4f3b-a3f5-3f2c6b1f7a10/52:54:00:12:34:56\n"
          "name 12:hv1/vm1/net0\n"
          "owner 3:hv1\n"
          "owner_epoch 7\n"
          "destination 3:hv2\n"
          "corm 7:hv3/lab\n"
          "nonce 32:00112233445566778899aabbccddeeff\n"
          "expires 1790000000\n");
    // What looks like the next field inside a value is part of the value.
    Grant sly = grant;
    sly.name = "x\nowner 3:hv9";
    CHECK(sly.text().find("name 13:x\nowner 3:hv9\nowner 3:hv1\n") != std::string::npos);
    CHECK_FALSE(sly.check().ok());
}

TEST_CASE("grant: issued by its owner, good for every host of the cluster") {
    const Cluster cluster;
    const Grants owner = cluster.of("hv1"), corm = cluster.of("hv3");
    const Json envelope = issue(owner, sample());
    const auto grant = corm.verify(envelope);
    REQUIRE(grant.ok());
    Grant expected = sample();
    expected.nonce = grant->nonce;
    expected.expires = grant->expires;
    CHECK(*grant == expected);
    CHECK(grant->nonce.size() == 32);
    CHECK(issue(owner, sample()).get("grant").get("nonce").as_string() != grant->nonce);
    // Members of a younger release are ignored: they are not signed.
    envelope.get("grant").set("colour", "yellow");
    CHECK(corm.verify(envelope).ok());
}

TEST_CASE("grant: each field is signed") {
    const Cluster cluster;
    const Grants owner = cluster.of("hv1"), corm = cluster.of("hv3");
    const std::vector<std::pair<const char*, Json>> changes{
        {"spike", "6f0ea4e2-6ac5-4f3b-a3f5-3f2c6b1f7a10/52:54:00:12:34:57"},
        {"name", "hv1/vm2/net0"},
        {"owner_epoch", 8},
        {"destination", "hv4"},
        {"corm", "hv3/lan"},
        {"nonce", "00112233445566778899aabbccddeeff"},
        {"expires", wall_seconds() + 1000},
    };
    for (const auto& [field, value] : changes) {
        CAPTURE(field);
        const Json envelope = issue(owner, sample());
        REQUIRE(envelope.get("grant").has(field));
        envelope.get("grant").set(field, value);
        CHECK(contains(refusal(corm, envelope), "the signature is not that of certificate 'CN=hv1'"));
    }
    // All members but the version and the owner are in the table above.
    CHECK(issue(owner, sample()).get("grant").size() == changes.size() + 2);
    const Json versioned = issue(owner, sample());
    versioned.get("grant").set("version", 2);
    CHECK(refusal(corm, versioned, Errc::unsupported) == "grant: its version is 2; this bananad knows 1");
}

TEST_CASE("grant: nobody gives what is another's") {
    const Cluster cluster;
    const Grants thief = cluster.of("hv2"), corm = cluster.of("hv3");
    Grant claim = sample();
    claim.destination = "hv4";
    CHECK(contains(thief.issue(claim).error().message(),
                   "grant of hv1/vm1/net0 to hv4: it is hv1's to give; this host's certificate is of 'hv2'"));
    // By force: signed as its own, then the owner changed; and the whole signed anew by the thief's key.
    claim.owner = "hv2";
    const Json forged = issue(thief, claim);
    forged.get("grant").set("owner", "hv1");
    CHECK(contains(refusal(corm, forged), "the signature is not that of certificate 'CN=hv2'"));
    const GrantFiles files = cluster.files("hv2");
    const auto signer = pki::Signer::load(files.certificate, files.key);
    REQUIRE(signer.ok());
    claim.owner = "hv1";
    claim.nonce = random_hex(16);
    const auto signature = signer->sign(claim.text());
    const Json resigned = Json::object({{"grant", claim.json()},
                                        {"signature", signature->signature_hex},
                                        {"certificate", signature->certificate_pem}});
    CHECK(contains(refusal(corm, resigned), "signed by host 'hv2', and it is hv1's to give"));
}

TEST_CASE("grant: wrong role, expired certificate, another cluster's CA") {
    const Cluster cluster, other;
    const Grants corm = cluster.of("hv3");
    pki::IssueOptions tunnel;
    tunnel.host = "hv1";
    tunnel.role = pki::role_tunnel;
    CHECK(contains(refusal(corm, issue(cluster.of(tunnel), sample())),
                   "grant of hv1/vm1/net0 to hv2: certificate 'CN=hv1' has role 'tunnel'; signatures need role"));
    pki::IssueOptions old;
    old.host = "hv1";
    old.not_before = ::time(nullptr) - 7200;
    old.not_after = ::time(nullptr) - 3600;
    CHECK(contains(refusal(corm, issue(cluster.of(old), sample())), "certificate 'CN=hv1' expired on "));
    CHECK(contains(refusal(corm, issue(other.of("hv1"), sample())), "is not signed by this cluster's CA"));
}

TEST_CASE("grant: expiry, with clocks that differ by a minute") {
    const Cluster cluster;
    const Grants owner = cluster.of("hv1");
    Grant grant = sample();
    grant.expires = 1790000000;
    const Json envelope = issue(owner, grant);
    CHECK(owner.verify(envelope, 1790000000 - 1).ok());
    CHECK(owner.verify(envelope, 1790000000 + 59).ok());
    CHECK_FALSE(owner.verify(envelope, 1790000000 + 60).ok());
    CHECK(contains(owner.verify(envelope, 1790000000 + 61).error().message(),
                   "it expired on " + pki::utc_text(1790000000) + " (are the clocks right?)"));
    CHECK(owner.verify(envelope, 1790000000 - 86400).ok());
    CHECK(contains(owner.verify(envelope, 1790000000 - 86400 - 61).error().message(), "more than 86400 s away"));
}

TEST_CASE("grant: fields that cannot be are refused, at issue and at verification") {
    const Cluster cluster;
    const Grants owner = cluster.of("hv1");
    const std::vector<std::pair<std::string, std::function<void(Grant&)>>> cases{
        {"Spike key ''", [](Grant& g) { g.spike = ""; }},
        {"Spike key", [](Grant& g) { g.spike = std::string(129, 'x'); }},
        {"Spike name 'a\\x0ab'", [](Grant& g) { g.name = "a\nb"; }},
        {"owner: host name 'HV1'", [](Grant& g) { g.owner = "HV1"; }},
        {"destination: host name ''", [](Grant& g) { g.destination = ""; }},
        {"destination 'hv1': it is the owner already", [](Grant& g) { g.destination = "hv1"; }},
        {"owner's epoch 0", [](Grant& g) { g.owner_epoch = 0; }},
        {"owner's epoch 9223372036854775807", [](Grant& g) { g.owner_epoch = INT64_MAX; }},
        {"Corm 'lab': it must be HOST/NAME", [](Grant& g) { g.corm = "lab"; }},
        {"Corm name 'a/b'", [](Grant& g) { g.corm = "hv1/a/b"; }},
        {"nonce '12'", [](Grant& g) { g.nonce = "12"; }},
        {"nonce", [](Grant& g) { g.nonce = std::string(32, 'A'); }},
        {"expiry 0", [](Grant& g) { g.expires = 0; }},
    };
    for (const auto& [text, change] : cases) {
        CAPTURE(text);
        Grant grant = sample();
        grant.nonce = random_hex(16);
        REQUIRE(grant.check().ok());
        change(grant);
        const auto issued = owner.issue(grant);
        REQUIRE_FALSE(issued.ok());
        CHECK(issued.error().code() == Errc::invalid);
        CHECK(contains(issued.error().message(), text));
        CHECK_FALSE(Grant::from_json(grant.json()).ok());
    }
}

TEST_CASE("grant: garbage for an envelope") {
    const Cluster cluster;
    const Grants grants = cluster.of("hv1");
    const std::string good = issue(grants, sample()).dump();
    for (const char* text : {"null", "[]", "7", "\"grant\"", "{}", R"({"grant":null})", R"({"grant":{}})",
                             R"({"grant":{},"signature":7,"certificate":"x"})",
                             R"({"grant":{"version":1},"signature":"00","certificate":""})",
                             R"({"grant":{"version":"1"},"signature":"00","certificate":""})"}) {
        CAPTURE(text);
        const auto result = grants.verify(*Json::parse(text));
        REQUIRE_FALSE(result.ok());
        CHECK(result.error().message().starts_with("grant: "));
    }
    // Each member by itself missing, or of another type.
    for (const char* key : {"signature", "certificate", "grant"})
        for (const Json& value : {Json(), Json(7), Json::array()}) {
            Json envelope = *Json::parse(good);
            envelope.set(key, value);
            CHECK_FALSE(grants.verify(envelope).ok());
        }
    for (const auto& key : (*Json::parse(good)).get("grant").keys())
        for (const Json& value : {Json(), Json(true), Json::array(), Json(-1)}) {
            CAPTURE(key);
            const Json envelope = *Json::parse(good);
            envelope.get("grant").set(key.c_str(), value);
            CHECK_FALSE(grants.verify(envelope).ok());
        }
    // More than 63 bits: json-c gives the largest, which is not an epoch.
    std::string huge = good;
    const auto at = huge.find("\"owner_epoch\":7");
    REQUIRE(at != std::string::npos);
    huge.replace(at, 15, "\"owner_epoch\":18446744073709551615");
    CHECK(contains(refusal(grants, *Json::parse(huge), Errc::invalid), "owner_epoch"));
}

TEST_CASE("grant: reload takes new files up, and keeps the old ones when they are bad") {
    const Cluster cluster;
    const GrantFiles files = cluster.files("hv1");
    Grants grants = Cluster::load(files);
    const Json before = issue(grants, sample());
    cluster.files("hv1");
    REQUIRE(grants.reload().ok());
    const Json after = issue(grants, sample());
    CHECK(before.get("certificate").as_string() != after.get("certificate").as_string());
    CHECK(grants.verify(before).ok());
    fs::remove(files.key);
    CHECK_FALSE(grants.reload().ok());
    CHECK(grants.verify(issue(grants, sample())).ok());
}

TEST_CASE("grant: a nonce is good once, until it expires") {
    NonceCache cache;
    Grant grant = sample();
    grant.nonce = std::string(32, '1');
    grant.expires = 1000;
    CHECK(cache.use(grant, 900).ok());
    const auto again = cache.use(grant, 900);
    REQUIRE_FALSE(again.ok());
    CHECK(again.error().code() == Errc::refused);
    CHECK(again.error().message() == "grant of hv1/vm1/net0 to hv2: it was used already");
    // Another destination makes no other grant of it; another owner's nonce is another.
    Grant elsewhere = grant;
    elsewhere.destination = "hv9";
    CHECK_FALSE(cache.use(elsewhere, 900).ok());
    Grant others = grant;
    others.owner = "hv4";
    CHECK(cache.use(others, 900).ok());
    // It is remembered for as long as any clock may take it.
    CHECK(contains(cache.use(grant, 1059).error().message(), "used already"));
    CHECK(contains(cache.use(grant, 1060).error().message(), "it expired on"));
    CHECK(cache.size() == 0);
}

TEST_CASE("grant: a full cache forgets what expires first, and takes no replay of it") {
    NonceCache cache(3);
    const auto numbered = [](int number, int64_t expires) {
        Grant grant = sample();
        grant.nonce = std::string(31, '0') + static_cast<char>('0' + number);
        grant.expires = expires;
        return grant;
    };
    for (int i = 0; i < 3; ++i) CHECK(cache.use(numbered(i, 1000 + i), 900).ok());
    CHECK(cache.use(numbered(3, 1003), 900).ok());
    CHECK(cache.size() == 3);
    CHECK(contains(cache.use(numbered(0, 1000), 900).error().message(), "too many grants are in use"));
    CHECK(contains(cache.use(numbered(1, 1001), 900).error().message(), "used already"));
    CHECK(contains(cache.use(numbered(4, 999), 900).error().message(), "ask for one that expires later"));
    CHECK(cache.use(numbered(5, 2000), 900).ok());
    // Once they have expired there is room again.
    CHECK(cache.use(numbered(6, 1900), 1500).ok());
    CHECK(cache.size() == 2);
}
