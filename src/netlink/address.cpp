// How a move works: the routes and addresses are read from `from`, taken away there (gateway routes first, addresses in
// reverse, secondary before primary), and given to `to` (addresses in their order, then routes that need no gateway,
// then the others). Messages are the kernel's own with only the link replaced, by which nothing needs to be understood
// here in order to be kept.
#include "netlink/address.h"

#include <linux/if_addr.h>
#include <linux/rtnetlink.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <initializer_list>

#include "netlink/change.h"
#include "netlink/link.h"
#include "netlink/message.h"
#include "netlink/parse.h"

namespace banana::netlink {

namespace {
constexpr uint8_t proto_kernel_link_local = 3;  // IFAPROT_KERNEL_LL; attribute 11 since Linux 5.18
constexpr int ifa_proto = 11;
constexpr int ifa_max = 11;

std::vector<uint8_t> bytes_of(const nlmsghdr& header) {
    const auto* first = reinterpret_cast<const uint8_t*>(&header);
    return {first, first + header.nlmsg_len};
}
const nlmsghdr& header_of(const std::vector<uint8_t>& bytes) {
    return *reinterpret_cast<const nlmsghdr*>(bytes.data());  // the allocator aligns it
}

std::optional<Route> parse_route(const nlmsghdr& header) {
    if (header.nlmsg_type != RTM_NEWROUTE || header.nlmsg_len < NLMSG_LENGTH(sizeof(rtmsg))) return std::nullopt;
    const auto& info = *static_cast<const rtmsg*>(NLMSG_DATA(&header));
    Attributes<RTA_MAX> in(header, sizeof(rtmsg));
    if (!in.ok()) return std::nullopt;
    Route route;
    route.family = info.rtm_family;
    route.prefix = info.rtm_dst_len;
    route.destination = in.address(RTA_DST);
    route.gateway = in.address(RTA_GATEWAY);
    route.priority = in.get<uint32_t>(RTA_PRIORITY);
    route.table = in.get<uint32_t>(RTA_TABLE, info.rtm_table);
    route.index = in.get<uint32_t>(RTA_OIF);
    if (nlattr* hops = in.at(RTA_MULTIPATH); hops && nla_len(hops) >= static_cast<int>(sizeof(rtnexthop)))
        route.index = static_cast<uint32_t>(static_cast<const rtnexthop*>(nla_data(hops))->rtnh_ifindex);
    route.message = bytes_of(header);
    bool by_kernel = info.rtm_protocol == RTPROT_KERNEL || route.table == RT_TABLE_LOCAL;
    bool cached = info.rtm_flags & RTM_F_CLONED;
    if (by_kernel || cached) return std::nullopt;
    return route;
}

// A link-local address of IPv6 that the kernel chose: the new link has its own.
bool made_by_kernel(const Address& address) {
    return Attributes<ifa_max>(header_of(address.message), sizeof(ifaddrmsg)).get<uint8_t>(ifa_proto) ==
           proto_kernel_link_local;
}

// Of RTA_MULTIPATH. (RTNH_OK alone reads the length of a hop that is not there.)
void for_each_hop(void* data, int size, auto visit) {
    auto* hop = static_cast<rtnexthop*>(data);
    int left = size;
    while (left >= static_cast<int>(sizeof *hop) && RTNH_OK(hop, left)) {
        visit(*hop);
        left -= RTNH_ALIGN(hop->rtnh_len);
        hop = RTNH_NEXT(hop);
    }
}

// Does one of the next hops leave by `ifindex`?
bool leaves_by(const Route& route, uint32_t ifindex) {
    Attributes<RTA_MAX> in(header_of(route.message), sizeof(rtmsg));
    nlattr* hops = in.at(RTA_MULTIPATH);
    if (!hops) return route.index == ifindex;
    bool found = false;
    for_each_hop(nla_data(hops), nla_len(hops),
                 [&](rtnexthop& hop) { found |= static_cast<uint32_t>(hop.rtnh_ifindex) == ifindex; });
    return found;
}

bool needs_gateway(const Route& route) {
    Attributes<RTA_MAX> in(header_of(route.message), sizeof(rtmsg));
    return in.has(RTA_GATEWAY) || in.has(RTA_VIA) || in.has(RTA_MULTIPATH);
}

// Replaces `from` by `to` in a copy of RTA_MULTIPATH; other links' hops stay.
std::vector<uint8_t> hops_moved(nlattr* hops, uint32_t from, uint32_t to) {
    auto* data = static_cast<uint8_t*>(nla_data(hops));
    std::vector<uint8_t> copy(data, data + nla_len(hops));
    for_each_hop(copy.data(), nla_len(hops), [&](rtnexthop& hop) {
        if (static_cast<uint32_t>(hop.rtnh_ifindex) == from) hop.rtnh_ifindex = static_cast<int>(to);
        hop.rtnh_flags &= RTNH_F_ONLINK;  // the rest is state that the kernel reports
    });
    return copy;
}

Message address_message(const Address& address, uint32_t ifindex, bool add) {
    std::string what = (add ? "add address " : "delete address ") + address.text() + (add ? " to #" : " of #");
    Message message(what + std::to_string(ifindex), add ? RTM_NEWADDR : RTM_DELADDR,
                    add ? NLM_F_CREATE | NLM_F_EXCL : 0);
    ifaddrmsg info{};
    if (!address.message.empty()) info = *static_cast<const ifaddrmsg*>(NLMSG_DATA(&header_of(address.message)));
    info.ifa_family = static_cast<uint8_t>(address.ip.family);
    info.ifa_prefixlen = address.prefix;
    info.ifa_scope = address.scope;
    info.ifa_flags = 0;  // IFA_FLAGS, of 32 bits, says it
    info.ifa_index = ifindex;
    message.header(info);
    return message;
}

Request route_message(const Route& route, uint32_t ifindex, bool add) {
    std::string what = (add ? "add route " : "delete route ") + route.text() + (add ? " to #" : " of #");
    Message message(what + std::to_string(ifindex), add ? RTM_NEWROUTE : RTM_DELROUTE,
                    add ? NLM_F_CREATE | NLM_F_EXCL : 0, 4096);
    rtmsg info{};
    if (route.message.empty()) {
        info.rtm_family = static_cast<uint8_t>(route.family);
        info.rtm_dst_len = route.prefix;
        info.rtm_table = RT_TABLE_UNSPEC;
        info.rtm_type = RTN_UNICAST;
        info.rtm_scope = RT_SCOPE_NOWHERE;  // deleting: any scope, and any protocol
        if (add) {
            info.rtm_protocol = RTPROT_STATIC;
            info.rtm_scope = route.gateway.family || route.family == AF_INET6 ? RT_SCOPE_UNIVERSE : RT_SCOPE_LINK;
        }
        message.header(info);
        if (route.destination.family) message.address(RTA_DST, route.destination);
        if (route.gateway.family) message.address(RTA_GATEWAY, route.gateway);
        if (route.priority) message.u32(RTA_PRIORITY, route.priority);
        message.u32(RTA_TABLE, route.table).u32(RTA_OIF, ifindex);
        return std::move(message).finish();
    }
    const nlmsghdr& told = header_of(route.message);
    info = *static_cast<const rtmsg*>(NLMSG_DATA(&told));
    info.rtm_flags &= RTNH_F_ONLINK;
    message.header(info);
    Attributes<RTA_MAX> in(told, sizeof(rtmsg));
    for (int type = 1; type <= RTA_MAX; ++type) {
        nlattr* attribute = in.at(type);
        if (!attribute || type == RTA_CACHEINFO || type == RTA_IIF) continue;
        if (type == RTA_NH_ID) {
            message.refuse("it uses a next-hop object");
        } else if (type == RTA_OIF) {
            message.u32(RTA_OIF, ifindex);
        } else if (type == RTA_MULTIPATH) {
            auto hops = hops_moved(attribute, route.index, ifindex);
            message.put(type, hops.data(), hops.size());
        } else {
            message.put(type, nla_data(attribute), static_cast<size_t>(nla_len(attribute)));
        }
    }
    return std::move(message).finish();
}
}  // namespace

std::optional<Address> parse_address(const nlmsghdr& header) {
    if ((header.nlmsg_type != RTM_NEWADDR && header.nlmsg_type != RTM_DELADDR) ||
        header.nlmsg_len < NLMSG_LENGTH(sizeof(ifaddrmsg)))
        return std::nullopt;
    const auto& info = *static_cast<const ifaddrmsg*>(NLMSG_DATA(&header));
    Attributes<ifa_max> in(header, sizeof(ifaddrmsg));
    if (!in.ok()) return std::nullopt;
    Address address;
    address.ip = in.address(in.has(IFA_LOCAL) ? IFA_LOCAL : IFA_ADDRESS);
    address.prefix = info.ifa_prefixlen;
    address.scope = info.ifa_scope;
    address.index = info.ifa_index;
    address.label = in.text(IFA_LABEL);
    address.message = bytes_of(header);
    return address.ip.family ? std::optional(std::move(address)) : std::nullopt;
}

std::string Address::text() const { return ip.text() + "/" + std::to_string(prefix); }

std::string Route::text() const {
    std::string text = destination.family ? destination.text() + "/" + std::to_string(prefix) : "default";
    return gateway.family ? text + " via " + gateway.text() : text;
}

Result<std::vector<Address>> addresses(Socket& socket, uint32_t ifindex) {
    Message message("list addresses of #" + std::to_string(ifindex), RTM_GETADDR, NLM_F_DUMP);
    ifaddrmsg info{};
    info.ifa_index = ifindex;
    message.header(info);
    return dump_all<Address>(socket, std::move(message).finish(), [&](const nlmsghdr& entry) {
        auto address = parse_address(entry);
        return address && address->index == ifindex && !made_by_kernel(*address) ? address : std::nullopt;
    });
}

Result<std::vector<Route>> routes(Socket& socket, uint32_t ifindex) {
    std::vector<Route> all;
    for (int family : {AF_INET, AF_INET6}) {
        // No RTA_OIF in the request: the kernel would leave out routes that have this link as a later next hop.
        Message message("list routes", RTM_GETROUTE, NLM_F_DUMP);
        rtmsg info{};
        info.rtm_family = static_cast<uint8_t>(family);
        message.header(info);
        auto found = dump_all<Route>(socket, std::move(message).finish(), [&](const nlmsghdr& entry) {
            auto route = parse_route(entry);
            if (route && leaves_by(*route, ifindex)) route->index = ifindex;
            return route && route->index == ifindex && route->family == family ? route : std::nullopt;
        });
        if (!found && found.error().code() == Errc::unsupported) continue;  // no IPv6
        if (!found) return found.error();
        all.insert(all.end(), found->begin(), found->end());
    }
    return all;
}

Request add_address(const Address& address, uint32_t ifindex, const std::string& device) {
    Message message = address_message(address, ifindex, true);
    bool v4 = address.ip.family == AF_INET;
    if (address.message.empty()) {
        message.address(IFA_LOCAL, address.ip).address(IFA_ADDRESS, address.ip);
        message.u32(IFA_FLAGS, v4 ? 0 : IFA_F_NODAD);
        if (v4 && address.prefix < 31) {
            IpAddress broadcast = address.ip;
            for (int bit = address.prefix; bit < 32; ++bit)
                broadcast.bytes[static_cast<size_t>(bit / 8)] |= static_cast<uint8_t>(0x80 >> bit % 8);
            message.address(IFA_BROADCAST, broadcast);
        }
        return std::move(message).finish();
    }
    Attributes<ifa_max> in(header_of(address.message), sizeof(ifaddrmsg));
    for (int type : std::initializer_list<int>{IFA_LOCAL, IFA_ADDRESS, IFA_BROADCAST, IFA_ANYCAST, IFA_CACHEINFO,
                                               IFA_RT_PRIORITY, ifa_proto}) {
        if (nlattr* attribute = in.at(type))
            message.put(type, nla_data(attribute), static_cast<size_t>(nla_len(attribute)));
    }
    // States are the kernel's to find. An address that was good on the old link need not be probed again.
    uint32_t flags = in.get<uint32_t>(IFA_FLAGS);
    bool failed = flags & (IFA_F_DADFAILED | IFA_F_TENTATIVE);
    flags &= ~static_cast<uint32_t>(IFA_F_SECONDARY | IFA_F_TENTATIVE | IFA_F_DADFAILED | IFA_F_DEPRECATED |
                                    IFA_F_PERMANENT | IFA_F_OPTIMISTIC);
    message.u32(IFA_FLAGS, v4 || failed ? flags : flags | IFA_F_NODAD);
    // A label has to begin with its device's name.
    size_t colon = address.label.find(':');
    if (v4 && !device.empty())
        message.text(IFA_LABEL, colon == std::string::npos ? device : device + address.label.substr(colon));
    return std::move(message).finish();
}

Request delete_address(const Address& address, uint32_t ifindex) {
    Message message = address_message(address, ifindex, false);
    message.address(IFA_LOCAL, address.ip);
    if (!address.message.empty()) {
        // A point-to-point address is told from others by its peer.
        IpAddress peer = Attributes<ifa_max>(header_of(address.message), sizeof(ifaddrmsg)).address(IFA_ADDRESS);
        if (peer.family) message.address(IFA_ADDRESS, peer);
    }
    // Gone already, with its primary.
    return std::move(message).finish().accept(EADDRNOTAVAIL);
}

Request add_route(const Route& route, uint32_t ifindex) { return route_message(route, ifindex, true); }

Request delete_route(const Route& route, uint32_t ifindex) {
    return route_message(route, ifindex, false).accept(ESRCH).accept(ENODEV);
}

namespace {
// One thing to move: how to take it from the old link, give it to the new one, and undo both.
struct Move {
    Requests take;
    Request give;
    Requests take_back;
    Request give_back;
};

// An IPv6 address with a lifetime leaves its connected route behind until that is over: it goes as well.
Requests without(const Address& address, uint32_t ifindex) {
    Requests steps;
    steps.push_back(delete_address(address, ifindex));
    bool permanent =
        Attributes<ifa_max>(header_of(address.message), sizeof(ifaddrmsg)).get<uint32_t>(IFA_FLAGS) & IFA_F_PERMANENT;
    if (address.ip.family != AF_INET6 || permanent || address.prefix == 0) return steps;
    Route connected;
    connected.family = AF_INET6;
    connected.destination = address.ip;
    connected.prefix = address.prefix;
    for (int bit = address.prefix; bit < 128; ++bit)
        connected.destination.bytes[static_cast<size_t>(bit / 8)] &= static_cast<uint8_t>(~(0x80 >> bit % 8));
    steps.push_back(delete_route(connected, ifindex));
    return steps;
}

Requests without(const Route& route, uint32_t ifindex) {
    Requests steps;
    steps.push_back(delete_route(route, ifindex));
    return steps;
}

std::vector<Move> moves(std::vector<Address> held, std::vector<Route> ways, const Link& from, const Link& to) {
    // The kernel lists IPv4 addresses in the order in which they came, IPv6 addresses in the reverse.
    auto first_v6 = std::stable_partition(held.begin(), held.end(),
                                          [](const Address& address) { return address.ip.family == AF_INET; });
    std::reverse(first_v6, held.end());
    std::stable_partition(ways.begin(), ways.end(), [](const Route& route) { return !needs_gateway(route); });
    std::vector<Move> all;
    for (const Address& address : held)
        all.push_back({without(address, from.index), add_address(address, to.index, to.name),
                       without(address, to.index), add_address(address, from.index, from.name)});
    for (const Route& route : ways)
        all.push_back({without(route, from.index), add_route(route, to.index), without(route, to.index),
                       add_route(route, from.index)});
    return all;
}

// What did come to the new link goes; what was there before stays. Then all returns to the old one.
Status undo_moves(Socket& socket, std::vector<Move> all, std::span<const Status> given) {
    Requests undo;
    for (size_t i = all.size(); i-- > 0;)
        if (given[i]) append(undo, std::move(all[i].take_back));
    for (Move& move : all) undo.push_back(std::move(move.give_back).accept(EEXIST));
    return first_failure(socket.batch(undo));
}
}  // namespace

Status move_addresses(Socket& socket, uint32_t from, uint32_t to) {
    std::string what = "move addresses from #" + std::to_string(from) + " to #" + std::to_string(to);
    TRY_SET(Link source, link(socket, from));
    TRY_SET(Link target, link(socket, to));
    if (!target.up) return Error(Errc::refused, what + ": " + target.name + " is down");
    TRY_SET(std::vector<Address> held, addresses(socket, from));
    TRY_SET(std::vector<Route> ways, routes(socket, from));
    // A bridge of ours is made without IPv6. With such addresses it is the host's own device, as their link was.
    const bool wakes = target.ipv6_disabled && std::any_of(held.begin(), held.end(), [](const Address& address) {
                           return address.ip.family == AF_INET6;
                       });
    std::vector<Move> all = moves(std::move(held), std::move(ways), source, target);

    // Taken in reverse: gateway routes first, the primary address last. Given in order.
    Requests steps;
    if (wakes) steps.push_back(enable_ipv6(target.name));
    for (auto move = all.rbegin(); move != all.rend(); ++move) append(steps, std::move(move->take));
    size_t first_given = steps.size();
    for (Move& move : all) steps.push_back(std::move(move.give));
    std::vector<Status> results = socket.batch(steps);
    Status moved = first_failure(results);
    if (moved) return {};
    Status undone = undo_moves(socket, std::move(all), std::span(results).subspan(first_given));
    if (wakes && undone) undone = socket.request(disable_ipv6(target.name));
    if (undone) return moved.context(what);
    return Error(moved.error().code(),
                 what + ": " + moved.error().message() + "; and not all could be undone: " + undone.error().message());
}

}  // namespace banana::netlink
