// UDP frames that follow each other in one flow, handed to the tap as one UDP GSO frame (generic receive offload).
//
// Concepts: to push a frame through a tap costs more than all that the tunnel does to it, so a run of datagrams of one
// flow and one size (the last may be shorter) goes as one frame with a segment size; the kernel, or a guest that asked
// for it, takes it apart again where it must. Only neighbours are looked at: no flow table, no waiting, no reordering.
// Only frames whose checksum is partial or known to be good are taken, as the kernel will compute it anew.
// Zero copy: frames stay where they are until the run is taken; the first one's headers are mended in place.
// Threading: one thread. Source: Linux net/ipv4/udp_offload.c does the same for devices.
#pragma once

#include <sys/uio.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "tunnel/record.h"

namespace banana::tunnel {

class UdpRun {
public:
    static constexpr size_t frames_max = 64;  // UDP_MAX_SEGMENTS of every kernel that has it

    // Takes the frame if it can begin a run, or go on with the one there is. It must have passed check_frame().
    bool add(const Offload& offload, std::span<uint8_t> frame);
    bool empty() const { return count_ == 0; }
    size_t frames() const { return count_; }

    // The run as one frame in pieces, which begin with vnet_bytes before the first frame; those are written here. The
    // run is empty afterwards.
    std::span<const iovec> take();

private:
    bool goes_on(const Offload& offload, std::span<const uint8_t> frame) const;
    void mend();

    Offload offload_;
    uint8_t* first_ = nullptr;
    size_t header_ = 0, network_ = 0;   // bytes of all headers; where IP begins
    size_t segment_ = 0, payload_ = 0;  // bytes of each datagram's payload; of all
    size_t count_ = 0;
    bool ended_ = false;  // a shorter one came: it is the last
    std::array<iovec, frames_max> pieces_{};
};

}  // namespace banana::tunnel
