// A UDP GSO frame taken apart, for a kernel whose taps take none (before Linux 6.2).
//
// Concepts: each datagram leaves behind headers of its own, which are written over the one before it: no copy of the
// payload. Checksums stay partial, as they came. Threading: one thread. Source: Linux net/ipv4/udp_offload.c
// (__udp_gso_segment) does the same.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "tunnel/record.h"

namespace banana::tunnel {

class UdpSplit {
public:
    // `frame` has passed check_frame() with this offload of type udp_l4. It is overwritten; vnet_bytes before it, too.
    UdpSplit(const Offload& offload, std::span<uint8_t> frame);
    // The next datagram's frame, with vnet_bytes of room before it, until the next call; empty at the end.
    std::span<uint8_t> next();
    const Offload& offload() const { return offload_; }  // of each

private:
    static constexpr size_t headers_max = 256;

    Offload offload_;
    std::span<uint8_t> frame_;
    size_t header_ = 0, network_ = 0, segment_ = 0, at_ = 0;
    uint16_t count_ = 0;
    std::array<uint8_t, headers_max> headers_{};
};

}  // namespace banana::tunnel
