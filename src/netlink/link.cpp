#include "netlink/link.h"

#include <linux/if_bridge.h>
#include <linux/if_link.h>
#include <linux/ipv6.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include "netlink/fill.h"
#include "netlink/message.h"

namespace banana::netlink {

namespace {
// From the kernel's RTEXT_FILTER_*; spelt here as the older headers lack the second.
constexpr uint32_t filter_skip_stats = 1 << 3;

VxlanInfo parse_vxlan(nlattr* data) {
    Attributes<IFLA_VXLAN_MAX> in(data);
    VxlanInfo info;
    info.vni = in.get<uint32_t>(IFLA_VXLAN_ID);
    info.remote = in.address(in.has(IFLA_VXLAN_GROUP6) ? IFLA_VXLAN_GROUP6 : IFLA_VXLAN_GROUP);
    info.local = in.address(in.has(IFLA_VXLAN_LOCAL6) ? IFLA_VXLAN_LOCAL6 : IFLA_VXLAN_LOCAL);
    info.port = ntohs(in.get<uint16_t>(IFLA_VXLAN_PORT));
    info.lower = in.get<uint32_t>(IFLA_VXLAN_LINK);
    info.ttl = in.get<uint8_t>(IFLA_VXLAN_TTL);
    info.learning = in.get<uint8_t>(IFLA_VXLAN_LEARNING);
    info.udp_checksum = in.get<uint8_t>(IFLA_VXLAN_UDP_CSUM);
    info.udp6_zero_checksum_tx = in.get<uint8_t>(IFLA_VXLAN_UDP_ZERO_CSUM6_TX);
    info.udp6_zero_checksum_rx = in.get<uint8_t>(IFLA_VXLAN_UDP_ZERO_CSUM6_RX);
    return info;
}

BridgeInfo parse_bridge(nlattr* data) {
    Attributes<IFLA_BR_MAX> in(data);
    BridgeInfo info;
    info.stp = in.get<uint32_t>(IFLA_BR_STP_STATE) != 0;
    info.multicast_snooping = in.get<uint8_t>(IFLA_BR_MCAST_SNOOPING);
    info.vlan_filtering = in.get<uint8_t>(IFLA_BR_VLAN_FILTERING);
    info.forward_delay_cs = in.get<uint32_t>(IFLA_BR_FORWARD_DELAY);
    info.ageing_cs = in.get<uint32_t>(IFLA_BR_AGEING_TIME);
    return info;
}

BridgePort parse_port(nlattr* data) {
    Attributes<IFLA_BRPORT_MAX> in(data);
    BridgePort port;
    port.state = in.get<uint8_t>(IFLA_BRPORT_STATE);
    port.learning = in.get<uint8_t>(IFLA_BRPORT_LEARNING, 1);
    port.flood = in.get<uint8_t>(IFLA_BRPORT_UNICAST_FLOOD, 1);
    port.multicast_flood = in.get<uint8_t>(IFLA_BRPORT_MCAST_FLOOD, 1);
    port.broadcast_flood = in.get<uint8_t>(IFLA_BRPORT_BCAST_FLOOD, 1);
    port.isolated = in.get<uint8_t>(IFLA_BRPORT_ISOLATED);
    port.hairpin = in.get<uint8_t>(IFLA_BRPORT_MODE);
    return port;
}

void parse_kind(Link& link, nlattr* nest) {
    Attributes<IFLA_INFO_MAX> info(nest);
    link.kind = info.text(IFLA_INFO_KIND);
    nlattr* data = info.at(IFLA_INFO_DATA);
    if (data && link.kind == "vxlan") link.vxlan = parse_vxlan(data);
    if (data && link.kind == "bridge") link.bridge = parse_bridge(data);
    if (data && (link.kind == "macvtap" || link.kind == "macvlan"))
        link.macvlan_mode = Attributes<IFLA_MACVLAN_MAX>(data).get<uint32_t>(IFLA_MACVLAN_MODE);
    if (info.text(IFLA_INFO_SLAVE_KIND) == "bridge") link.port = parse_port(info.at(IFLA_INFO_SLAVE_DATA));
}

void parse_ipv6(Link& link, nlattr* families) {
    Attributes<AF_INET6> by_family(families);
    Attributes<IFLA_INET6_MAX> inet6(by_family.at(AF_INET6));
    link.addr_gen_mode = inet6.get<uint8_t>(IFLA_INET6_ADDR_GEN_MODE);
    nlattr* conf = inet6.at(IFLA_INET6_CONF);
    constexpr int needed = (DEVCONF_DISABLE_IPV6 + 1) * static_cast<int>(sizeof(int32_t));
    if (!conf || nla_len(conf) < needed) {
        link.ipv6_disabled = !by_family.has(AF_INET6);
        return;
    }
    int32_t value;
    std::memcpy(&value, static_cast<char*>(nla_data(conf)) + DEVCONF_DISABLE_IPV6 * sizeof value, sizeof value);
    link.ipv6_disabled = value != 0;
}

Request get_link(const LinkRef& which) {
    Message message("look up link " + which.text(), RTM_GETLINK, 0);
    fill_link(message, which, false, false);
    return std::move(message).finish();
}
}  // namespace

std::optional<Link> parse_link(const nlmsghdr& header) {
    if (header.nlmsg_type != RTM_NEWLINK && header.nlmsg_type != RTM_DELLINK) return std::nullopt;
    if (header.nlmsg_len < NLMSG_LENGTH(sizeof(ifinfomsg))) return std::nullopt;
    const auto& info = *static_cast<const ifinfomsg*>(NLMSG_DATA(&header));
    Attributes<IFLA_MAX> in(header, sizeof(ifinfomsg));
    if (info.ifi_family != AF_UNSPEC || !in.ok() || !in.has(IFLA_IFNAME)) return std::nullopt;

    Link link;
    link.index = static_cast<uint32_t>(info.ifi_index);
    link.name = in.text(IFLA_IFNAME);
    link.alias = in.text(IFLA_IFALIAS);
    link.mac = in.get<Mac>(IFLA_ADDRESS);
    link.mtu = in.get<uint32_t>(IFLA_MTU);
    link.txqueuelen = in.get<uint32_t>(IFLA_TXQLEN);
    link.group = in.get<uint32_t>(IFLA_GROUP);
    link.master = in.get<uint32_t>(IFLA_MASTER);
    link.peer = in.get<uint32_t>(IFLA_LINK);
    link.peer_elsewhere = in.has(IFLA_LINK_NETNSID);
    link.up = info.ifi_flags & IFF_UP;
    link.carrier = info.ifi_flags & (1 << 16);  // IFF_LOWER_UP, which <net/if.h> does not have
    link.running = info.ifi_flags & IFF_RUNNING;
    link.loopback = info.ifi_flags & IFF_LOOPBACK;
    link.operstate = in.get<uint8_t>(IFLA_OPERSTATE);
    parse_kind(link, in.at(IFLA_LINKINFO));
    parse_ipv6(link, in.at(IFLA_AF_SPEC));
    auto stats = in.get<rtnl_link_stats64>(IFLA_STATS64);
    link.stats = {stats.rx_packets, stats.tx_packets, stats.rx_bytes,   stats.tx_bytes,
                  stats.rx_errors,  stats.tx_errors,  stats.rx_dropped, stats.tx_dropped};
    return link;
}

Result<Link> link(Socket& socket, const LinkRef& which) { return std::move(links_of(socket, {&which, 1})[0]); }

std::vector<Result<Link>> links_of(Socket& socket, std::span<const LinkRef> which) {
    Requests requests;
    for (const LinkRef& one : which) requests.push_back(get_link(one));
    std::vector<Result<Link>> found;
    for (const Request& request : requests)
        found.emplace_back(Error(request.what() + ": the kernel's answer cannot be read"));
    auto statuses = socket.batch(requests, [&](size_t index, const nlmsghdr& reply) {
        if (auto parsed = parse_link(reply)) found[index] = std::move(*parsed);
    });
    for (size_t i = 0; i < statuses.size(); ++i)
        if (!statuses[i]) found[i] = statuses[i].error();
    return found;
}

Result<bool> link_exists(Socket& socket, const LinkRef& which) {
    auto found = link(socket, which);
    if (found) return true;
    if (found.error().code() == Errc::not_found) return false;
    return found.error();
}

Result<std::vector<Link>> links(Socket& socket, const LinkFilter& filter) {
    Message message("list links", RTM_GETLINK, NLM_F_DUMP);
    message.header(ifinfomsg{});
    if (!filter.stats) message.u32(IFLA_EXT_MASK, filter_skip_stats);
    if (filter.master) message.u32(IFLA_MASTER, filter.master);
    if (!filter.kind.empty()) message.nest(IFLA_LINKINFO, [&] { message.text(IFLA_INFO_KIND, filter.kind); });
    // The kernel leaves its filters alone when it does not know a kind (nothing of it was ever made): ask again here.
    return dump_all<Link>(socket, std::move(message).finish(), [&](const nlmsghdr& entry) {
        auto parsed = parse_link(entry);
        bool wanted = parsed && (!filter.master || parsed->master == filter.master) &&
                      (filter.kind.empty() || parsed->kind == filter.kind);
        return wanted ? parsed : std::nullopt;
    });
}

}  // namespace banana::netlink
