// A monitor in a namespace where links come and go:  va === vb, br0, many vx<i>.
#include <poll.h>

#include <algorithm>

#include "netlink/address.h"
#include "netlink/ensure.h"
#include "netlink/monitor.h"
#include "test_netlink_world.h"

using namespace banana;
using namespace banana::netlink;

namespace {
std::vector<Event> events(Monitor& monitor) {
    auto read = monitor.read();
    REQUIRE_MESSAGE(read.ok(), why(read));
    return *read;
}
size_t count(const std::vector<Event>& all, Event::Kind kind, const std::string& name = "") {
    return static_cast<size_t>(std::count_if(all.begin(), all.end(), [&](const Event& event) {
        return event.kind == kind && (name.empty() || (event.link && event.link->name == name));
    }));
}
bool readable(const Monitor& monitor) {
    pollfd wait{monitor.fd(), POLLIN, 0};
    return ::poll(&wait, 1, 0) == 1;
}
}  // namespace

TEST_CASE("a monitor tells of links that come, change and go, and of nothing else") {
    Bench bench;
    auto monitor = Monitor::open({.addresses = true});
    REQUIRE_MESSAGE(monitor.ok(), why(monitor));
    CHECK(events(*monitor).empty());
    CHECK_FALSE(readable(*monitor));

    bench.make(create(VethSpec{"va", "vb", {}, {}}));
    CHECK(readable(*monitor));
    auto seen = events(*monitor);
    CHECK(count(seen, Event::Kind::link_set, "va") >= 1);
    CHECK(count(seen, Event::Kind::link_set, "vb") >= 1);
    // What comes later is of these two as well: a worker of the kernel's tells of their carrier when it gets to it.
    for (const Event& event : events(*monitor)) {
        CHECK(event.kind == Event::Kind::link_set);
        REQUIRE(event.link);
        CHECK((event.link->name == "va" || event.link->name == "vb"));
    }

    // Leaving a bridge is a change of the port, not its end, though the bridge says "deleted".
    BridgeSpec lan;
    lan.name = "br0";
    bench.make(create(lan));
    bench.make(set_master("va", bench.get("br0").index));
    bench.make(clear_master("va"));
    seen = events(*monitor);
    CHECK(count(seen, Event::Kind::link_deleted) == 0);
    CHECK(count(seen, Event::Kind::link_set, "va") >= 2);

    Address address{ip("10.0.0.1"), 24, 0, 0, ""};
    bench.make(add_address(address, bench.get("va").index));
    seen = events(*monitor);
    REQUIRE(count(seen, Event::Kind::address_set) == 1);
    for (const Event& event : seen)
        if (event.address) CHECK(event.address->text() == "10.0.0.1/24");

    bench.make(delete_link("va"));
    seen = events(*monitor);
    CHECK(count(seen, Event::Kind::link_deleted, "va") == 1);
    CHECK(count(seen, Event::Kind::link_deleted, "vb") == 1);
    CHECK(count(seen, Event::Kind::address_deleted) == 1);
}

TEST_CASE("a storm that overflows the receive buffer ends in a resync, and what follows is good") {
    Bench bench;
    auto monitor = Monitor::open({.receive_buffer = 16384});
    REQUIRE(monitor.ok());
    Requests storm;
    for (uint32_t i = 0; i < 200; ++i) {
        VxlanSpec spec;
        spec.name = "vx" + std::to_string(i);
        spec.vni = i + 1;
        spec.remote = ip("10.0.0.2");
        append(storm, create(spec));
    }
    bench.make(storm);
    auto seen = events(*monitor);
    REQUIRE(count(seen, Event::Kind::resync) == 1);
    CHECK(seen[0].kind == Event::Kind::resync);
    CHECK(seen.size() < 200);
    bench.make(set_mtu("vx7", 1400));
    seen = events(*monitor);
    CHECK(count(seen, Event::Kind::resync) == 0);
    REQUIRE(count(seen, Event::Kind::link_set, "vx7") >= 1);
    CHECK(seen.back().link->mtu == 1400);
}

