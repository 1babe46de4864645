#include "migration/grant.h"

#include <fmt/core.h>

#include <algorithm>

#include "base/bytes.h"
#include "base/clock.h"
#include "model/names.h"

namespace banana::migration {

namespace {

constexpr int64_t version = 1;
constexpr size_t key_max = 128, name_max = 512;
constexpr size_t nonce_bytes = 16;
// json-c reads what is larger than 63 bits as INT64_MAX: so that value itself is not taken.
constexpr int64_t epoch_max = INT64_MAX - 1;

Status check_text(const char* field, const std::string& value, size_t max) {
    const auto control = [](char c) { return static_cast<unsigned char>(c) < ' ' || c == 0x7f; };
    const bool good = !value.empty() && value.size() <= max && std::none_of(value.begin(), value.end(), control);
    if (good) return {};
    return Error(Errc::invalid, fmt::format("{} '{}': it must be 1 to {} bytes without control characters", field,
                                            printable(value, 80), max));
}

Status check_nonce(const std::string& nonce) {
    const auto digit = [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); };
    if (nonce.size() == 2 * nonce_bytes && std::all_of(nonce.begin(), nonce.end(), digit)) return {};
    return Error(Errc::invalid, fmt::format("nonce '{}': it must be {} lower-case hexadecimal digits",
                                            printable(nonce, 40), 2 * nonce_bytes));
}

Status check_corm(const std::string& corm) {
    const size_t slash = corm.find('/');
    if (slash == std::string::npos)
        return Error(Errc::invalid, fmt::format("Corm '{}': it must be HOST/NAME", printable(corm, 80)));
    TRY(model::check_host_name(corm.substr(0, slash)));
    return model::check_corm_name(corm.substr(slash + 1));
}

std::string what_of(const Grant& grant) {
    return fmt::format("grant of {} to {}", printable(grant.name, 100), printable(grant.destination, 40));
}

}  // namespace

