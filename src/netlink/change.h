// Changing and deleting links.
//
// Concepts: set_link() changes any number of properties by one message; in the kernel they take effect in the order
// MAC, MTU, group, name, alias, up or down, master, txqueuelen, address generation; one that fails leaves the earlier
// ones done. Threading: pure functions. Errors: see request.h.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "base/bytes.h"
#include "netlink/request.h"
#include "netlink/rtsocket.h"

namespace banana::netlink {

struct LinkChange {
    std::optional<bool> up = {};
    std::optional<uint32_t> mtu = {};
    std::optional<uint32_t> txqueuelen = {};
    std::optional<uint32_t> master = {};  // ifindex; 0: none
    std::optional<uint32_t> group = {};
    std::optional<Mac> mac = {};
    std::optional<std::string> alias = {};  // empty: none
    std::optional<std::string> name = {};   // an up link can be renamed since Linux 6.2
    std::optional<uint8_t> addr_gen_mode = {};
};
Request set_link(const LinkRef& which, const LinkChange& change);

Request set_up(const LinkRef& which);
Request set_down(const LinkRef& which);
Request set_master(const LinkRef& which, uint32_t master);
Request clear_master(const LinkRef& which);
Request set_mtu(const LinkRef& which, uint32_t mtu);
Request set_txqueuelen(const LinkRef& which, uint32_t frames);
Request set_alias(const LinkRef& which, const std::string& alias);
Request set_mac(const LinkRef& which, const Mac& mac);
Request rename(const LinkRef& which, const std::string& name);

// Flags of a bridge's port; unset ones stay as they are.
struct PortChange {
    std::optional<bool> learning = {}, flood = {}, multicast_flood = {}, broadcast_flood = {}, isolated = {},
                        hairpin = {};
};
Request set_port(const LinkRef& port, const PortChange& change);

// Deleting one end of a veth pair deletes both. One that is gone already counts as deleted.
Request delete_link(const LinkRef& which);
// Deletes many at once: the kernel waits for its readers once instead of once per link (0.2 ms a link instead of 17).
// All, or, if one of them cannot be deleted (hardware), none; those that are gone already do not matter. The links
// are put into a random device group for it.
Status delete_links(Socket& socket, std::span<const uint32_t> indexes);

// IPv6 off on a device, by its name: no address, no neighbour discovery, no MLD, also where the host forwards IPv6.
// A kernel without IPv6 has it off. A Request, so that it can stand between the others of a batch.
Request disable_ipv6(const std::string& name);
Request enable_ipv6(const std::string& name);  // as the host's defaults have it

}  // namespace banana::netlink
