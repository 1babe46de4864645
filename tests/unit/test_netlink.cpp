#include <doctest/doctest.h>
#include <linux/if_link.h>
#include <net/if.h>
#include <netlink/attr.h>
#include <netlink/msg.h>

#include <cstring>
#include <random>
#include <vector>

#include "netlink/change.h"
#include "netlink/create.h"
#include "netlink/ensure.h"
#include "netlink/link.h"

using namespace banana;
using namespace banana::netlink;

namespace {
struct Built {
    MessageOwner owner{nlmsg_alloc_size(4096)};
    nl_msg* message = owner.get();
    nlmsghdr& header() const { return *nlmsg_hdr(message); }
};

// An RTM_NEWLINK as the kernel would send it for a VXLAN that is a bridge's port.
Built vxlan_message() {
    Built built;
    nlmsg_put(built.message, 0, 1, RTM_NEWLINK, 0, 0);
    ifinfomsg info{};
    info.ifi_index = 12;
    info.ifi_flags = IFF_UP | IFF_RUNNING | 1 << 16;
    nlmsg_append(built.message, &info, sizeof info, NLMSG_ALIGNTO);
    nla_put_string(built.message, IFLA_IFNAME, "bnx0000002a");
    nla_put_string(built.message, IFLA_IFALIAS, "wire hv1/vm1/net0");
    nla_put_u32(built.message, IFLA_MTU, 1500);
    nla_put_u32(built.message, IFLA_MASTER, 3);
    rtnl_link_stats64 stats{};
    stats.rx_packets = 5;
    stats.tx_bytes = 1ull << 40;
    nla_put(built.message, IFLA_STATS64, sizeof stats, &stats);
    nlattr* outer = nla_nest_start(built.message, IFLA_LINKINFO);
    nla_put_string(built.message, IFLA_INFO_KIND, "vxlan");
    nlattr* data = nla_nest_start(built.message, IFLA_INFO_DATA);
    nla_put_u32(built.message, IFLA_VXLAN_ID, 42);
    uint8_t remote[4] = {10, 0, 0, 2};
    nla_put(built.message, IFLA_VXLAN_GROUP, 4, remote);
    nla_put_u16(built.message, IFLA_VXLAN_PORT, htons(4789));
    nla_nest_end(built.message, data);
    nla_put_string(built.message, IFLA_INFO_SLAVE_KIND, "bridge");
    nlattr* port = nla_nest_start(built.message, IFLA_INFO_SLAVE_DATA);
    nla_put_u8(built.message, IFLA_BRPORT_ISOLATED, 1);
    nla_put_u8(built.message, IFLA_BRPORT_LEARNING, 0);
    nla_nest_end(built.message, port);
    nla_nest_end(built.message, outer);
    return built;
}
}  // namespace

TEST_CASE("netlink: device names") {
    for (const char* good : {"a", "bnx0000002a", "eth0.1", "fifteen-bytes-x"}) CHECK_FALSE(bad_name(good));
    for (const char* bad : {"", ".", "..", "sixteen-bytes-xx", "a b", "a/b", "a:b", "a\n", "tap%d"})
        CHECK(bad_name(bad));
    CHECK(LinkRef("va").text() == "va");
    CHECK(LinkRef(12u).text() == "#12");
}

TEST_CASE("netlink: requests say what they do") {
    LinkChange change;
    change.up = true;
    change.mtu = 1400;
    change.master = 0;
    CHECK(set_link(7u, change).what() == "set #7 MTU 1400, up, no master");
    CHECK(set_down("va").what() == "set va down");
    CHECK(delete_link("va").what() == "delete va");
    VxlanSpec wire;
    wire.name = "bnx0000002a";
    wire.vni = 42;
    wire.remote = *IpAddress::parse("10.0.0.2");
    wire.options.alias = "hv1/vm1/net0";
    Requests steps = create(wire);
    REQUIRE(steps.size() == 3);
    CHECK(steps[0].what() == "create vxlan bnx0000002a (VNI 42)");
    CHECK(steps[1].what() == "set net/ipv6/conf/bnx0000002a/disable_ipv6 to 1");
    CHECK(steps[2].what() == "set bnx0000002a alias hv1/vm1/net0, up");
    wire.options.ipv6 = true;
    wire.options.up = false;
    wire.options.alias.clear();
    CHECK(create(wire).size() == 1);
}