int64_t wall_seconds() { return wall_ns() / 1'000'000'000; }

Status Grant::check() const {
    TRY(check_text("Spike key", spike, key_max));
    TRY(check_text("Spike name", name, name_max));
    TRY(model::check_host_name(owner).context("owner"));
    TRY(model::check_host_name(destination).context("destination"));
    if (owner == destination)
        return Error(Errc::invalid, fmt::format("destination '{}': it is the owner already", destination));
    if (owner_epoch == 0 || owner_epoch > static_cast<uint64_t>(epoch_max))
        return Error(Errc::invalid, fmt::format("owner's epoch {}: it must be 1 to {}", owner_epoch, epoch_max));
    TRY(check_corm(corm));
    TRY(check_nonce(nonce));
    if (expires <= 0) return Error(Errc::invalid, fmt::format("expiry {}: it must be after 1970", expires));
    return {};
}

std::string Grant::text() const {
    const auto line = [](const char* field, const std::string& value) {
        return fmt::format("{} {}:{}\n", field, value.size(), value);
    };
    return fmt::format("banana-grant-{}\n", version) + line("spike", spike) + line("name", name) +
           line("owner", owner) + fmt::format("owner_epoch {}\n", owner_epoch) + line("destination", destination) +
           line("corm", corm) + line("nonce", nonce) + fmt::format("expires {}\n", expires);
}

Json Grant::json() const {
    return Json::object({{"version", version},
                         {"spike", spike},
                         {"name", name},
                         {"owner", owner},
                         {"owner_epoch", owner_epoch},
                         {"destination", destination},
                         {"corm", corm},
                         {"nonce", nonce},
                         {"expires", expires}});
}

Result<Grant> Grant::from_json(const Json& json) {
    Grant grant;
    TRY_SET(const int64_t found, json.integer("version"));
    if (found != version)
        return Error(Errc::unsupported, fmt::format("its version is {}; this bananad knows {}", found, version));
    TRY_SET(grant.spike, json.string("spike"));
    TRY_SET(grant.name, json.string("name"));
    TRY_SET(grant.owner, json.string("owner"));
    TRY_SET(const int64_t epoch, json.integer("owner_epoch", 1, epoch_max));
    grant.owner_epoch = static_cast<uint64_t>(epoch);
    TRY_SET(grant.destination, json.string("destination"));
    TRY_SET(grant.corm, json.string("corm"));
    TRY_SET(grant.nonce, json.string("nonce"));
    TRY_SET(grant.expires, json.integer("expires"));
    TRY(grant.check());
    return grant;
}

Result<Grants> Grants::load(const GrantFiles& files) {
    TRY_SET(auto signer, pki::Signer::load(files.certificate, files.key));
    TRY_SET(auto verifier, pki::Verifier::load(files.ca));
    return Grants(files, std::move(signer), std::move(verifier));
}

Status Grants::reload() {
    TRY_SET(auto fresh, load(files_));
    *this = std::move(fresh);
    return {};
}

Result<Json> Grants::issue(Grant grant) const {
    if (grant.nonce.empty()) grant.nonce = random_hex(nonce_bytes);
    const std::string what = what_of(grant);
    TRY(grant.check().context(what));
    if (grant.owner != signer_.info().host)
        return Error(Errc::refused, fmt::format("{}: it is {}'s to give; this host's certificate is of '{}'", what,
                                                grant.owner, signer_.info().host));
    auto signature = signer_.sign(grant.text());
    if (!signature) return signature.error().context(what);
    return Json::object({{"grant", grant.json()},
                         {"signature", signature->signature_hex},
                         {"certificate", signature->certificate_pem}});
}

Result<Grant> Grants::verify(const Json& envelope, int64_t now) const {
    const auto part = [&envelope](const char* key) { return envelope.string(key).context("grant"); };
    TRY_SET(const Json fields, envelope.object_at("grant").context("grant"));
    TRY_SET(const std::string signature, part("signature"));
    TRY_SET(const std::string certificate, part("certificate"));
    TRY_SET(Grant grant, Grant::from_json(fields).context("grant"));
    const std::string what = what_of(grant);
    TRY_SET(const auto signer, verifier_.verify(grant.text(), signature, certificate).context(what));
    if (signer.host != grant.owner)
        return Error(Errc::refused,
                     fmt::format("{}: signed by host '{}', and it is {}'s to give", what, signer.host, grant.owner));
    // Neither side can overflow: 0 < expires, and no clock is near the ends.
    if (grant.expires <= now - clock_skew_s)
        return Error(Errc::refused,
                     fmt::format("{}: it expired on {} (are the clocks right?)", what, pki::utc_text(grant.expires)));
    if (grant.expires > now + grant_life_max_s + clock_skew_s)
        return Error(Errc::refused, fmt::format("{}: its expiry is more than {} s away (are the clocks right?)", what,
                                                grant_life_max_s));
    return grant;
}

Status NonceCache::use(const Grant& grant, int64_t now) {
    // What all clocks call expired cannot come back, as verify() refuses it.
    while (!by_expiry_.empty() && by_expiry_.begin()->first <= now - clock_skew_s) {
        used_.erase(by_expiry_.begin()->second);
        by_expiry_.erase(by_expiry_.begin());
    }
    const std::string what = what_of(grant);
    if (grant.expires <= now - clock_skew_s)
        return Error(Errc::refused, fmt::format("{}: it expired on {}", what, pki::utc_text(grant.expires)));
    Key key{grant.owner, grant.nonce};
    if (used_.contains(key)) return Error(Errc::refused, fmt::format("{}: it was used already", what));
    if (grant.expires <= floor_)
        return Error(Errc::refused, fmt::format("{}: too many grants are in use to tell whether this one was; ask for "
                                                "one that expires later",
                                                what));
    used_.insert(key);
    by_expiry_.emplace(grant.expires, std::move(key));
    if (used_.size() > capacity_) {
        floor_ = by_expiry_.begin()->first;
        used_.erase(by_expiry_.begin()->second);
        by_expiry_.erase(by_expiry_.begin());
    }
    return {};
}

}  // namespace banana::migration
