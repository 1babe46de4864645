#include "tunnel/record.h"

#include "tunnel/octets.h"

namespace banana::tunnel {

namespace {

// Offsets in an entry's header, and behind it in a slice's.
constexpr size_t at_connector = 0, at_length = 4, at_flags = 6, at_gso_type = 7, at_gso_size = 8, at_csum_start = 10,
                 at_csum_offset = 12, at_header_bytes = 14, at_frame_number = 16, at_offset = 20, at_frame_bytes = 24;
static_assert(at_frame_number == entry_bytes && at_frame_bytes + 4 == entry_bytes + slice_bytes);
constexpr uint8_t slice_flag = 0x80;  // beside virtio's flags
constexpr uint8_t known_flags = Offload::needs_csum | Offload::csum_valid;

constexpr uint16_t type_ipv4 = 0x0800, type_ipv6 = 0x86dd, type_vlan = 0x8100, type_service_vlan = 0x88a8;
constexpr uint8_t protocol_tcp = 6, protocol_udp = 17;
constexpr size_t vlan_bytes = 4, ipv4_bytes = 20, ipv6_bytes = 40, tcp_bytes = 20, udp_bytes = 8;
constexpr size_t udp_segments_max = 128;  // Linux: UDP_MAX_SEGMENTS; a tap refuses more

uint16_t get16_little(const uint8_t* at) { return static_cast<uint16_t>(at[0] | at[1] << 8); }
void put16_little(uint8_t* at, uint16_t value) {
    at[0] = static_cast<uint8_t>(value);
    at[1] = static_cast<uint8_t>(value >> 8);
}

// An IPv4 header that ends where the transport's begins, of a packet that is no fragment.
bool ipv4_before(std::span<const uint8_t> frame, size_t link, size_t transport, uint8_t protocol) {
    const uint8_t* ip = frame.data() + link;
    const size_t bytes = static_cast<size_t>(ip[0] & 0x0f) * 4;
    constexpr uint16_t fragment = 0x3fff;  // more to come, or not the first
    return ip[0] >> 4 == 4 && bytes >= ipv4_bytes && link + bytes == transport && ip[9] == protocol &&
           !(get16(ip + 6) & fragment);
}

// Extension headers are taken on trust: whoever makes the partial checksum knows where the transport begins.
bool ipv6_before(std::span<const uint8_t> frame, size_t link, size_t transport, uint8_t protocol) {
    const uint8_t* ip = frame.data() + link;
    return ip[0] >> 4 == 6 && transport >= link + ipv6_bytes && (transport > link + ipv6_bytes || ip[6] == protocol);
}

}  // namespace

const char* drop_name(Drop reason) {
    switch (reason) {
        case Drop::runt: return "runt";
        case Drop::oversized: return "oversized";
        case Drop::bad_offload: return "bad_offload";
        case Drop::bad_entry: return "bad_entry";
        case Drop::unknown_wire: return "unknown_wire";
        case Drop::foreign_wire: return "foreign_wire";
        case Drop::incomplete: return "incomplete";
        case Drop::no_session: return "no_session";
        case Drop::tap_full: return "tap_full";
        case Drop::count_: break;
    }
    return "unknown";
}

Offload read_vnet(const uint8_t* vnet) {
    Offload offload;
    offload.flags = vnet[0];
    offload.gso_type = vnet[1];
    offload.gso_size = get16_little(vnet + 4);
    offload.csum_start = get16_little(vnet + 6);
    offload.csum_offset = get16_little(vnet + 8);
    return offload;
}

void write_vnet(uint8_t* vnet, const Offload& offload, uint16_t header_bytes) {
    vnet[0] = offload.flags;
    vnet[1] = offload.gso_type;
    put16_little(vnet + 2, header_bytes);
    put16_little(vnet + 4, offload.gso_size);
    put16_little(vnet + 6, offload.csum_start);
    put16_little(vnet + 8, offload.csum_offset);
}

size_t link_bytes(std::span<const uint8_t> frame) {
    const uint16_t type = get16(frame.data() + ethernet_bytes - 2);
    return type == type_vlan || type == type_service_vlan ? ethernet_bytes + vlan_bytes : ethernet_bytes;
}

size_t gso_header_bytes(const Offload& offload, std::span<const uint8_t> frame) {
    if (!(offload.flags & Offload::needs_csum) || frame.size() < ethernet_bytes) return 0;
    const size_t link = link_bytes(frame), transport = offload.csum_start;
    if (frame.size() < link + ipv4_bytes) return 0;
    const bool udp = offload.gso_type == Offload::udp_l4;
    const uint8_t tcp_type = offload.gso_type & static_cast<uint8_t>(~Offload::ecn);
    const uint8_t protocol = udp ? protocol_udp : protocol_tcp;
    switch (get16(frame.data() + link - 2)) {
        case type_ipv4:
            if (!udp && tcp_type != Offload::tcp4) return 0;
            if (!ipv4_before(frame, link, transport, protocol)) return 0;
            break;
        case type_ipv6:
            if (!udp && tcp_type != Offload::tcp6) return 0;
            if (!ipv6_before(frame, link, transport, protocol)) return 0;
            break;
        default: return 0;
    }
    if (udp) return offload.csum_offset == 6 && transport + udp_bytes <= frame.size() ? transport + udp_bytes : 0;
    if (offload.csum_offset != 16 || transport + tcp_bytes > frame.size()) return 0;
    const size_t tcp = static_cast<size_t>(frame[transport + 12] >> 4) * 4;
    return tcp >= tcp_bytes && transport + tcp <= frame.size() ? transport + tcp : 0;
}

std::optional<Drop> check_frame(const Offload& offload, std::span<const uint8_t> frame, uint32_t mtu) {
    if (frame.size() < ethernet_bytes) return Drop::runt;
    const size_t link = link_bytes(frame);
    if (frame.size() < link) return Drop::runt;
    const size_t limit = link + mtu;
    if (offload.flags & ~known_flags) return Drop::bad_offload;
    if (offload.flags & Offload::needs_csum &&
        (offload.csum_start < link || size_t{offload.csum_start} + offload.csum_offset + 2 > frame.size()))
        return Drop::bad_offload;
    if (offload.gso_type == Offload::none) {
        if (frame.size() > limit) return Drop::oversized;
        return {};
    }
    const size_t header = gso_header_bytes(offload, frame);
    if (header == 0 || offload.gso_size == 0) return Drop::bad_offload;
    if (frame.size() > link + ip_packet_max || header + offload.gso_size > limit) return Drop::oversized;
    if (offload.gso_type == Offload::udp_l4 && frame.size() - header > udp_segments_max * offload.gso_size)
        return Drop::bad_offload;
    return {};
}

size_t write_entry(uint8_t* to, const Entry& entry, size_t data_bytes) {
    put32(to + at_connector, entry.connector);
    put16(to + at_length, static_cast<uint16_t>(data_bytes));
    to[at_flags] = static_cast<uint8_t>((entry.offload.flags & known_flags) | (entry.is_slice ? slice_flag : 0));
    to[at_gso_type] = entry.offload.gso_type;
    put16(to + at_gso_size, entry.offload.gso_size);
    put16(to + at_csum_start, entry.offload.csum_start);
    put16(to + at_csum_offset, entry.offload.csum_offset);
    put16(to + at_header_bytes, entry.is_slice ? entry.header_bytes : 0);
    if (!entry.is_slice) return entry_bytes;
    put32(to + at_frame_number, entry.frame_number);
    put32(to + at_offset, entry.offset);
    put32(to + at_frame_bytes, entry.frame_bytes);
    return entry_bytes + slice_bytes;
}

std::optional<Entry> next_entry(std::span<const uint8_t>& record) {
    if (record.size() < entry_bytes) return {};
    const uint8_t* from = record.data();
    const bool is_slice = from[at_flags] & slice_flag;
    const size_t header = is_slice ? entry_bytes + slice_bytes : entry_bytes, length = get16(from + at_length);
    if (from[at_flags] & ~(known_flags | slice_flag) || record.size() < header + length) return {};
    Entry entry;
    entry.connector = get32(from + at_connector);
    entry.offload.flags = from[at_flags] & known_flags;
    entry.offload.gso_type = from[at_gso_type];
    entry.offload.gso_size = get16(from + at_gso_size);
    entry.offload.csum_start = get16(from + at_csum_start);
    entry.offload.csum_offset = get16(from + at_csum_offset);
    entry.is_slice = is_slice;
    entry.header_bytes = get16(from + at_header_bytes);
    if (is_slice) {
        entry.frame_number = get32(from + at_frame_number);
        entry.offset = get32(from + at_offset);
        entry.frame_bytes = get32(from + at_frame_bytes);
    } else if (entry.header_bytes != 0) {
        return {};
    }
    entry.data = record.subspan(header, length);
    record = record.subspan(header + length);
    return entry;
}

}  // namespace banana::tunnel