TEST_CASE("ensure makes, then changes nothing, then repairs") {
    Bench bench;
    BridgeSpec lan;
    lan.name = "br0";
    lan.options.mtu = 9000;
    auto br0 = ensure(bench.socket, lan);
    REQUIRE_MESSAGE(br0.ok(), why(br0));
    VethSpec cable{"va", "vb", {}, {}};
    cable.options.master = br0->index;
    cable.options.mtu = cable.peer_options.mtu = 9000;
    cable.options.alias = "port";
    cable.peer_options.alias = "peer";
    VxlanSpec wire;
    wire.name = "vx";
    wire.vni = 7;
    wire.remote = ip("10.0.0.2");
    wire.options.alias = "wire";
    TapSpec tap{.name = "tap0"};
    LinkOptions tap_options;
    tap_options.txqueuelen = 10000;
    auto all = [&] {
        CHECK(why(ensure(bench.socket, lan)) == "");
        CHECK(why(ensure(bench.socket, cable)) == "");
        CHECK(why(ensure(bench.socket, wire)) == "");
        CHECK(why(ensure(bench.socket, tap, tap_options)) == "");
        MacvtapSpec spec;
        spec.name = "mt";
        spec.lower = bench.get("vb").index;
        CHECK(why(ensure(bench.socket, spec)) == "");
    };
    all();
    // Nothing is left to do, and doing it makes no other links. (Events would not tell: carriers follow late.)
    auto indexes = [&] {
        std::vector<uint32_t> found;
        auto all_links = links(bench.socket);
        REQUIRE(all_links.ok());
        for (const Link& link : *all_links) found.push_back(link.index);
        return found;
    };
    auto before = indexes();
    CHECK(before.size() == 7);  // and lo
    all();
    CHECK(indexes() == before);
    CHECK(corrections(bench.get("va"), cable.options).empty());
    CHECK(corrections(bench.get("vb"), cable.peer_options).empty());
    CHECK(corrections(bench.get("br0"), lan.options).empty());
    CHECK(corrections(bench.get("vx"), wire.options).empty());
    CHECK(corrections(bench.get("tap0"), tap_options).empty());

    bench.make(set_mtu("vb", 1300));
    bench.make(set_alias("vx", "x"));
    bench.make(clear_master("va"));
    bench.make(set_txqueuelen("tap0", 5));
    bench.make(Request::sysctl("ipv6/conf/vx/disable_ipv6", "0", false));
    all();
    CHECK(bench.get("vb").mtu == 9000);
    CHECK(bench.get("vx").alias == "wire");
    CHECK(bench.get("vx").ipv6_disabled);
    CHECK(bench.get("va").master == br0->index);
    CHECK(bench.get("tap0").txqueuelen == 10000);
}

TEST_CASE("ensure leaves another's link alone and says what is different") {
    Bench bench;
    VxlanSpec wire;
    wire.name = "vx";
    wire.vni = 7;
    wire.remote = ip("10.0.0.2");
    VethSpec cable{"va", "vb", {}, {}};
    REQUIRE(ensure(bench.socket, wire).ok());
    REQUIRE(ensure(bench.socket, cable).ok());
    VxlanSpec other = wire;
    other.vni = 8;
    auto refused = ensure(bench.socket, other);
    REQUIRE_FALSE(refused.ok());
    CHECK(refused.error().code() == Errc::exists);
    CHECK(refused.error().message() == "use the existing link vx: its VNI is 7, not 8");
    other.name = "vy";
    other.vni = 7;
    CHECK(why(ensure(bench.socket, other)).find("specified VNI already exists") != std::string::npos);
    BridgeSpec lan;
    lan.name = "va";
    CHECK(why(ensure(bench.socket, lan)) == "use the existing link va: its kind is veth, not bridge");
    cable.peer = "lo";
    CHECK(why(ensure(bench.socket, cable)) == "use the existing link va: its peer is not lo");
}

TEST_CASE("ensure leaves nothing of a link whose later steps fail") {
    Bench bench;
    VethSpec cable{"va", "vb", {}, {}};
    cable.peer_options.master = 4711;  // set after the creation
    CHECK_FALSE(ensure(bench.socket, cable).ok());
    CHECK_FALSE(bench.has("va"));
    CHECK_FALSE(bench.has("vb"));
}
