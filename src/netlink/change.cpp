#include "netlink/change.h"

#include <linux/if_bridge.h>
#include <linux/if_link.h>
#include <net/if.h>
#include <sys/socket.h>

#include "netlink/fill.h"
#include "netlink/message.h"

namespace banana::netlink {

namespace {
constexpr size_t alias_limit = 256;  // the kernel's IFALIASZ, with the final zero

std::string words(const LinkRef& which, const LinkChange& change) {
    std::string what;
    auto add = [&](const std::string& part) { what += (what.empty() ? "set " + which.text() + " " : ", ") + part; };
    if (change.mac) add("MAC " + change.mac->text());
    if (change.mtu) add("MTU " + std::to_string(*change.mtu));
    if (change.group) add("group " + std::to_string(*change.group));
    if (change.name) add("name " + *change.name);
    if (change.alias) add("alias " + printable(*change.alias));
    if (change.up) add(*change.up ? "up" : "down");
    if (change.master) add(*change.master ? "master #" + std::to_string(*change.master) : "no master");
    if (change.txqueuelen) add("txqueuelen " + std::to_string(*change.txqueuelen));
    if (change.addr_gen_mode) add("IPv6 address generation " + std::to_string(*change.addr_gen_mode));
    return what.empty() ? "set " + which.text() : what;
}

LinkChange one(auto LinkChange::*member, auto value) {
    LinkChange change;
    change.*member = value;
    return change;
}
}  // namespace

void fill_link(Message& message, const LinkRef& which, bool up, bool change_up) {
    ifinfomsg header{};
    header.ifi_family = AF_UNSPEC;
    header.ifi_index = static_cast<int>(which.index);
    header.ifi_flags = up ? IFF_UP : 0;
    header.ifi_change = change_up ? IFF_UP : 0;
    message.header(header);
    if (which.index == 0) message.device_name(IFLA_IFNAME, which.name);
}

void fill_alias(Message& message, const std::string& alias) {
    if (alias.size() >= alias_limit) return message.refuse("the alias is longer than 255 bytes");
    // The kernel takes an alias without its final zero; an empty one removes it.
    message.put(IFLA_IFALIAS, alias.data(), alias.size());
}

Request set_link(const LinkRef& which, const LinkChange& change) {
    Message message(words(which, change), RTM_SETLINK, 0);
    fill_link(message, which, change.up.value_or(false), change.up.has_value());
    if (change.name && which.index == 0) message.refuse("renaming needs the link's index");
    if (change.name) message.device_name(IFLA_IFNAME, *change.name);
    if (change.mac) message.mac(IFLA_ADDRESS, *change.mac);
    if (change.mtu) message.u32(IFLA_MTU, *change.mtu);
    if (change.group) message.u32(IFLA_GROUP, *change.group);
    if (change.alias) fill_alias(message, *change.alias);
    if (change.master) message.u32(IFLA_MASTER, *change.master);
    if (change.txqueuelen) message.u32(IFLA_TXQLEN, *change.txqueuelen);
    if (change.addr_gen_mode) {
        message.nest(IFLA_AF_SPEC, [&] {
            message.nest(AF_INET6, [&] { message.u8(IFLA_INET6_ADDR_GEN_MODE, *change.addr_gen_mode); });
        });
    }
    return std::move(message).finish();
}

Request set_up(const LinkRef& which) { return set_link(which, one(&LinkChange::up, true)); }
Request set_down(const LinkRef& which) { return set_link(which, one(&LinkChange::up, false)); }
Request set_master(const LinkRef& which, uint32_t master) { return set_link(which, one(&LinkChange::master, master)); }
Request clear_master(const LinkRef& which) { return set_link(which, one(&LinkChange::master, 0u)); }
Request set_mtu(const LinkRef& which, uint32_t mtu) { return set_link(which, one(&LinkChange::mtu, mtu)); }
Request set_txqueuelen(const LinkRef& which, uint32_t frames) {
    return set_link(which, one(&LinkChange::txqueuelen, frames));
}
Request set_alias(const LinkRef& which, const std::string& alias) {
    return set_link(which, one(&LinkChange::alias, alias));
}
Request set_mac(const LinkRef& which, const Mac& mac) { return set_link(which, one(&LinkChange::mac, mac)); }
Request rename(const LinkRef& which, const std::string& name) { return set_link(which, one(&LinkChange::name, name)); }

Request set_port(const LinkRef& port, const PortChange& change) {
    // RTM_NEWLINK without NLM_F_CREATE changes an existing link; RTM_SETLINK does not look at a port's data.
    Message message("set bridge port flags of " + port.text(), RTM_NEWLINK, 0);
    fill_link(message, port, false, false);
    auto flag = [&](int type, const std::optional<bool>& value) {
        if (value) message.u8(type, *value);
    };
    message.nest(IFLA_LINKINFO, [&] {
        message.text(IFLA_INFO_SLAVE_KIND, "bridge");
        message.nest(IFLA_INFO_SLAVE_DATA, [&] {
            flag(IFLA_BRPORT_LEARNING, change.learning);
            flag(IFLA_BRPORT_UNICAST_FLOOD, change.flood);
            flag(IFLA_BRPORT_MCAST_FLOOD, change.multicast_flood);
            flag(IFLA_BRPORT_BCAST_FLOOD, change.broadcast_flood);
            flag(IFLA_BRPORT_ISOLATED, change.isolated);
            flag(IFLA_BRPORT_MODE, change.hairpin);
        });
    });
    return std::move(message).finish();
}

Request delete_link(const LinkRef& which) {
    Message message("delete " + which.text(), RTM_DELLINK, 0);
    fill_link(message, which, false, false);
    return std::move(message).finish().accept(ENODEV);
}

Status delete_links(Socket& socket, std::span<const uint32_t> indexes) {
    if (indexes.empty()) return {};
    // Random, so that what another caller, or a run that was killed half way, has marked is not deleted with ours.
    uint32_t group = random_u32() | 0x40000000;
    auto mark = [&](uint32_t mark_group) {
        Requests marks;
        for (uint32_t index : indexes)
            marks.push_back(set_link(index, one(&LinkChange::group, mark_group)).accept(ENODEV));
        return first_failure(socket.batch(marks));
    };
    Message message("delete " + std::to_string(indexes.size()) + " links", RTM_DELLINK, 0);
    message.header(ifinfomsg{}).u32(IFLA_GROUP, group);
    Status deleted = mark(group);
    if (deleted) deleted = socket.request(std::move(message).finish().accept(ENODEV));
    if (!deleted) (void)mark(0);  // best effort: the mark itself does no harm
    return deleted;
}

namespace {
Request switch_ipv6(const std::string& name, bool on) {
    const std::string what = on ? "enable" : "disable";
    if (auto why = bad_name(name)) return Request::invalid(what + " IPv6 on " + printable(name), *why);
    return Request::sysctl("ipv6/conf/" + name + "/disable_ipv6", on ? "0" : "1", true);
}
}  // namespace

Request disable_ipv6(const std::string& name) { return switch_ipv6(name, false); }
Request enable_ipv6(const std::string& name) { return switch_ipv6(name, true); }

}  // namespace banana::netlink
