#include "tests/fuzz/frames.h"

#include <algorithm>
#include <cstring>

namespace banana::tunnel::testing {

namespace {

void append16(std::vector<uint8_t>& to, size_t value) {
    to.push_back(static_cast<uint8_t>(value >> 8));
    to.push_back(static_cast<uint8_t>(value));
}
void append32(std::vector<uint8_t>& to, uint32_t value) {
    append16(to, value >> 16);
    append16(to, value & 0xffff);
}
void set16(std::vector<uint8_t>& in, size_t at, size_t value) {
    in[at] = static_cast<uint8_t>(value >> 8);
    in[at + 1] = static_cast<uint8_t>(value);
}
size_t word(std::span<const uint8_t> in, size_t at) { return static_cast<size_t>(in[at] << 8 | in[at + 1]); }
uint32_t long_word(std::span<const uint8_t> in, size_t at) {
    return static_cast<uint32_t>(word(in, at) << 16 | word(in, at + 2));
}

void append_ip(std::vector<uint8_t>& to, const Shape& shape, size_t transport_and_payload) {
    const uint8_t protocol = shape.udp ? 17 : 6;
    const size_t addresses = shape.ipv6 ? 32 : 8;
    const size_t begin = to.size();
    if (shape.ipv6) {
        append32(to, 0x60000000);
        append16(to, shape.ip_options + transport_and_payload);
        to.push_back(shape.ip_options ? 60 : protocol);  // 60: destination options
        to.push_back(64);
    } else {
        to.push_back(static_cast<uint8_t>(0x45 + shape.ip_options / 4));
        to.push_back(0);
        append16(to, 20 + shape.ip_options + transport_and_payload);
        append32(to, 0x12344000);  // identification; don't fragment
        to.push_back(64);
        to.push_back(protocol);
        append16(to, 0);
    }
    for (size_t i = 0; i < addresses; ++i) to.push_back(static_cast<uint8_t>(i * 37 + shape.seed));
    if (shape.ipv6 && shape.ip_options) {
        to.push_back(protocol);
        to.push_back(static_cast<uint8_t>(shape.ip_options / 8 - 1));
        to.push_back(1);  // PadN
        to.push_back(static_cast<uint8_t>(shape.ip_options - 4));
        to.insert(to.end(), shape.ip_options - 4, 0);
    } else {
        to.insert(to.end(), shape.ip_options, 1);  // NOP
    }
    if (!shape.ipv6) set16(to, begin + 10, static_cast<uint16_t>(~ones_sum(std::span(to).subspan(begin))));
}

size_t link_of(std::span<const uint8_t> frame) { return word(frame, 12) == 0x8100 ? 18 : 14; }

// The pseudo header's sum without the length.
uint32_t pseudo_sum(std::span<const uint8_t> frame, uint8_t protocol) {
    const size_t link = link_of(frame);
    const bool ipv6 = frame[link] >> 4 == 6;
    return uint32_t{ones_sum(frame.subspan(link + (ipv6 ? 8 : 12), ipv6 ? 32 : 8))} + protocol;
}

}  // namespace

uint16_t ones_sum(std::span<const uint8_t> bytes, uint32_t start) {
    uint64_t sum = start;
    for (size_t i = 0; i < bytes.size(); ++i) sum += i % 2 ? bytes[i] : uint64_t{bytes[i]} << 8;
    while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
    return static_cast<uint16_t>(sum);
}

Frame frame_of(std::span<const uint8_t> bytes, const Offload& offload) {
    Frame frame;
    frame.offload = offload;
    frame.buffer.assign(slice_headroom, 0xaa);
    frame.buffer.insert(frame.buffer.end(), bytes.begin(), bytes.end());
    return frame;
}

Frame make_frame(const Shape& shape) {
    std::vector<uint8_t> made{0x52, 0x54, 0, 0x12, 0x34, 0x56, 0x52, 0x54, 0, 0x65, 0x43, 0x21};
    if (shape.vlan) append32(made, 0x81000064);
    append16(made, shape.ipv6 ? 0x86dd : 0x0800);
    const size_t transport_bytes = shape.udp ? 8 : 20 + shape.tcp_options;
    append_ip(made, shape, transport_bytes + shape.payload);
    const size_t transport = made.size();
    append32(made, 0x1f90c350);  // ports
    if (shape.udp) {
        append16(made, transport_bytes + shape.payload);
    } else {
        append32(made, shape.sequence);
        append32(made, 0x01020304);  // acknowledged
        made.push_back(static_cast<uint8_t>(transport_bytes / 4 << 4));
        made.push_back(shape.tcp_flags);
        append16(made, 0xfff0);  // window
    }
    append16(made, 0);  // checksum
    if (!shape.udp) append16(made, 0);
    made.insert(made.end(), shape.udp ? 0 : shape.tcp_options, 1);
    uint32_t state = shape.seed;
    for (size_t i = 0; i < shape.payload; ++i)
        made.push_back(static_cast<uint8_t>((state = state * 1664525 + 1) >> 24));
    Offload offload;
    if (shape.checksum) {
        offload.flags = Offload::needs_csum;
        offload.csum_start = static_cast<uint16_t>(transport);
        offload.csum_offset = shape.udp ? 6 : 16;
        const uint32_t sum = pseudo_sum(made, shape.udp ? 17 : 6) + static_cast<uint32_t>(made.size() - transport);
        set16(made, transport + offload.csum_offset, ones_sum({}, sum));
    }
    if (shape.gso_size != 0) {
        offload.gso_size = shape.gso_size;
        offload.gso_type = shape.udp ? Offload::udp_l4 : shape.ipv6 ? Offload::tcp6 : Offload::tcp4;
        if (!shape.udp && shape.tcp_flags & 0x80) offload.gso_type |= Offload::ecn;
    }
    return frame_of(made, offload);
}

std::string part_fault(const Frame& sent, const Offload& offload, std::span<const uint8_t> got, size_t& begin,
                       size_t& end) {
    const auto whole = sent.bytes();
    const size_t link = link_bytes(whole), tcp = sent.offload.csum_start;  // 802.1ad, too: not link_of()
    const size_t header = tcp + static_cast<size_t>(whole[tcp + 12] >> 4) * 4;
    if (got.size() <= header || got.size() > whole.size()) return "size";
    begin = static_cast<uint32_t>(long_word(got, tcp + 4) - long_word(whole, tcp + 4));
    end = begin + got.size() - header;
    if (end > whole.size() - header) return "sequence number";
    if (!std::equal(got.begin() + static_cast<ptrdiff_t>(header), got.end(),
                    whole.begin() + static_cast<ptrdiff_t>(header + begin)))
        return "payload";
    const bool has_start = begin == 0, has_end = end == whole.size() - header;
    std::vector<uint8_t> expected(whole.begin(), whole.begin() + static_cast<ptrdiff_t>(header));
    if (!has_start || !has_end) {
        // Everything that may differ is taken as it came, and looked at by itself.
        const bool ipv4 = whole[link] >> 4 == 4;
        const size_t length = ipv4 ? got.size() - link : got.size() - link - 40;
        if (word(got, link + (ipv4 ? 2 : 4)) != length) return "IP length";
        if (ipv4 && ones_sum(got.subspan(link, 20)) % 65535 != ones_sum(whole.subspan(link, 20)) % 65535)
            return "IP header checksum";
        const size_t was = word(whole, tcp + 16) + 65535 - (whole.size() - tcp);
        const size_t is = word(got, tcp + 16) + 65535 - (got.size() - tcp);
        if (was % 65535 != is % 65535) return "partial checksum";
        const uint8_t gone = static_cast<uint8_t>((has_end ? 0 : 0x09) | (has_start ? 0 : 0x80));
        if (got[tcp + 13] != (whole[tcp + 13] & ~gone)) return "TCP flags";
        const std::vector<size_t> ip = ipv4 ? std::vector<size_t>{2, 3, 10, 11} : std::vector<size_t>{4, 5};
        for (const size_t at : ip) expected[link + at] = got[link + at];
        for (const size_t at : {4, 5, 6, 7, 13, 16, 17}) expected[tcp + at] = got[tcp + at];
    }
    if (!std::equal(expected.begin(), expected.end(), got.begin())) return "another header byte";
    Offload wanted = sent.offload;
    if (!has_start) wanted.gso_type &= static_cast<uint8_t>(~Offload::ecn);
    if ((!has_start || !has_end) && end - begin <= wanted.gso_size) wanted.gso_size = wanted.gso_type = 0;
    return offload == wanted ? "" : "offload";
}

std::string checksum_fault(const Offload& offload, std::span<const uint8_t> frame) {
    const size_t link = link_of(frame);
    const auto packet = frame.subspan(link);
    const bool ipv6 = packet[0] >> 4 == 6;
    size_t transport = ipv6 ? 40 : static_cast<size_t>(packet[0] & 15) * 4;
    uint8_t protocol = ipv6 ? packet[6] : packet[9];
    if (ipv6 ? word(packet, 4) + 40 != packet.size() : word(packet, 2) != packet.size()) return "IP length";
    if (!ipv6 && ones_sum(packet.first(transport)) != 0xffff) return "IP header checksum";
    if (ipv6 && protocol == 60) {
        protocol = packet[40];
        transport += static_cast<size_t>(packet[41] + 1) * 8;
    }
    if (!(offload.flags & Offload::needs_csum)) return "no partial checksum";
    if (offload.csum_start != link + transport) return "csum_start";
    // Completed as a kernel would, then all of it summed with the pseudo header.
    std::vector<uint8_t> segment(packet.begin() + static_cast<ptrdiff_t>(transport), packet.end());
    set16(segment, offload.csum_offset, static_cast<uint16_t>(~ones_sum(segment)));
    const uint32_t pseudo = pseudo_sum(frame, protocol) + static_cast<uint32_t>(segment.size());
    return ones_sum(segment, pseudo) == 0xffff ? "" : "transport checksum";
}

std::vector<std::vector<uint8_t>> cut(const Frame& frame, size_t capacity, uint32_t number, uint32_t connector) {
    Frame copy = frame;
    Cutter cutter(connector, copy.offload, copy.bytes(), number, capacity);
    std::vector<std::vector<uint8_t>> records;
    for (auto slice = cutter.next(); !slice.empty(); slice = cutter.next())
        records.emplace_back(slice.begin(), slice.end());
    return records;
}

void Receiving::record(std::span<const uint8_t> record) {
    while (const auto entry = next_entry(record)) slice(*entry);
    if (!record.empty()) ++drops[Drop::bad_entry];
}

void Receiving::slice(const Entry& entry) {
    bytes_in += entry.data.size();
    if (const auto drop = joiner.add(entry, deliver_)) ++drops[*drop];
    lost.insert(lost.end(), joiner.lost().begin(), joiner.lost().end());
}

}  // namespace banana::tunnel::testing
