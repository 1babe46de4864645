// Grants: by what right a host may have a Spike (design: a migration, "By what right").
//
// Concepts: the present owner of a Spike signs a grant for one destination; the Corm's host takes a standby wire, and
// later its activation, under such a grant only. So no host can claim a Spike that was not handed to it, and the grant
// is still good when its issuer is dead. A grant says which Spike, whose it is and by which epoch, to whom it goes, and
// until when; a nonce makes it good once. What it does not say is whether `owner` owns the Spike: the Corm's host knows
// that, and compares owner and epoch with its wire's active half.
//
// What is signed is this text, each line ended by '\n'; a string is preceded by its length in bytes, so that no value
// can run into the next field. The first line is purpose and version; another field is another version:
//
//   banana-grant-1
//   spike 54:<key>
//   name 12:hv1/vm1/net0
//   owner 3:hv1
//   owner_epoch 7
//   destination 3:hv2
//   corm 7:hv1/lab
//   nonce 32:<hexadecimal>
//   expires 1790000000
//
// It travels as {"grant": {"version": 1, ...the fields...}, "signature": <hexadecimal>, "certificate": <PEM>}.
// Members that are unknown are not signed, and not looked at.
// Expiry is wall time: hosts' clocks may differ by 60 s (clock_skew_s), in favour of the grant.
// Threading: one thread. Errors: refused (with the reason), invalid (what a field must be); "grant of <name> to
// <destination>: ..." once that much is known.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <utility>

#include "base/json.h"
#include "base/result.h"
#include "pki/sign.h"

namespace banana::migration {

inline constexpr int64_t clock_skew_s = 60;
inline constexpr int64_t grant_life_max_s = 86400;

int64_t wall_seconds();

struct Grant {
    std::string spike;  // its key (model/names.h)
    std::string name, owner;
    uint64_t owner_epoch = 0;  // of the owner's half; the grant is void once that is not the active one
    std::string destination, corm;
    std::string nonce;    // 128 bits, hexadecimal
    int64_t expires = 0;  // seconds since the epoch, wall time

    bool operator==(const Grant&) const = default;
    Status check() const;      // whether each field can be what it says it is
    std::string text() const;  // what is signed
    Json json() const;
    static Result<Grant> from_json(const Json& json);
};

struct GrantFiles {
    std::string ca, certificate, key;
};

class Grants {
public:
    static Result<Grants> load(const GrantFiles& files);
    // The envelope. An empty nonce is filled in. The owner must be this host: the one that the certificate names.
    Result<Json> issue(Grant grant) const;
    // Of anybody's Json, what is proven: signed by the controller of the host `owner`, not expired at `now`. Whether it
    // was used already is NonceCache's matter.
    Result<Grant> verify(const Json& envelope, int64_t now = wall_seconds()) const;
    Status reload();  // the files anew; on failure the old ones stay in use

private:
    Grants(GrantFiles files, pki::Signer signer, pki::Verifier verifier)
        : files_(std::move(files)), signer_(std::move(signer)), verifier_(std::move(verifier)) {}

    GrantFiles files_;
    pki::Signer signer_;
    pki::Verifier verifier_;
};

// Nonces that were used, each until its grant expires for all clocks. Bounded: when it is full, the one that expires
// first goes, and what expires no later than that one did is refused from then on, as it can no longer be told from a
// replay. Nothing is kept on disk: after a restart the epoch alone bars a replay, as it is handed out once.
class NonceCache {
public:
    explicit NonceCache(size_t capacity = 65536) : capacity_(capacity) {}
    // Refused: used before, or expired. A grant that passes is used from here on.
    Status use(const Grant& grant, int64_t now = wall_seconds());
    size_t size() const { return used_.size(); }

private:
    using Key = std::pair<std::string, std::string>;  // owner, nonce: one owner cannot use up another's

    size_t capacity_;
    int64_t floor_ = INT64_MIN;  // the latest expiry that was dropped before its time
    std::set<Key> used_;
    std::multimap<int64_t, Key> by_expiry_;
};

}  // namespace banana::migration
