#include "tunnel/wire_format.h"

namespace banana::tunnel {

size_t write_header(uint8_t* to, const DatagramHeader& header) {
    to[0] = static_cast<uint8_t>(wire_version << 4 | static_cast<uint8_t>(header.kind));
    to[1] = header.lane;
    to[2] = static_cast<uint8_t>(header.index >> 8);
    to[3] = static_cast<uint8_t>(header.index);
    if (header.kind == DatagramKind::data) return data_header_bytes;
    to[4] = 0;
    to[5] = header.from_lane;
    to[6] = static_cast<uint8_t>(header.from_index >> 8);
    to[7] = static_cast<uint8_t>(header.from_index);
    return handshake_header_bytes;
}

std::optional<DatagramHeader> read_header(std::span<const uint8_t> datagram) {
    if (datagram.size() < data_header_bytes || datagram[0] >> 4 != wire_version) return {};
    DatagramHeader header;
    if ((datagram[0] & 0x0f) > static_cast<uint8_t>(DatagramKind::data)) return {};
    header.kind = static_cast<DatagramKind>(datagram[0] & 0x0f);
    header.lane = datagram[1];
    header.index = static_cast<uint16_t>(datagram[2] << 8 | datagram[3]);
    if (header.kind == DatagramKind::data) return header;
    if (datagram.size() < handshake_header_bytes) return {};
    header.from_lane = datagram[5];
    header.from_index = static_cast<uint16_t>(datagram[6] << 8 | datagram[7]);
    return header;
}

}  // namespace banana::tunnel
