// The Internet checksum (RFC 1071): sums of 16-bit words in ones' complement.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tunnel/octets.h"

namespace banana::tunnel {

// An even number of bytes, at most 64 KiB; not folded yet.
inline uint32_t sum_of(const uint8_t* from, size_t bytes) {
    uint32_t sum = 0;
    for (size_t i = 0; i < bytes; i += 2) sum += get16(from + i);
    return sum;
}

inline uint16_t folded(uint32_t sum) {
    while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
    return static_cast<uint16_t>(sum);
}

// Of an IPv4 header whose other fields are as they should be.
inline void put_ipv4_checksum(uint8_t* ip) {
    put16(ip + 10, 0);
    put16(ip + 10, static_cast<uint16_t>(~folded(sum_of(ip, size_t{4} * (ip[0] & 0xf)))));
}

}  // namespace banana::tunnel
