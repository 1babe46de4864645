// The order of a link's steps, and why it is that:
//   1. create it, down, with all that the kernel takes at creation;
//   2. IPv6 off through disable_ipv6: IN6_ADDR_GEN_MODE_NONE would be one message less, but where the host forwards
//      IPv6 such a device still reports its membership of ff02::2 as soon as it is up;
//   3. alias and up in one message. Nothing has been sent by the device so far.
//
// What it costs, in CPU time of a veth pair, one end a bridge's port, and a VXLAN (8 steps): 0.5 ms, with 10 such there
// and with 2 000. Nearly all of it is making the devices; a write to disable_ipv6 takes 16 us, alias 1 us,
// up 10 us, a bridge port 150 us. With IPv6 left on, or off by address generation alone, "up" gets dearer with every
// device there is: 1.8 ms a wire at 2 400. Each event to a Monitor is built and copied as well: have one of it.
#include "netlink/create.h"

#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/veth.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/ioctl.h>

#include <cerrno>
#include <cstring>

#include "netlink/change.h"
#include "netlink/fill.h"
#include "netlink/message.h"

namespace banana::netlink {

namespace {
constexpr uint32_t vni_limit = 1 << 24;
constexpr uint32_t ipv6_mtu_least = 1280;  // the kernel's IPv6 does not look at a device below that
constexpr uint32_t clock_ticks = 100;      // USER_HZ: the unit of the bridge's times

// What goes into the creating message, of this link or of a veth's peer.
void fill_options(Message& message, const LinkOptions& options, uint32_t mtu) {
    if (options.mac) message.mac(IFLA_ADDRESS, *options.mac);
    if (mtu) message.u32(IFLA_MTU, mtu);
    if (options.txqueuelen) message.u32(IFLA_TXQLEN, options.txqueuelen);
}

Message start(const std::string& what, const std::string& name, const LinkOptions& options, uint32_t mtu) {
    Message message(what, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL);
    fill_link(message, name, false, false);
    fill_options(message, options, mtu);
    if (options.master) message.u32(IFLA_MASTER, options.master);
    return message;
}

template <class Fill>
void fill_kind(Message& message, const char* kind, Fill fill) {
    message.nest(IFLA_LINKINFO, [&] {
        message.text(IFLA_INFO_KIND, kind);
        message.nest(IFLA_INFO_DATA, fill);
    });
}

// Steps 2 and 3. `master`: only where the creation could not set it (a veth's peer).
void finish_link(Requests& steps, const std::string& name, const LinkOptions& options, uint32_t mtu, uint32_t master) {
    const bool has_ipv6 = options.mtu == 0 || options.mtu >= ipv6_mtu_least;
    if (!options.ipv6 && has_ipv6) steps.push_back(disable_ipv6(name));
    LinkChange change;
    if (options.up) change.up = true;
    if (!options.alias.empty()) change.alias = options.alias;
    if (mtu) change.mtu = mtu;
    if (master) change.master = master;
    if (change.up || change.alias || change.mtu || change.master) steps.push_back(set_link(name, change));
}

// Unasked, the kernel makes a veth end with a queue a CPU and then takes all but one out of use, for which it waits for
// its readers with the RTNL lock held: 0.1 to 0.2 ms an end.
void fill_one_queue(Message& message) { message.u32(IFLA_NUM_TX_QUEUES, 1).u32(IFLA_NUM_RX_QUEUES, 1); }

void fill_bridge(Message& message, const BridgeSpec& spec) {
    message.u32(IFLA_BR_STP_STATE, 0);
    message.u32(IFLA_BR_FORWARD_DELAY, 0);
    message.u32(IFLA_BR_AGEING_TIME, spec.ageing_s * clock_ticks);
    message.u8(IFLA_BR_MCAST_SNOOPING, spec.multicast_snooping);
    // A kernel without it refuses even "off", which is the default anyway.
    if (spec.vlan_filtering) message.u8(IFLA_BR_VLAN_FILTERING, 1);
}

Request first_step(const VxlanSpec& spec) {
    std::string what = "create vxlan " + spec.name + " (VNI " + std::to_string(spec.vni) + ")";
    Message message = start(what, spec.name, spec.options, spec.options.mtu);
    if (spec.vni == 0 || spec.vni >= vni_limit) message.refuse("the VNI is not between 1 and 16777215");
    if (spec.remote.family == 0) message.refuse("a VXLAN needs a remote address");
    if (spec.local.family && spec.local.family != spec.remote.family)
        message.refuse("local and remote address are of different families");
    if (spec.port == 0) message.refuse("a VXLAN needs a UDP port");
    bool v6 = spec.remote.family == AF_INET6;
    fill_kind(message, "vxlan", [&] {
        message.u32(IFLA_VXLAN_ID, spec.vni);
        message.address(v6 ? IFLA_VXLAN_GROUP6 : IFLA_VXLAN_GROUP, spec.remote);
        if (spec.local.family) message.address(v6 ? IFLA_VXLAN_LOCAL6 : IFLA_VXLAN_LOCAL, spec.local);
        message.u16(IFLA_VXLAN_PORT, htons(spec.port));
        message.u8(IFLA_VXLAN_TTL, spec.ttl);
        message.u8(IFLA_VXLAN_LEARNING, spec.learning);
        if (v6) {
            message.u8(IFLA_VXLAN_UDP_ZERO_CSUM6_TX, !spec.udp_checksum);
            message.u8(IFLA_VXLAN_UDP_ZERO_CSUM6_RX, !spec.udp_checksum);
        } else {
            message.u8(IFLA_VXLAN_UDP_CSUM, spec.udp_checksum);
        }
    });
    return std::move(message).finish();
}
}  // namespace

Requests create(const VethSpec& spec) {
    Message message =
        start("create veth " + spec.name + " with peer " + spec.peer, spec.name, spec.options, spec.options.mtu);
    fill_one_queue(message);
    fill_kind(message, "veth", [&] {
        message.nest(VETH_INFO_PEER, [&] {
            message.header(ifinfomsg{});
            message.device_name(IFLA_IFNAME, spec.peer);
            fill_one_queue(message);
            fill_options(message, spec.peer_options, spec.peer_options.mtu);
        });
    });
    Requests steps;
    steps.push_back(std::move(message).finish());
    finish_link(steps, spec.name, spec.options, 0, 0);
    finish_link(steps, spec.peer, spec.peer_options, 0, spec.peer_options.master);
    return steps;
}

Requests create(const IfbSpec& spec) {
    Message message = start("create ifb " + spec.name, spec.name, spec.options, spec.options.mtu);
    fill_one_queue(message);
    message.nest(IFLA_LINKINFO, [&] { message.text(IFLA_INFO_KIND, "ifb"); });
    Requests steps;
    steps.push_back(std::move(message).finish());
    finish_link(steps, spec.name, spec.options, 0, 0);
    return steps;
}

Requests create(const BridgeSpec& spec) {
    // A bridge keeps its MTU when ports come only if the MTU was once *changed*: so it is made with another one.
    uint32_t mtu = spec.options.mtu;
    // Not by one that is too small for IPv6: the kernel would begin with it, unasked, when the change comes.
    const uint32_t other = mtu == ipv6_mtu_least ? mtu + 1 : mtu - 1;
    Message message = start("create bridge " + spec.name, spec.name, spec.options, mtu ? other : 0);
    if (mtu && (mtu < 69 || mtu > 65535)) message.refuse("the MTU is not between 69 and 65535");
    fill_kind(message, "bridge", [&] { fill_bridge(message, spec); });
    Requests steps;
    steps.push_back(std::move(message).finish());
    finish_link(steps, spec.name, spec.options, mtu, 0);
    return steps;
}

Requests create(const VxlanSpec& spec) {
    Requests steps;
    steps.push_back(first_step(spec));
    finish_link(steps, spec.name, spec.options, 0, 0);
    return steps;
}

Request set_bridge(const LinkRef& which, const BridgeSpec& spec) {
    Message message("set bridge properties of " + which.text(), RTM_NEWLINK, 0);
    fill_link(message, which, false, false);
    fill_kind(message, "bridge", [&] { fill_bridge(message, spec); });
    return std::move(message).finish();
}

Requests create(const MacvtapSpec& spec) {
    std::string what = "create macvtap " + spec.name + " over #" + std::to_string(spec.lower);
    Message message = start(what, spec.name, spec.options, spec.options.mtu);
    if (spec.lower == 0) message.refuse("a macvtap needs a lower device");
    message.u32(IFLA_LINK, spec.lower);
    fill_kind(message, "macvtap", [&] { message.u32(IFLA_MACVLAN_MODE, spec.mode); });
    Requests steps;
    steps.push_back(std::move(message).finish());
    finish_link(steps, spec.name, spec.options, 0, 0);
    return steps;
}

Result<Fd> create_tap(const TapSpec& spec) {
    std::string what = "create tap " + printable(spec.name);
    if (auto why = bad_name(spec.name)) return Error(Errc::invalid, what + ": " + *why);
    Fd tap(::open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK));
    if (!tap) return errno_error(errno, what + ": open /dev/net/tun");
    ifreq wanted{};
    std::memcpy(wanted.ifr_name, spec.name.c_str(), spec.name.size() + 1);
    wanted.ifr_flags = static_cast<short>(IFF_TAP | IFF_NO_PI | (spec.vnet_header ? IFF_VNET_HDR : 0) |
                                          (spec.multi_queue ? IFF_MULTI_QUEUE : 0));
    if (::ioctl(tap.get(), TUNSETIFF, &wanted) < 0) return errno_error(errno, what);
    if (spec.owner && ::ioctl(tap.get(), TUNSETOWNER, static_cast<unsigned long>(*spec.owner)) < 0)
        return errno_error(errno, what + ": set its owner");
    if (spec.group && ::ioctl(tap.get(), TUNSETGROUP, static_cast<unsigned long>(*spec.group)) < 0)
        return errno_error(errno, what + ": set its group");
    if (::ioctl(tap.get(), TUNSETPERSIST, spec.persistent ? 1UL : 0UL) < 0)
        return errno_error(errno, what + ": make it persistent");
    return tap;
}

}  // namespace banana::netlink
