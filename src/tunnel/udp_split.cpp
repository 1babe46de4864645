#include "tunnel/udp_split.h"

#include <algorithm>
#include <cstring>

#include "tunnel/checksum.h"

namespace banana::tunnel {

namespace {
constexpr size_t udp_header = 8, ipv6_header = 40;
}

UdpSplit::UdpSplit(const Offload& offload, std::span<uint8_t> frame) : offload_(offload), frame_(frame) {
    segment_ = offload.gso_size;
    header_ = gso_header_bytes(offload, frame);
    network_ = link_bytes(frame);
    offload_.gso_type = Offload::none;
    offload_.gso_size = 0;
    if (header_ > headers_max) header_ = 0;  // IPv6 with options without end: see next()
    std::copy_n(frame.begin(), header_, headers_.begin());
}

std::span<uint8_t> UdpSplit::next() {
    if (header_ == 0 || (at_ != 0 && at_ >= frame_.size())) return {};
    if (at_ == 0) at_ = header_;
    const size_t payload = std::min(segment_, frame_.size() - at_);
    uint8_t* const frame = frame_.data() + at_ - header_;
    std::memcpy(frame, headers_.data(), header_);
    uint8_t* const ip = frame + network_;
    uint8_t* const udp = frame + header_ - udp_header;
    const auto whole = get16(udp + 4), datagram = static_cast<uint16_t>(udp_header + payload);
    // The pseudo header's sum, which a partial checksum begins with, holds the datagram's length.
    put16(udp + 6, folded(uint32_t{get16(udp + 6)} + static_cast<uint16_t>(~whole) + datagram));
    put16(udp + 4, datagram);
    if (ip[0] >> 4 == 4) {
        put16(ip + 2, static_cast<uint16_t>(header_ - network_ + payload));
        put16(ip + 4, static_cast<uint16_t>(get16(ip + 4) + count_));
        put_ipv4_checksum(ip);
    } else {
        put16(ip + 4, static_cast<uint16_t>(header_ - network_ - ipv6_header + payload));
    }
    count_++;
    at_ += std::max<size_t>(payload, 1);
    return {frame, header_ + payload};
}

}  // namespace banana::tunnel
