#include "tunnel/udp_run.h"

#include <cstring>

#include "tunnel/checksum.h"

namespace banana::tunnel {

namespace {

constexpr uint16_t type_ipv4 = 0x0800, type_ipv6 = 0x86dd;
constexpr size_t ipv4_bytes = 20, ipv6_bytes = 40, udp_bytes = 8;
constexpr uint8_t protocol_udp = 17;
constexpr uint16_t do_not_fragment = 0x4000;

// Where the network header begins and the payload does, of a whole UDP datagram without IP options or padding.
struct Shape {
    size_t network = 0, header = 0;
};

bool ipv4_shape(std::span<const uint8_t> frame, Shape& shape) {
    const uint8_t* ip = frame.data() + shape.network;
    shape.header = shape.network + ipv4_bytes + udp_bytes;
    // Fragments are never part of a run, and with DF set the identification means nothing (RFC 6864). A header whose
    // checksum is bad would leave with a good one.
    return frame.size() > shape.header && ip[0] == 0x45 && ip[9] == protocol_udp && get16(ip + 6) == do_not_fragment &&
           get16(ip + 2) == frame.size() - shape.network && folded(sum_of(ip, ipv4_bytes)) == 0xffff;
}

bool ipv6_shape(std::span<const uint8_t> frame, Shape& shape) {
    const uint8_t* ip = frame.data() + shape.network;
    shape.header = shape.network + ipv6_bytes + udp_bytes;
    return frame.size() > shape.header && ip[0] >> 4 == 6 && ip[6] == protocol_udp &&
           get16(ip + 4) == frame.size() - shape.network - ipv6_bytes;
}

bool shape_of(const Offload& offload, std::span<const uint8_t> frame, Shape& shape) {
    if (offload.gso_type != Offload::none || offload.flags == 0) return false;
    shape.network = link_bytes(frame);
    if (frame.size() < shape.network + ipv4_bytes + udp_bytes) return false;
    const uint16_t type = get16(frame.data() + shape.network - 2);
    if (!(type == type_ipv4 ? ipv4_shape(frame, shape) : type == type_ipv6 && ipv6_shape(frame, shape))) return false;
    const size_t udp = shape.header - udp_bytes;
    if (offload.flags & Offload::needs_csum && (offload.csum_start != udp || offload.csum_offset != 6)) return false;
    // No checksum at all is a sender's choice, which a computed one would override.
    return get16(frame.data() + udp + 4) == frame.size() - udp && get16(frame.data() + udp + 6) != 0;
}

}  // namespace

bool UdpRun::goes_on(const Offload& offload, std::span<const uint8_t> frame) const {
    if (count_ == frames_max || ended_ || frame.size() <= header_) return false;
    const size_t payload = frame.size() - header_;
    if (payload > segment_ || header_ - network_ + payload_ + payload > ip_packet_max) return false;
    if ((offload.flags & Offload::needs_csum) != (offload_.flags & Offload::needs_csum)) return false;
    const uint8_t* const a = first_;
    const uint8_t* const b = frame.data();
    const size_t udp = header_ - udp_bytes;
    if (std::memcmp(a, b, network_) != 0 || std::memcmp(a + udp, b + udp, 4) != 0) return false;  // link; ports
    const uint8_t* const ip_a = a + network_;
    const uint8_t* const ip_b = b + network_;
    if (ip_a[0] >> 4 == 4)  // but length, identification and checksum; the shape says the rest
        return ip_a[0] == ip_b[0] && ip_a[1] == ip_b[1] && ip_a[8] == ip_b[8] &&
               std::memcmp(ip_a + 12, ip_b + 12, 8) == 0;
    return std::memcmp(ip_a, ip_b, 4) == 0 && std::memcmp(ip_a + 6, ip_b + 6, 34) == 0;
}

bool UdpRun::add(const Offload& offload, std::span<uint8_t> frame) {
    Shape shape;
    if (!shape_of(offload, frame, shape)) return false;
    if (count_ == 0) {
        offload_ = offload;
        first_ = frame.data();
        header_ = shape.header;
        network_ = shape.network;
        segment_ = payload_ = frame.size() - header_;
        ended_ = false;
        pieces_[0] = {first_ - vnet_bytes, vnet_bytes + frame.size()};
        count_ = 1;
        return true;
    }
    if (shape.header != header_ || shape.network != network_ || !goes_on(offload, frame)) return false;
    const size_t payload = frame.size() - header_;
    pieces_[count_++] = {frame.data() + header_, payload};
    payload_ += payload;
    ended_ = payload < segment_;
    return true;
}

// Lengths of the whole, and the pseudo header's sum, which is what a partial checksum begins with.
void UdpRun::mend() {
    uint8_t* const ip = first_ + network_;
    uint8_t* const udp = first_ + header_ - udp_bytes;
    const size_t datagram = udp_bytes + payload_;
    put16(udp + 4, static_cast<uint16_t>(datagram));
    uint32_t pseudo = protocol_udp + static_cast<uint32_t>(datagram);
    if (ip[0] >> 4 == 4) {
        put16(ip + 2, static_cast<uint16_t>(ipv4_bytes + datagram));
        put_ipv4_checksum(ip);
        pseudo += sum_of(ip + 12, 8);
    } else {
        put16(ip + 4, static_cast<uint16_t>(datagram));
        pseudo += sum_of(ip + 8, 32);
    }
    put16(udp + 6, folded(pseudo));
    offload_.flags = Offload::needs_csum;
    offload_.gso_type = Offload::udp_l4;
    offload_.gso_size = static_cast<uint16_t>(segment_);
    offload_.csum_start = static_cast<uint16_t>(header_ - udp_bytes);
    offload_.csum_offset = 6;
}

std::span<const iovec> UdpRun::take() {
    const size_t count = count_;
    if (count > 1) mend();
    write_vnet(first_ - vnet_bytes, offload_, static_cast<uint16_t>(count > 1 ? header_ : 0));
    count_ = 0;
    return {pieces_.data(), count};
}

}  // namespace banana::tunnel
