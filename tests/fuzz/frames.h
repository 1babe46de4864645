// Frames for the tests of the tunnel's codec, and a judge of what became of them that shares no code with it.
//
// Concepts: a Frame is built from a Shape as a guest's kernel would hand it over: lengths and the IPv4 header checksum
// are right, and the transport's checksum is partial (the pseudo header's sum). What a Joiner delivers is judged twice:
// against the frame that was sent (part_fault), which works for any that check_frame() lets pass, and by itself
// (checksum_fault), by completing the checksum as a kernel would and summing all of it again.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "tunnel/segment.h"

namespace banana::tunnel::testing {

struct Shape {
    bool ipv6 = false, vlan = false, udp = false;
    size_t ip_options = 0;   // bytes: of IPv4, a multiple of 4; of an IPv6 extension header, of 8
    size_t tcp_options = 0;  // bytes, a multiple of 4
    size_t payload = 0;
    uint16_t gso_size = 0;  // 0: no GSO
    uint8_t tcp_flags = 0x10;
    uint32_t sequence = 0;
    uint32_t seed = 1;  // of the payload's bytes
    bool checksum = true;
};

struct Frame {
    std::vector<uint8_t> buffer;  // slice_headroom, then the frame
    Offload offload;
    std::span<uint8_t> bytes() { return std::span(buffer).subspan(slice_headroom); }
    std::span<const uint8_t> bytes() const { return std::span(buffer).subspan(slice_headroom); }
};

Frame make_frame(const Shape& shape);
Frame frame_of(std::span<const uint8_t> bytes, const Offload& offload);

uint16_t ones_sum(std::span<const uint8_t> bytes, uint32_t start = 0);

// Why `got` is not a right part of the TCP GSO frame `sent`; empty: it is. `begin` and `end`: what part of its payload.
std::string part_fault(const Frame& sent, const Offload& offload, std::span<const uint8_t> got, size_t& begin,
                       size_t& end);
// Why lengths and checksums of a frame (made by make_frame, or a part of one) do not hold; empty: they do.
std::string checksum_fault(const Offload& offload, std::span<const uint8_t> frame);

// A frame's slices as records.
std::vector<std::vector<uint8_t>> cut(const Frame& frame, size_t capacity, uint32_t number = 1, uint32_t connector = 7);

// Feeds records to a Joiner and keeps what it delivers and drops.
class Receiving {
public:
    struct Got {
        uint32_t connector;
        Offload offload;
        std::vector<uint8_t> bytes;
    };
    Joiner joiner;
    std::vector<Got> got;
    std::map<Drop, size_t> drops;
    std::vector<uint32_t> lost;
    size_t bytes_in = 0, bytes_out = 0;

    void record(std::span<const uint8_t> record);
    void slice(const Entry& entry);
    void flush() { joiner.flush(deliver_); }

private:
    Deliver deliver_ = [this](uint32_t connector, const Offload& offload, std::span<uint8_t> frame) {
        got.push_back({connector, offload, {frame.begin(), frame.end()}});
        bytes_out += frame.size();
        std::fill(frame.begin() - vnet_bytes, frame.end(), uint8_t{0xdb});  // ours to overwrite
    };
};

}  // namespace banana::tunnel::testing
