// Links: what the kernel says about network devices.
//
// Concepts: a Link is a copy of what one RTM_NEWLINK message said; it does not follow later changes (Monitor does).
// Sizes are bytes, txqueuelen is frames, MTUs do not count the Ethernet header.
// Threading: values; the functions use the caller's Socket.
// Errors: a link that is not there is Errc::not_found.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "netlink/rtsocket.h"

namespace banana::netlink {

struct VxlanInfo {
    uint32_t vni = 0;
    IpAddress local = {}, remote = {};  // family 0: none
    uint16_t port = 0;                  // UDP destination port, host byte order
    uint32_t lower = 0;                 // ifindex of the lower device; 0: routed
    uint8_t ttl = 0;
    bool learning = false;
    bool udp_checksum = false;           // IPv4: on outgoing frames
    bool udp6_zero_checksum_tx = false;  // IPv6: send without
    bool udp6_zero_checksum_rx = false;  // IPv6: take those without
    bool operator==(const VxlanInfo&) const = default;
};

struct BridgeInfo {
    bool stp = false;
    bool multicast_snooping = false;
    bool vlan_filtering = false;
    uint32_t forward_delay_cs = 0;  // hundredths of a second, as is ageing
    uint32_t ageing_cs = 0;
    bool operator==(const BridgeInfo&) const = default;
};

struct BridgePort {
    uint8_t state = 0;  // BR_STATE_FORWARDING is 3
    bool learning = true;
    bool flood = true;            // unknown unicast goes out here
    bool multicast_flood = true;  // unknown multicast
    bool broadcast_flood = true;
    bool isolated = false;
    bool hairpin = false;
};

struct LinkStats {
    uint64_t rx_packets = 0, tx_packets = 0, rx_bytes = 0, tx_bytes = 0;
    uint64_t rx_errors = 0, tx_errors = 0, rx_dropped = 0, tx_dropped = 0;
};

struct Link {
    uint32_t index = 0;
    std::string name = {};
    std::string kind = {};  // "veth", "vxlan", "bridge", "tun", "macvtap"...; empty for hardware and lo
    std::string alias = {};
    Mac mac = {};
    uint32_t mtu = 0;
    uint32_t txqueuelen = 0;
    uint32_t group = 0;
    uint32_t master = 0;          // ifindex of the bridge it is a port of; 0: none
    uint32_t peer = 0;            // a veth's other end, a macvtap's lower device; 0: none or another namespace's
    bool peer_elsewhere = false;  // `peer` is in another namespace
    bool up = false;              // administratively
    bool carrier = false;         // the lower layer is up (IFF_LOWER_UP)
    bool running = false;         // operational: up with carrier
    bool loopback = false;
    uint8_t operstate = 0;       // IF_OPER_*
    uint8_t addr_gen_mode = 0;   // IN6_ADDR_GEN_MODE_*
    bool ipv6_disabled = false;  // disable_ipv6, or no IPv6 at all
    uint32_t macvlan_mode = 0;   // MACVLAN_MODE_*, of a macvtap or macvlan
    std::optional<VxlanInfo> vxlan = {};
    std::optional<BridgeInfo> bridge = {};
    std::optional<BridgePort> port = {};  // of a bridge
    LinkStats stats = {};

    bool is_bridge_port() const { return port.has_value(); }
};

// One link by index or name.
Result<Link> link(Socket& socket, const LinkRef& which);
// Several by one send; results in the order asked.
std::vector<Result<Link>> links_of(Socket& socket, std::span<const LinkRef> which);
// Is there such a link?
Result<bool> link_exists(Socket& socket, const LinkRef& which);

struct LinkFilter {
    uint32_t master = 0;    // ports of this bridge only
    std::string kind = {};  // of this kind only
    bool stats = true;      // false: cheaper, Link::stats stays zero
};
// All links of the namespace, filtered in the kernel.
Result<std::vector<Link>> links(Socket& socket, const LinkFilter& filter = {});

// An RTM_NEWLINK or RTM_DELLINK message as a Link; nothing if it is anything else, malformed, or a bridge's own
// (family AF_BRIDGE) notice about a port.
std::optional<Link> parse_link(const nlmsghdr& header);

}  // namespace banana::netlink
