// Wire: the record by which a Corm's host alone decides who is wired to a Corm port, and by which epoch.
//
// Concepts: a *half* is one way to reach the Spike: on a host, by a format, of one epoch. A wire has an active half,
// and during a migration a standby half, accepted under a grant. Frames to the Spike go to the *current* half; frames
// from a Spike are let in from *admitted* halves. An epoch is handed out once and never again.
//
//            open                 prepare               flip
//   idle ------------> active ------------> standby ------------> flipped
//    ^   close          | ^  abandon          |  ^   flip_back      | |
//    +------------------+ +-------------------+  +------------------+ |
//                         +---- activate (the standby becomes active) +
//
//   idle     nobody owns the Spike; its port passes nothing
//   active   one half, current and admitted
//   standby  a second half is built and may be probed; it neither gets nor may send the guest's frames
//   flipped  the standby half is current; both are admitted, as the old one's last frames may still be under way
//
// The owner closing a flipped wire means that the guest went to the standby half's host, which becomes active; so does
// one that says that it handed over. An owner that just closes takes a standby half with it: nobody came there.
// Threading: values; all functions are pure. Errors: refused (wrong host, wrong epoch, wrong phase), with both sides.
#pragma once

#include <functional>
#include <optional>

#include "base/bytes.h"
#include "model/host.h"

namespace banana::model {

enum class Phase { idle, active, standby, flipped };
const char* phase_name(Phase phase);

struct Half {
    std::string host;
    uint64_t epoch = 0;
    Format format = Format::native;
    std::string why;         // of the format
    uint32_t connector = 0;  // a VXLAN's VNI is its low 24 bits; 0 for native
    IpAddress underlay;      // of `host`; unset for native
    std::string device;      // native: the Spike's device on this host, once it is known
    bool operator==(const Half&) const = default;
    Json json() const;
    static Result<Half> from_json(const Json& json);
};

// Its device on the Corm's host, and on the Spike's unless native; "" for a native half before its Spike's is known.
std::string end_device(const Half& half);

struct Wire {
    uint32_t port = 0;  // random; names the Corm port's devices
    std::string spike;  // key
    std::string name;   // the Spike's
    Mac mac;
    bool allow_any_mac = false;
    std::string corm;  // full name
    Phase phase = Phase::idle;
    uint64_t last_epoch = 0;    // handed out so far
    int64_t granted_until = 0;  // expiry of the grant that the standby half has: an owner's later grant expires later
    std::optional<Half> active, standby;

    // Each changes nothing when it fails.
    Status open(Half half);     // gives it the next epoch; by the owner itself: a fresh start in a new epoch
    Status prepare(Half half);  // gives it the next epoch; replaces an earlier standby half, as the owner granted anew
    Status flip(uint64_t epoch);
    Status flip_back(const std::string& by);
    // The owner's migration is over, and its guest stayed: flipped back, without a standby half. Returns that.
    Result<std::optional<Half>> abandon(const std::string& by);
    // Returns the half that is to be retired; nothing when the epoch was active already.
    Result<std::optional<Half>> activate(uint64_t epoch);
    // A host gives up its half: closes, abandons, or hands over. Returns the halves that are to be retired; none when
    // the host had no half of that epoch (closed already). Epoch 0: whatever half is the host's. `handed_over`: the
    // owner's guest went to the standby half's host, also if the wire was never flipped.
    std::vector<Half> close(const std::string& host, uint64_t epoch, bool handed_over);

    const Half* current() const;  // where frames to the Spike go
    bool admits(const Half& half) const;
    const Half* half_of(const std::string& host) const;
    std::string owner() const { return active ? active->host : ""; }

    Json json() const;
    static Result<Wire> from_json(const Json& json);

private:
    void to(Phase next);
};

// Told of every change of phase, for the log: name, old, new.
using PhaseObserver = std::function<void(const Wire&, Phase before, Phase after)>;
void observe_phases(PhaseObserver observer);

}  // namespace banana::model
