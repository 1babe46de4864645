// Addresses and routes of links, and moving them from one link to another.
//
// Concepts: Address and Route keep the kernel's own message besides the fields that are read here, so that putting one
// onto another link keeps everything: metrics, priorities, scopes, gateways (also of several next hops), protocols,
// lifetimes, source addresses. What the kernel makes by itself (connected routes, link-local addresses, local tables)
// is not listed: it follows from the rest.
// Threading: values; functions use the caller's Socket.
// Errors: see request.h; move_addresses() undoes what it did before it returns an error.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "netlink/request.h"
#include "netlink/rtsocket.h"

namespace banana::netlink {

struct Address {
    IpAddress ip = {};
    uint8_t prefix = 0;
    uint8_t scope = 0;  // RT_SCOPE_*
    uint32_t index = 0;
    std::string label = {};             // IPv4: the device's name, or "name:word"
    std::vector<uint8_t> message = {};  // RTM_NEWADDR as the kernel told it; empty: made here

    std::string text() const;  // "10.0.0.1/24"
};

struct Route {
    IpAddress destination = {};  // family 0: default
    int family = 0;
    uint8_t prefix = 0;
    uint32_t index = 0;      // of the first next hop
    IpAddress gateway = {};  // family 0: on the link itself, or several next hops
    uint32_t priority = 0;   // "metric"
    uint32_t table = 254;    // main
    std::vector<uint8_t> message = {};

    std::string text() const;  // "default via 10.0.0.254"
};

// Both families; those that the kernel makes by itself (see above) left out.
Result<std::vector<Address>> addresses(Socket& socket, uint32_t ifindex);
Result<std::vector<Route>> routes(Socket& socket, uint32_t ifindex);

// `ifindex`, `device`: the link to put it on, and its name (for labels).
Request add_address(const Address& address, uint32_t ifindex, const std::string& device = "");
Request delete_address(const Address& address, uint32_t ifindex);
Request add_route(const Route& route, uint32_t ifindex);
Request delete_route(const Route& route, uint32_t ifindex);

// Moves all addresses and routes of link `from` to link `to`, which must be up; for IPv6 addresses IPv6 is enabled
// there. Between the first and the last step lies one batch (well below a millisecond of CPU time); established
// connections survive. On an error everything is back at `from`, as far as the kernel allowed. Refused for routes by
// next-hop objects.
Status move_addresses(Socket& socket, uint32_t from, uint32_t to);

}  // namespace banana::netlink
