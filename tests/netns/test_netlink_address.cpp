// Addresses and routes move from an uplink to its bridge:
//
//   br0 (up)      eth === far (up)      other === o2 (a second way out)
//
// eth holds addresses of both families, labels, lifetimes, metrics; routes of several kinds.
#include "netlink/address.h"

#include <linux/rtnetlink.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstdio>

#include "test_netlink_world.h"

using namespace banana;
using namespace banana::netlink;

namespace {
// What ip(8) says, sorted, so that before and after can be compared.
std::string say(const std::string& command) {
    std::string text;
    FILE* pipe = ::popen((command + " 2>&1").c_str(), "r");
    REQUIRE(pipe);
    char buffer[4096];
    while (size_t size = std::fread(buffer, 1, sizeof buffer, pipe)) text.append(buffer, size);
    REQUIRE_MESSAGE(::pclose(pipe) == 0, command << ": " << text);
    return text;
}
void replace(std::string& text, const std::string& from, const std::string& to) {
    for (size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size())
        text.replace(at, from.size(), to);
}
// Routes and addresses with the device's name taken out.
std::string picture(const std::string& device) {
    // IPv6's own local routes come late, by a work queue; the rest is there at once.
    std::string text =
        say("ip -4 route show table all | sort; ip -6 route show table all | grep -v '^fe80\\|table local' | sort;"
            "ip -o addr show dev " +
            device + " scope global | sed 's/^[0-9]*: *//; s/valid_lft.*//; s/ tentative//'");
    replace(text, "expires 2999sec", "expires 3000sec");
    replace(text, "expires 2998sec", "expires 3000sec");
    replace(text, device, "DEV");
    return text;
}
void uplink(Bench& bench) {
    bench.make(set_up("lo"));
    BridgeSpec lan;
    lan.name = "br0";
    bench.make(create(lan));
    LinkOptions speaks;
    speaks.ipv6 = true;
    bench.make(create(VethSpec{"eth", "far", speaks, {}}));
    bench.make(create(VethSpec{"other", "o2", speaks, {}}));
    bench.make(set_master("o2", bench.get("br0").index));  // gives br0 a carrier
    say("set -e; ip addr add 10.1.0.1/24 dev eth brd + ; ip addr add 10.1.0.2/24 dev eth label eth:two;"
        "ip addr add 10.2.0.1 peer 10.2.0.9 dev eth; ip addr add 10.3.0.1/16 dev eth metric 77;"
        "ip addr add 10.4.0.1/24 dev eth noprefixroute scope link; ip addr add 10.9.0.1/24 dev other;"
        "ip -6 addr add fd00:1::1/64 dev eth nodad; ip -6 addr add fd00:2::1/64 dev eth nodad valid_lft 3000 "
        "preferred_lft 2000;"
        "ip route add default via 10.1.0.254 dev eth metric 100 mtu 1400 src 10.1.0.2;"
        "ip route add 172.16.0.0/12 dev eth scope link; ip route add 172.17.0.0/16 via 10.5.5.5 dev eth onlink proto "
        "99;"
        "ip route add 172.31.0.0/16 dev eth scope link; ip route add 10.77.0.0/24 via 172.31.0.1 dev eth;"  // the one
                                                                                                            // needs the
                                                                                                            // other
        "ip route add 192.168.9.0/24 dev eth table 1234; ip route add blackhole 192.168.10.0/24;"
        "ip route add 172.18.0.0/16 nexthop via 10.1.0.253 dev eth weight 2 nexthop via 10.9.0.254 dev other;"
        "ip -6 route add default via fd00:1::fe dev eth metric 50; ip -6 route add fd00:9::/64 dev eth;"
        "ip -6 route add fd00:a::/64 via fe80::1 dev eth");
}
}  // namespace

TEST_CASE("all addresses and routes move, with everything that belongs to them") {
    Bench bench;
    uplink(bench);
    uint32_t eth = bench.get("eth").index, br0 = bench.get("br0").index;
    auto held = addresses(bench.socket, eth);
    REQUIRE_MESSAGE(held.ok(), why(held));
    CHECK(held->size() == 7);
    auto ways = routes(bench.socket, eth);
    REQUIRE_MESSAGE(ways.ok(), why(ways));
    CHECK(ways->size() == 10);
    std::string before = picture("eth");
    Status moved = move_addresses(bench.socket, eth, br0);
    REQUIRE_MESSAGE(moved.ok(), why(moved));
    CHECK(addresses(bench.socket, eth)->empty());
    CHECK(routes(bench.socket, eth)->empty());
    CHECK(picture("br0") == before);
    moved = move_addresses(bench.socket, br0, eth);
    REQUIRE_MESSAGE(moved.ok(), why(moved));
    CHECK(picture("eth") == before);
}

TEST_CASE("a move that fails leaves both links as they were") {
    Bench bench;
    uplink(bench);
    uint32_t eth = bench.get("eth").index, br0 = bench.get("br0").index;
    say("ip addr add 10.3.0.1/16 dev br0");  // in the way
    std::string before = picture("eth"), target = say("ip -o addr show dev br0 scope global");
    Status moved = move_addresses(bench.socket, eth, br0);
    REQUIRE_FALSE(moved.ok());
    CHECK(moved.error().code() == Errc::exists);
    CHECK(why(moved).find("add address 10.3.0.1/16") != std::string::npos);
    CHECK(picture("eth") == before);
    CHECK(say("ip -o addr show dev br0 scope global") == target);
    CHECK(bench.get("br0").ipv6_disabled);

    bench.make(set_down("br0"));
    CHECK(move_addresses(bench.socket, eth, br0).error().code() == Errc::refused);
    CHECK(addresses(bench.socket, eth)->size() == 7);
}

TEST_CASE("addresses and routes can be made from nothing") {
    Bench bench;
    bench.make(create(VethSpec{"eth", "far", {}, {}}));
    uint32_t eth = bench.get("eth").index;
    Address address{ip("10.1.0.1"), 24, RT_SCOPE_UNIVERSE, 0, ""};
    bench.make(add_address(address, eth));
    Route route;
    route.family = AF_INET;
    route.gateway = ip("10.1.0.254");
    route.priority = 5;
    bench.make(add_route(route, eth));
    CHECK(say("ip route show default") == "default via 10.1.0.254 dev eth proto static metric 5 \n");
    CHECK(say("ip -o addr show dev eth").find("brd 10.1.0.255") != std::string::npos);
    auto listed = routes(bench.socket, eth);
    REQUIRE(listed->size() == 1);
    CHECK(listed->front().text() == "default via 10.1.0.254");
    CHECK(listed->front().priority == 5);
    bench.make(delete_route(route, eth));
    bench.make(delete_address(address, eth));
    CHECK(addresses(bench.socket, eth)->empty());
    CHECK(routes(bench.socket, eth)->empty());
}
