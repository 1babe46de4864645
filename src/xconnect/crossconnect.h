// CrossConnect: the BPF maps that say, for each port, where its frames go, and the program that reads them.
//
// Concepts: a *port* is a netdev and the side of it that frames pass (ingress, egress). A port has a *policy* (what it
// is: Spike, wire, Corm port; what its guest may send), given when the program is attached, and, while it is
// cross-connected, an *entry* (target, generation). No entry: its frames are dropped and counted. Setting an entry over
// another is one map update: each frame takes the old or the new, none is lost or doubled, and no RTNL lock is taken.
// All objects are pinned in a directory of a bpffs, so they and the traffic outlive the process. open() takes up what
// an earlier process left; the program on a port stays what it was until attach() is called for that port, which
// replaces an older program by ours in one step. What is lost when: nothing on open, re-open, set, replacing; a port's
// counters on forget(). Threading: one thread, one process a directory; the network namespace is that of the calling
// thread. Errors: "operation object: cause". unsupported: the pinned objects are of another ABI version, or the kernel
// lacks something; invalid: the directory is not on a bpffs; not_found: no such port, entry or device.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "xconnect/abi.h"

namespace banana::xconnect {

enum class Direction : uint32_t { ingress = XC_INGRESS, egress = XC_EGRESS };
enum class Into : uint32_t { egress = XC_INTO_EGRESS, ingress = XC_INTO_INGRESS };
enum class PortKind : uint8_t { spike = XC_SPIKE, wire = XC_WIRE, corm = XC_CORM };

const char* direction_name(Direction direction);

struct PortKey {
    uint32_t ifindex = 0;
    Direction direction = Direction::ingress;
    auto operator<=>(const PortKey&) const = default;
    std::string text() const;  // "ifindex 7 ingress"
};

struct Policy {
    PortKind kind = PortKind::spike;
    Mac mac;  // a Spike's own source address
    bool allow_any_mac = false;
    bool operator==(const Policy&) const = default;
};

struct Entry {
    uint32_t target = 0;       // ifindex
    Into into = Into::egress;  // ingress: the target receives the frame, as a port of a bridge must
    uint64_t generation = 0;   // comes back in the first-frame report; means nothing to the program
    bool armed = false;        // report the first frame that takes this entry, once
    bool operator==(const Entry&) const = default;
};

struct Count {
    uint64_t frames = 0;
    uint64_t bytes = 0;  // a GSO frame counts as one frame of its whole length
    bool operator==(const Count&) const = default;
};

struct Counters {
    Count passed;  // redirected
    Count probes;  // answered, or handed up
    std::array<Count, XC_DROP_REASONS> drops;
    Count dropped() const;  // all reasons together
};

// "no_entry", "link_local", ...: stable, for --json.
const char* drop_reason_name(xc_drop reason);

struct FirstFrame {
    PortKey port;
    uint64_t generation = 0;
    int64_t monotonic_ns = 0;
};

enum class AttachMode { tcx, clsact };

struct Attachment {
    AttachMode mode = AttachMode::tcx;
    uint32_t program_id = 0;
    bool current = false;  // false: an older program of ours; attach() replaces it
};

inline constexpr uint32_t default_capacity = 16384;

struct Options {
    uint32_t capacity = default_capacity;  // ports; only for maps that are made anew. 16 bytes each, times CPUs
    std::optional<AttachMode> mode;        // none: tcx where the kernel has it, else clsact
};

class CrossConnect {
public:
    // Opens or makes `bpf_dir` (its parent must be on a bpffs) and the pinned objects in it.
    static Result<CrossConnect> open(const std::string& bpf_dir, const Options& options = {});
    CrossConnect(CrossConnect&&) noexcept;
    CrossConnect& operator=(CrossConnect&&) noexcept;
    ~CrossConnect();

    AttachMode mode() const;

    // Sets the policy and puts the program at the port, first in line (tcx) or as the first filter (clsact).
    // Idempotent. From here on the port drops every frame until it has an entry. An older program of ours, in the same
    // mode, is replaced without a gap; one in the other mode is removed after ours stands.
    Status attach(PortKey port, const Policy& policy);
    // The same without the program: for a port that gets it by a tc block (wiring/blocks.h).
    Status prepare(PortKey port, const Policy& policy);
    // Puts the program at a port that has it by a tc block already, in front of that: what tcx spares each frame is
    // worth the RCU grace period that attaching takes, for a port that stays. Nothing where the kernel has no tcx.
    Status attach_in_front(PortKey port);
    // A program of ours that was put there in this mode is the present one from here on; false: there is none.
    Result<bool> refresh(PortKey port, AttachMode mode);
    // Takes the program off; policy, entry and counters stay. No program there, or no such device: done already. A
    // clsact qdisc that an earlier version made for the port goes with it.
    Status detach(PortKey port);
    Result<std::optional<Attachment>> attached(PortKey port) const;

    struct ProgramRef {
        int fd = -1;  // ours
        uint32_t id = 0;
    };
    ProgramRef program(Direction direction) const;
    static bool is_program_of_ours(uint32_t id);  // of any age

    Status set_policy(PortKey port, const Policy& policy);
    Result<std::optional<Policy>> policy(PortKey port) const;

    // One map update; takes effect for every frame that comes after it, on every CPU. A policy that is changed in the
    // very moment in which an armed entry's first frame passes may have it reported twice.
    Status set(PortKey port, const Entry& entry);
    Status erase(PortKey port);  // no entry: done already
    Result<std::optional<Entry>> get(PortKey port) const;
    Result<std::vector<std::pair<PortKey, Entry>>> list() const;
    Result<std::vector<std::pair<PortKey, Policy>>> list_policies() const;

    // Sums over CPUs; not_found when the port was never attached. {0, ingress}: ports that nobody registered.
    Result<Counters> counters(PortKey port) const;

    // The device is gone: drops what is kept of both its ports, so that a later device of that ifindex inherits
    // nothing. Entries of other ports that point at it are theirs to change; sweep() finds them.
    Status forget(uint32_t ifindex);
    // Reconcile: forgets every ifindex that `alive` (sorted) does not hold, and erases entries that point at one.
    // Returns how many entries went.
    Result<size_t> sweep(std::span<const uint32_t> alive);

    // First-frame reports: poll fd() for input, then take all there are.
    int events_fd() const;
    Result<std::vector<FirstFrame>> read_events();

    // Removes the pins of `bpf_dir` and the directory. Programs on ports keep working until those are detached or
    // deleted, out of anyone's reach: detach first. A directory that is not there: done already.
    static Status unpin(const std::string& bpf_dir);

private:
    struct Impl;
    explicit CrossConnect(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

}  // namespace banana::xconnect
