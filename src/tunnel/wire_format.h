// The bytes before each DTLS record in a datagram: which lane and which session of the receiver it is for.
//
// Concepts: a data datagram is this header and one DTLS record. The lane is chosen by the kernel from byte 1 (a socket
// filter on SO_REUSEPORT), the session by its index, so that sessions live side by side on one address pair (rekey)
// and an address may change under one (NAT). The header proves nothing: the record behind it does. Much like the
// connection id of RFC 9146, which OpenSSL 3.0 does not have.
//
//   byte  0        1        2..3            (hello, handshake: 4)   5              6..7
//         version  lane of  index of the                reserved  lane of the  index of the
//         << 4     the      receiver's                  (0)       sender       sender's
//         | kind   receiver session; hello: 0                                  session
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

namespace banana::tunnel {

enum class DatagramKind : uint8_t {
    hello = 0,      // ClientHello, or the cookie challenge that answers it: the receiver has no session for it yet
    handshake = 1,  // both ends have a session; not known to be up
    data = 2,
};

inline constexpr uint8_t wire_version = 2;
inline constexpr size_t data_header_bytes = 4;
inline constexpr size_t handshake_header_bytes = 8;

struct DatagramHeader {
    DatagramKind kind = DatagramKind::data;
    uint8_t lane = 0;         // the receiver's
    uint16_t index = 0;       // of the receiver's session in that lane; 0: none
    uint8_t from_lane = 0;    // hello, handshake
    uint16_t from_index = 0;  // hello, handshake
    size_t bytes() const { return kind == DatagramKind::data ? data_header_bytes : handshake_header_bytes; }
};

size_t write_header(uint8_t* to, const DatagramHeader& header);  // returns header.bytes()
// Nothing: not ours (short, another version, unknown kind).
std::optional<DatagramHeader> read_header(std::span<const uint8_t> datagram);

}  // namespace banana::tunnel
