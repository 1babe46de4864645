// What a DTLS record of a wire carries (doc/dtls-wire.md, "Records"): entries, each a frame, a slice of one, or a
// control message of the session itself.
//
// Concepts: an entry is a fixed header, then its bytes. Its first 32 bits name the wire (connector id); 0 is the
// session's own. The offload state of a frame (virtio_net_hdr: partial checksum, segment size) travels in the header,
// so that a 64 KB TCP frame passes a wire as it was: neither segmented nor summed. A frame that does not fit into one
// record is cut into slices (segment.h). All integers are in network byte order. Several small entries share a record.
// Threading: pure functions on the caller's bytes. Errors: a Drop says why bytes from a tap or a peer are not passed
// on. Source: virtio 1.2, section 5.1.6 (struct virtio_net_hdr).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "base/mtu.h"

namespace banana::tunnel {

// Why a frame is not passed on. Names are stable, for --json: drop_name().
enum class Drop : uint8_t {
    runt,          // shorter than an Ethernet header
    oversized,     // longer than the wire's MTU allows
    bad_offload,   // a vnet header that makes no sense for its frame
    bad_entry,     // a record that cannot be parsed (authenticated: a peer's bug or malice)
    unknown_wire,  // no such connector id here, or no longer
    foreign_wire,  // a wire of another host than the one that sent it
    incomplete,    // slices of a frame were lost on the way
    no_session,    // nobody to send it to
    tap_full,      // the tap would not take it
    count_         // how many there are
};
const char* drop_name(Drop reason);

// struct virtio_net_hdr, little-endian as a tap's by default, without the fields that are not needed: hdr_len is a hint
// that the kernel does not trust either, and is made anew.
struct Offload {
    static constexpr uint8_t needs_csum = 1, csum_valid = 2;                        // flags
    static constexpr uint8_t none = 0, tcp4 = 1, tcp6 = 4, udp_l4 = 5, ecn = 0x80;  // gso_type
    uint8_t flags = 0;
    uint8_t gso_type = none;
    uint16_t gso_size = 0;     // bytes of payload in each segment
    uint16_t csum_start = 0;   // from the frame's first byte
    uint16_t csum_offset = 0;  // from csum_start
    bool operator==(const Offload&) const = default;
};

inline constexpr size_t vnet_bytes = 10;  // a tap's header, before each frame
inline constexpr size_t ip_packet_max = 65535;
inline constexpr size_t frame_max = ip_packet_max + ethernet_bytes + 4;  // with a VLAN tag
inline constexpr size_t entry_bytes = 16;                                // an entry's header
inline constexpr size_t slice_bytes = 12;                                // what a slice's header has besides
inline constexpr uint32_t session_id = 0;                                // the connector id of control messages

Offload read_vnet(const uint8_t* vnet);  // vnet_bytes
// `header_bytes`: link, network and transport headers together; 0 when not known.
void write_vnet(uint8_t* vnet, const Offload& offload, uint16_t header_bytes);

// The Ethernet header, with a VLAN tag if there is one; of a frame of at least ethernet_bytes.
size_t link_bytes(std::span<const uint8_t> frame);

// Headers up to and with the transport's, of a frame with gso; 0 when offload and frame do not fit each other. The
// frame may be its beginning only: no length in it is looked at.
size_t gso_header_bytes(const Offload& offload, std::span<const uint8_t> frame);

// Whether a wire of this MTU may carry the frame; both for frames from the tap and from a peer. On success the offload
// can be handed to a kernel as it stands.
std::optional<Drop> check_frame(const Offload& offload, std::span<const uint8_t> frame, uint32_t mtu);

struct Entry {
    uint32_t connector = 0;
    Offload offload;
    bool is_slice = false;
    uint16_t header_bytes = 0;      // slice: so many bytes of the frame's headers precede the data, unless offset is 0
    uint32_t frame_number = 0;      // slice: of the sender's session
    uint32_t offset = 0;            // slice: of the data in the frame
    uint32_t frame_bytes = 0;       // slice: the whole frame
    std::span<const uint8_t> data;  // with a slice's repeated headers
};

// Writes an entry's header (entry_bytes, or entry_bytes + slice_bytes); `data_bytes` follow it. Returns its size.
size_t write_entry(uint8_t* to, const Entry& entry, size_t data_bytes);

// Takes the next entry off `record`; nothing when `record` is at its end or cannot be parsed (then not empty).
std::optional<Entry> next_entry(std::span<const uint8_t>& record);

}  // namespace banana::tunnel
