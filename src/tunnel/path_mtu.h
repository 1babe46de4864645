// The path MTU of a session, found by padded probes (RFC 8899's idea; ICMP is not needed and not believed).
//
// Concepts: sizes are of whole IP packets, bytes. Known to pass: `current`, at first floor_bytes, which IPv6 demands of
// every path. A probe is a ping padded to its size; its answer proves the size. Upward search: the usual sizes first,
// then bisection; again every ten minutes. While the session carries frames its current size is proved again twice a
// second: three proofs without an answer, with the session alive, mean that the path shrank: back to the floor at
// once, and search.
// Threading: values; pure, the clock is an argument (monotonic ns).
#pragma once

#include <cstdint>
#include <optional>

namespace banana::tunnel {

class PathMtu {
public:
    static constexpr uint32_t floor_bytes = 1280;
    static constexpr uint32_t ceiling_bytes = 9000;
    static constexpr uint32_t precision_bytes = 8;
    static constexpr int tries_max = 3;
    static constexpr int64_t retry_ns = 250'000'000;
    static constexpr int64_t proof_ns = 500'000'000;
    static constexpr int64_t search_again_ns = 600'000'000'000;

    uint32_t current() const { return current_; }
    bool searching() const { return size_ != 0 && !proving_; }
    // The size that is to be probed now, if any. `busy`: frames were sent since the last call.
    std::optional<uint32_t> probe(int64_t now, bool busy, int64_t round_trip_ns);
    void answered(uint32_t bytes, int64_t now);
    // The kernel would not send a packet of this size: the local device's MTU is smaller.
    void too_big(uint32_t bytes, int64_t now);

private:
    uint32_t next_size() const;
    void start(uint32_t bytes, bool proof);
    void gave_up(int64_t now);

    uint32_t current_ = floor_bytes;
    uint32_t refused_ = ceiling_bytes + 1;  // the least size that did not pass
    uint32_t size_ = 0;                     // being probed; 0: none
    bool proving_ = false;                  // size_ is current_
    int tries_ = 0;
    int64_t next_try_ = 0;
    int64_t next_search_ = 0;
    int64_t next_proof_ = 0;
};

}  // namespace banana::tunnel
