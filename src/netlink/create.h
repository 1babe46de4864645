// Making links: veth pairs, bridges, VXLANs, macvtaps, taps.
//
// Concepts: each spec says what the finished link is like; create() gives the steps to get there, to be sent by
// Socket::batch() or sequence(). The kernel takes MTU, MAC, txqueuelen and master with the creation; the alias (refused
// or ignored at creation), "IPv6 off" and "up" are further steps, in an order in which the link never speaks: IPv6 is
// off before the link is up. If a step fails, delete what the first made: `delete_link(name)` accepts its absence.
// Threading: pure functions, but create_tap(), which works on /dev/net/tun at once.
// Errors: see request.h.
#pragma once

#include <linux/if_link.h>

#include <cstdint>
#include <optional>
#include <string>

#include "base/bytes.h"
#include "base/fd.h"
#include "netlink/request.h"

namespace banana::netlink {

// What any link can have. Unset: the kernel's default.
struct LinkOptions {
    std::string alias = {};  // at most 255 bytes
    std::optional<Mac> mac = {};
    uint32_t mtu = 0;
    uint32_t txqueuelen = 0;
    uint32_t master = 0;  // ifindex of a bridge
    bool up = true;
    bool ipv6 = false;  // false: the host's own IPv6 never speaks on it
};

struct VethSpec {
    std::string name = {}, peer = {};
    LinkOptions options = {};       // of `name`
    LinkOptions peer_options = {};  // of `peer`
};

// A device that passes on nothing by itself: what is sent by it is dropped, unless a tc filter takes it first. It has
// its carrier from the start, so a bridge forwards by it as soon as it is up; a veth end has it only when the kernel's
// linkwatch has run. Where `ifb` is a module, the first one loads it, and the module makes ifb0 and ifb1 besides.
struct IfbSpec {
    std::string name = {};
    LinkOptions options = {};
};

struct BridgeSpec {
    std::string name = {};
    LinkOptions options = {};  // the MTU is kept whatever ports come; a MAC that is given is kept as well
    bool multicast_snooping = false;
    bool vlan_filtering = false;
    uint32_t ageing_s = 300;
};  // always: no STP, no forward delay

struct VxlanSpec {
    std::string name = {};
    LinkOptions options = {};  // no lower device: the MTU may exceed the underlay's, outer packets are then fragmented
    uint32_t vni = 0;          // 24 bits
    IpAddress local = {}, remote = {};  // of one family; remote is a host's, not a group's
    uint16_t port = 4789;
    uint8_t ttl = 64;
    bool learning = false;
    bool udp_checksum = false;  // IPv4: compute it; IPv6: compute it and ask for it
};

struct MacvtapSpec {
    std::string name = {};
    uint32_t lower = 0;  // ifindex
    LinkOptions options = {};
    uint32_t mode = MACVLAN_MODE_PASSTHRU;
};

struct TapSpec {
    std::string name = {};
    bool persistent = true;
    bool vnet_header = true;
    bool multi_queue = false;
    std::optional<uint32_t> owner = {}, group = {};  // who may open it besides root
};

Requests create(const VethSpec& spec);
Requests create(const IfbSpec& spec);
Requests create(const BridgeSpec& spec);
Requests create(const VxlanSpec& spec);
Requests create(const MacvtapSpec& spec);

// Gives an existing bridge the spec's own properties (STP off, delays, snooping); its options are left alone.
Request set_bridge(const LinkRef& which, const BridgeSpec& spec);

// Opens (and makes, if it is not there) a tap of the calling thread's namespace. A persistent one stays when the Fd is
// closed. Its other properties are set as with any link: set_link().
Result<Fd> create_tap(const TapSpec& spec);

}  // namespace banana::netlink
