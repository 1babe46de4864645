// Spike: the guest side of a NIC, as the host on which it is (or was last) knows it.
//
// Concepts: a record per Spike on the host of its endpoint device. What it may do is decided by the Corm's host
// (model/wire.h); this record says what this host has built for it.
//
//              prepare             start                 source stopped
//   unwired ------------> built ------------> wired ----------------------> leaving
//      ^  ^  release        |      release      |  ^    source runs again      |
//      |  +-----------------+-------------------+  +---------------------------+
//      |        incoming prepare            runs   ^                           | release
//      +<------- (unwired) -----> incoming --------+                           v
//      +------------------------------------------------------------------- unwired
//
//   unwired   known here, nothing built (a macvtap endpoint, an adopted netdev, a guest that is off)
//   built     its wire stands, its device does not yet (between libvirt's `prepare` and `start`)
//   wired     its device is cross-connected, and this host owns it
//   incoming  a standby wire stands (its device perhaps too): a guest that is being migrated here, not owned yet
//   leaving   its guest was stopped by an outgoing migration and frames go to the destination
//
// Threading: values; pure functions.
#pragma once

#include <optional>

#include "model/wire.h"

namespace banana::model {

enum class SpikeKind { tap, macvtap, netdev };
const char* spike_kind_name(SpikeKind kind);

enum class SpikeState { unwired, built, wired, incoming, leaving };
const char* spike_state_name(SpikeState state);

// What the Corm's host answered to open or prepare: all that is needed to build the Spike's side.
struct Attachment {
    std::string corm;
    uint32_t port = 0;
    Half half;  // of this host
    std::string corm_host;
    IpAddress corm_underlay;
    uint32_t mtu = 0;
    Json json() const;
    static Result<Attachment> from_json(const Json& json);
    // The device by which frames leave towards the Corm: the wire's, or for a native wire the Corm port itself.
    std::string far_device() const;
};

struct Spike {
    std::string key, name, home;
    SpikeKind kind = SpikeKind::tap;
    uint32_t id = 0;  // random; names a macvtap's devices
    Mac mac;
    bool allow_any_mac = false;
    std::string domain, uuid, interface;  // of a guest's
    std::string corm;                     // full name
    Preference preference = "auto";
    std::string device;  // in the cross-connect: tap, adopted netdev, or the other end of a macvtap's lower device
    SpikeState state = SpikeState::unwired;
    std::optional<Attachment> attachment;
    std::string granted;          // the host that this one granted it to; empty: nobody asked
    int64_t grant_expiry = 0;     // of the last grant, as seconds since 1970: a later grant expires later
    std::string came_from;        // of one that was built under a grant: the host that gave it; for people alone
    uint32_t old_txqueuelen = 0;  // to be restored; 0: nothing to restore
    uint32_t stage = 0;           // of an adopted netdev: the number of its stage (wiring/headroom.h); 0: none

    Status move(SpikeState next);  // checks the edge; Errc::failed is a bug of the caller's
    bool is_guest() const { return !uuid.empty(); }
    Json json() const;
    static Result<Spike> from_json(const Json& json);
};

using StateObserver = std::function<void(const Spike&, SpikeState before, SpikeState after)>;
void observe_states(StateObserver observer);

}  // namespace banana::model