TEST_CASE("netlink: a link's message is read whole") {
    Built built = vxlan_message();
    auto link = parse_link(built.header());
    REQUIRE(link);
    CHECK(link->index == 12);
    CHECK(link->name == "bnx0000002a");
    CHECK(link->alias == "wire hv1/vm1/net0");
    CHECK(link->kind == "vxlan");
    CHECK(link->mtu == 1500);
    CHECK(link->master == 3);
    CHECK(link->up);
    CHECK(link->carrier);
    CHECK(link->stats.rx_packets == 5);
    CHECK(link->stats.tx_bytes == 1ull << 40);
    REQUIRE(link->vxlan);
    CHECK(link->vxlan->vni == 42);
    CHECK(link->vxlan->remote.text() == "10.0.0.2");
    CHECK(link->vxlan->local.family == 0);
    CHECK(link->vxlan->port == 4789);
    REQUIRE(link->port);
    CHECK(link->port->isolated);
    CHECK_FALSE(link->port->learning);
    CHECK(link->port->flood);
}

TEST_CASE("netlink: other messages are no links, and damaged ones do no harm") {
    Built built = vxlan_message();
    nlmsghdr& header = built.header();
    header.nlmsg_type = RTM_NEWADDR;
    CHECK_FALSE(parse_link(header));
    header.nlmsg_type = RTM_NEWLINK;
    static_cast<ifinfomsg*>(NLMSG_DATA(&header))->ifi_family = AF_BRIDGE;
    CHECK_FALSE(parse_link(header));
    static_cast<ifinfomsg*>(NLMSG_DATA(&header))->ifi_family = AF_UNSPEC;

    // Cut anywhere, and with random bytes: the sanitizers watch. Each copy has exactly its size.
    for (uint32_t size = NLMSG_HDRLEN; size < header.nlmsg_len; ++size) {
        std::vector<uint8_t> cut(size);
        std::memcpy(cut.data(), &header, size);
        reinterpret_cast<nlmsghdr*>(cut.data())->nlmsg_len = size;
        if (auto link = parse_link(*reinterpret_cast<nlmsghdr*>(cut.data()))) CHECK(link->name == "bnx0000002a");
    }
    std::mt19937 random(1);
    for (int i = 0; i < 20000; ++i) {
        std::vector<uint8_t> noisy(header.nlmsg_len);
        std::memcpy(noisy.data(), &header, header.nlmsg_len);
        for (int n = 0; n < 3; ++n) noisy[NLMSG_HDRLEN + random() % (noisy.size() - NLMSG_HDRLEN)] = random() & 0xff;
        (void)parse_link(*reinterpret_cast<nlmsghdr*>(noisy.data()));
    }
}

TEST_CASE("netlink: what cannot be changed is named, what can is corrected") {
    VxlanSpec spec;
    spec.name = "vx";
    spec.vni = 7;
    spec.local = *IpAddress::parse("10.0.0.1");
    spec.remote = *IpAddress::parse("10.0.0.2");
    Link link;
    link.name = "vx";
    link.index = 5;
    link.kind = "vxlan";
    link.vxlan = VxlanInfo{7, spec.local, spec.remote, 4789, 0, 64, false, false, false, false};
    CHECK_FALSE(difference(link, spec));
    auto with = [&](auto change) {
        Link other = link;
        change(other);
        return difference(other, spec).value_or("nothing");
    };
    CHECK(with([](Link& l) { l.kind = ""; }) == "its kind is hardware, not vxlan");
    CHECK(with([](Link& l) { l.vxlan->vni = 8; }) == "its VNI is 8, not 7");
    CHECK(with([](Link& l) { l.vxlan->remote = {}; }) == "its remote address is none, not 10.0.0.2");
    CHECK(with([](Link& l) { l.vxlan->local = {}; }) == "its local address is none, not 10.0.0.1");
    CHECK(with([](Link& l) { l.vxlan->port = 1; }) == "its UDP port is 1, not 4789");
    CHECK(with([](Link& l) { l.vxlan->lower = 9; }) == "its lower device is #9, not #0");
    CHECK(with([](Link& l) { l.vxlan->learning = true; }) == "its learning is on, not off");

    LinkOptions wanted;
    wanted.alias = "a";
    wanted.mtu = 1400;
    link.mtu = 1500;
    Requests steps = corrections(link, wanted);
    REQUIRE(steps.size() == 2);
    CHECK(steps[0].what().find("disable_ipv6") != std::string::npos);
    CHECK(steps[1].what() == "set #5 MTU 1400, alias a, up");
    link.mtu = 1400;
    link.alias = "a";
    link.up = link.ipv6_disabled = true;
    CHECK(corrections(link, wanted).empty());
    wanted.up = false;  // says nothing against a link that is up
    CHECK(corrections(link, wanted).empty());
}
