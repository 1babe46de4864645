// VxlanFilter: VXLAN frames of our wires are taken from their peer's address and from nowhere else.
//
// Concepts: the kernel's VXLAN device takes a frame with its VNI from any sender. This filter, an nftables table at the
// input hook, knows which VNIs are ours and from which underlay address each may come; a frame of one of our VNIs from
// elsewhere is dropped and counted. Frames of VNIs that are not ours are not touched, nor is any other port.
// It checks source addresses, no more: on an underlay where those can be forged, use a DTLS wire.
// The table outlives the process. Should someone flush the ruleset, mend() puts all of it back.
// Order: allow() before the wire's device is made, remove() after it is gone.
// Cost, whatever the number of wires: 65 us for one call, 5 us a pair in a batch of 100.
// Threading: one thread; the network namespace is that of the thread which opens it (the socket stays in it).
// Errors: "operation object: cause", the cause in nftables' words.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "wiring/table_mark.h"

struct nft_ctx;

namespace banana::wiring {

struct VxlanPeer {
    uint32_t vni = 0;  // 24 bits
    IpAddress address;
    auto operator<=>(const VxlanPeer&) const = default;
};

class VxlanFilter {
public:
    // Makes the table if it is not there, and takes up the pairs that it holds if it is. `table`: one for each
    // daemon, if several share a network namespace.
    static Result<VxlanFilter> open(uint16_t port = 4789, const std::string& table = "banana");
    VxlanFilter(VxlanFilter&&) noexcept;
    VxlanFilter& operator=(VxlanFilter&&) noexcept;
    ~VxlanFilter();

    // Frames of this VNI are ours and may come from this address (too). Idempotent.
    Status allow(uint32_t vni, const IpAddress& peer);
    Status allow(std::span<const VxlanPeer> peers);  // one transaction: all or none
    // The VNI is no longer ours, whatever its peers were. Not there: done already.
    Status remove(uint32_t vni);
    Status remove(std::span<const uint32_t> vnis);
    // Reconcile: makes table and pairs what they ought to be, in one transaction, without a gap.
    Status sync(std::span<const VxlanPeer> peers);
    // True: the table was gone, another's, or without its rules, and is whole again. Cheap when there is nothing to do;
    // elements that somebody takes out one by one are not noticed.
    Result<bool> mend();

    Result<std::vector<VxlanPeer>> list();  // what the kernel has; not_found: the table is gone
    Result<uint64_t> dropped();             // frames of our VNIs from foreign addresses
    Status destroy();                       // deletes the table

private:
    struct ContextDeleter {
        void operator()(nft_ctx* context) const;
    };
    VxlanFilter(std::unique_ptr<nft_ctx, ContextDeleter> context, Fd socket, uint16_t port, std::string table);

    Result<std::string> run(const std::string& commands, const std::string& what);
    std::string frame() const;
    Status change(const std::string& commands, const std::string& what);

    Status remember_mark();

    std::unique_ptr<nft_ctx, ContextDeleter> context_;
    Fd socket_;
    uint16_t port_ = 0;
    std::string table_;
    std::set<VxlanPeer> peers_;  // what the kernel should have
    TableMark mark_;             // of the table as it was made
};

}  // namespace banana::wiring
