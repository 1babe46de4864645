// Cutting frames that are larger than a record, and putting them together again.
//
// Concepts: Cutter gives the slices of one frame, all equal but the last, so that one UDP GSO send takes them. A slice
// of a TCP GSO frame repeats the frame's headers: whatever run of slices arrives is a valid, shorter TCP frame by
// itself (sequence number, lengths and the partial checksum's pseudo header are mended), so that one lost datagram
// costs one datagram, not 64 KB. Slices of other frames (plain ones on a small path; UDP GSO) carry none, and all are
// needed. No checksum is computed and no flow is remembered: the offload state says all. Zero copy: a slice's header is
// written into the frame's own buffer, over bytes that were sealed already; the first needs `headroom` bytes before the
// frame. Threading: one thread. Errors: what cannot be put together is dropped and counted (Drop::incomplete,
// bad_entry).
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "tunnel/record.h"

namespace banana::tunnel {

inline constexpr size_t slice_headroom = entry_bytes + slice_bytes;
inline constexpr size_t capacity_min = 256;  // of a record's plaintext, where frames are cut

class Cutter {
public:
    // `frame` has passed check_frame() and has slice_headroom writable bytes before it; it is overwritten as slices are
    // taken. `capacity`: of a record's plaintext, bytes; at least capacity_min.
    Cutter(uint32_t connector, const Offload& offload, std::span<uint8_t> frame, uint32_t frame_number,
           size_t capacity);
    // The next slice: plaintext of a whole record, until the next call; empty at the end.
    std::span<uint8_t> next();
    size_t slices() const { return slices_; }        // how many there are in all
    size_t record_bytes() const { return record_; }  // of each but the last

private:
    uint32_t connector_;
    Offload offload_;
    std::span<uint8_t> frame_;
    uint32_t number_;
    size_t header_ = 0, step_ = 0, offset_ = 0, slices_ = 0, record_ = 0;
    std::array<uint8_t, 256> headers_{};  // the frame's, if slices repeat them
};

// One frame out: `frame` has vnet_bytes writable bytes before it, and is the caller's to overwrite. Valid during the
// call, in which the Joiner must not be used. To be checked (check_frame) like any that a peer sends.
using Deliver = std::function<void(uint32_t connector, const Offload& offload, std::span<uint8_t> frame)>;

class Joiner {
public:
    static constexpr size_t frames_under_way = 8;     // plain ones; more, and the oldest is given up
    static constexpr uint32_t frames_apart_max = 64;  // one that is further behind cannot be completed any more: its
                                                      // records have left the replay window
    Joiner();
    ~Joiner();
    // Takes a slice. A frame that is whole is delivered; so is a run of a TCP frame that the next slice does not
    // continue. Returns what was dropped, if anything: bad_entry, this slice; incomplete, the frames that lost() tells
    // (there may be such besides a bad_entry).
    std::optional<Drop> add(const Entry& slice, const Deliver& deliver);
    // Delivers what is left of a TCP frame: called when a batch of datagrams ends with the flow idle, and before a
    // frame that came whole is passed on, which would overtake it.
    void flush(const Deliver& deliver);
    bool holds_run() const;  // part of a TCP frame waits for the next slice, or flush()
    // The wires (connector ids) of the frames that the last add() gave up, one for each.
    std::span<const uint32_t> lost() const;
    uint64_t incomplete() const;  // frames given up so far

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace banana::tunnel
