// Links of every kind, made, read back, changed and deleted in one namespace:
//
//   br0 --- va === vb      vx (VXLAN, routed)      tap0      vb --- mt (macvtap)
#include "netlink/fdb.h"
#include "test_netlink_world.h"

using namespace banana;
using namespace banana::netlink;

namespace {
VethSpec pair(const std::string& name, const std::string& peer) {
    VethSpec spec;
    spec.name = name;
    spec.peer = peer;
    return spec;
}
VxlanSpec wire(const std::string& name, uint32_t vni) {
    VxlanSpec spec;
    spec.name = name;
    spec.vni = vni;
    spec.local = ip("10.0.0.1");
    spec.remote = ip("10.0.0.2");
    return spec;
}
BridgeSpec bridge(const std::string& name, uint32_t mtu) {
    BridgeSpec spec;
    spec.name = name;
    spec.options.mtu = mtu;
    return spec;
}
}  // namespace

TEST_CASE("a veth pair and a bridge are what their specs say") {
    Bench bench;
    BridgeSpec lan = bridge("br0", 9000);
    lan.options.mac = mac("52:54:00:00:00:01");
    lan.options.alias = "hv1/lab";
    bench.make(create(lan));
    Link br0 = bench.get("br0");
    CHECK(br0.kind == "bridge");
    CHECK(br0.mac == *lan.options.mac);
    CHECK(br0.bridge == BridgeInfo{false, false, false, 0, 30000});
    CHECK(br0.up);

    VethSpec spec = pair("va", "vb");
    spec.options = {"hv1/lab/port", mac("52:54:00:00:00:02"), 9000, 10000, br0.index, true, false};
    spec.peer_options = {"hv1/vm1/net0", mac("52:54:00:00:00:03"), 8000, 500, 0, false, true};
    bench.make(create(spec));
    Link va = bench.get("va"), vb = bench.get("vb");
    CHECK(va.kind == "veth");
    CHECK(va.alias == "hv1/lab/port");
    CHECK(va.mac == *spec.options.mac);
    CHECK(va.mtu == 9000);
    CHECK(va.txqueuelen == 10000);
    CHECK(va.master == br0.index);
    CHECK(va.is_bridge_port());
    CHECK(va.peer == vb.index);
    CHECK(va.up);
    CHECK_FALSE(va.carrier);
    CHECK(va.ipv6_disabled);
    CHECK(vb.alias == "hv1/vm1/net0");
    CHECK(vb.mac == *spec.peer_options.mac);
    CHECK(vb.mtu == 8000);
    CHECK(vb.txqueuelen == 500);
    CHECK(vb.peer == va.index);
    CHECK_FALSE(vb.up);
    CHECK_FALSE(vb.ipv6_disabled);
    bench.make(set_up("vb"));
    CHECK(bench.get(va.index).carrier);
}

TEST_CASE("a VXLAN of either family") {
    Bench bench;
    VxlanSpec spec = wire("vx", 0x2a);
    spec.options.mtu = 9000;  // more than any device here has
    spec.options.alias = "wire";
    bench.make(create(spec));
    Link vx = bench.get("vx");
    CHECK(vx.kind == "vxlan");
    CHECK(vx.mtu == 9000);
    CHECK(vx.alias == "wire");
    CHECK(vx.ipv6_disabled);
    CHECK(vx.up);
    CHECK(vx.vxlan == VxlanInfo{0x2a, ip("10.0.0.1"), ip("10.0.0.2"), 4789, 0, 64, false, false, false, false});

    spec = wire("vx6", 0x2b);
    spec.local = ip("fd00::1");
    spec.remote = ip("fd00::2");
    spec.port = 5000;
    spec.learning = true;
    bench.make(create(spec));
    CHECK(bench.get("vx6").vxlan == VxlanInfo{0x2b, ip("fd00::1"), ip("fd00::2"), 5000, 0, 64, true, true, true, true});
}

TEST_CASE("errors say operation, object and cause, in the kernel's words where it has some") {
    Bench bench;
    bench.make(create(wire("vx1", 7)));
    Status again = bench.socket.request(create(wire("vx1", 8))[0]);
    REQUIRE_FALSE(again.ok());
    CHECK(again.error().code() == Errc::exists);
    CHECK(again.error().message() == "create vxlan vx1 (VNI 8): File exists");
    Status taken = bench.socket.request(create(wire("vx2", 7))[0]);
    REQUIRE_FALSE(taken.ok());
    CHECK(taken.error().code() == Errc::exists);
    CHECK(taken.error().message() ==
          "create vxlan vx2 (VNI 7): File exists (A VXLAN device with the specified VNI already exists)");
    auto missing = link(bench.socket, "nosuch");
    REQUIRE_FALSE(missing.ok());
    CHECK(missing.error().code() == Errc::not_found);
    CHECK(missing.error().message() == "look up link nosuch: No such device");
    for (const Requests& bad : {create(wire("a-name-of-18-bytes", 1)), create(wire("vx", 0)),
                                create(wire("vx", 1 << 24)), create(pair("va", "v/b")), create(bridge("br", 68))}) {
        Status refused = bench.socket.request(bad[0]);
        REQUIRE_FALSE(refused.ok());
        CHECK(refused.error().code() == Errc::invalid);
    }
    CHECK(links(bench.socket)->size() == 2);  // lo, vx1
}

TEST_CASE("a batch matches each answer to its request and goes on; a sequence stops") {
    Bench bench;
    Requests steps;
    constexpr uint32_t many = 700;  // more than one send
    for (uint32_t i = 0; i < many; ++i) {
        VxlanSpec spec = wire("vx" + std::to_string(i), i % 100 == 99 ? 1 : i + 1);  // every hundredth VNI is taken
        spec.options.up = false;
        spec.options.ipv6 = i % 2;  // with and without a sysctl in between
        append(steps, create(spec));
    }
    std::vector<Status> results = bench.socket.batch(steps);
    REQUIRE(results.size() == steps.size());
    size_t failed = 0;
    for (size_t i = 0; i < results.size(); ++i) {
        if (results[i]) continue;
        ++failed;
        CHECK(results[i].error().message().starts_with(steps[i].what() + ": "));
        CHECK(steps[i].what().ends_with("99 (VNI 1)"));
    }
    CHECK(failed == 7);
    CHECK_FALSE(first_failure(results).ok());
    CHECK(links(bench.socket, {.kind = "vxlan"})->size() == many - 7);

    Requests chain;
    chain.push_back(set_mtu("vx0", 1400));
    chain.push_back(set_mtu("nosuch", 1400));
    chain.push_back(set_mtu("vx1", 1400));
    CHECK(why(bench.socket.sequence(chain)) == "set nosuch MTU 1400: No such device");
    CHECK(bench.get("vx0").mtu == 1400);
    CHECK(bench.get("vx1").mtu == 1500);
}

TEST_CASE("a bridge keeps the MTU it was given, also 1500, when smaller ports come") {
    for (uint32_t mtu : {1500u, 9000u}) {
        Bench bench;
        bench.make(create(bridge("br0", mtu)));
        CHECK(bench.get("br0").mtu == mtu);
        VethSpec spec = pair("va", "vb");
        spec.options.master = bench.get("br0").index;
        spec.options.mtu = 1400;
        bench.make(create(spec));
        CHECK(bench.get("br0").mtu == mtu);
    }
}

TEST_CASE("one message changes many properties; each can be undone") {
    Bench bench;
    bench.make(create(bridge("br0", 0)));
    uint32_t br0 = bench.get("br0").index;
    bench.make(create(pair("va", "vb")));
    LinkChange change;
    change.mtu = 1300;
    change.txqueuelen = 77;
    change.alias = "new";
    change.mac = mac("52:54:00:00:00:09");
    change.master = br0;
    change.up = true;
    bench.make(set_link("va", change));
    Link va = bench.get("va");
    CHECK(va.mtu == 1300);
    CHECK(va.txqueuelen == 77);
    CHECK(va.alias == "new");
    CHECK(va.mac == *change.mac);
    CHECK(va.master == br0);
    CHECK(links(bench.socket, {.master = br0})->size() == 1);
    CHECK(links(bench.socket, {.kind = "veth", .stats = false})->size() == 2);

    bench.make(clear_master(va.index));
    bench.make(set_alias(va.index, ""));
    bench.make(set_down(va.index));
    bench.make(rename(va.index, "vc"));
    va = bench.get(va.index);
    CHECK(va.name == "vc");
    CHECK(va.master == 0);
    CHECK_FALSE(va.port);
    CHECK(va.alias.empty());
    CHECK_FALSE(va.up);
    CHECK(why(bench.socket.request(set_alias("vc", std::string(256, 'x')))) ==
          "set vc alias " + std::string(200, 'x') + "...: the alias is longer than 255 bytes");
}

TEST_CASE("bridge port flags") {
    Bench bench;
    bench.make(create(bridge("br0", 0)));
    VethSpec spec = pair("va", "vb");
    spec.options.master = bench.get("br0").index;
    bench.make(create(spec));
    BridgePort before = *bench.get("va").port;
    CHECK(before.learning);
    CHECK(before.flood);
    CHECK_FALSE(before.isolated);
    bench.make(set_port("va", {.learning = false, .flood = false, .isolated = true}));
    BridgePort after = *bench.get("va").port;
    CHECK_FALSE(after.learning);
    CHECK_FALSE(after.flood);
    CHECK(after.isolated);
    CHECK(after.multicast_flood);
    CHECK(after.broadcast_flood);
    bench.make(set_port("va", {.learning = true, .multicast_flood = false, .broadcast_flood = false}));
    after = *bench.get("va").port;
    CHECK(after.learning);
    CHECK_FALSE(after.flood);
    CHECK_FALSE(after.multicast_flood);
    CHECK_FALSE(after.broadcast_flood);
}

TEST_CASE("forwarding entries of a bridge and of a VXLAN") {
    Bench bench;
    bench.make(create(bridge("br0", 0)));
    VethSpec spec = pair("va", "vb");
    uint32_t br0 = bench.get("br0").index;
    spec.options.master = br0;
    bench.make(create(spec));
    uint32_t va = bench.get("va").index;
    FdbEntry entry;
    entry.index = va;
    entry.mac = mac("52:54:00:00:00:aa");
    entry.permanent = false;
    bench.make(add_fdb(entry));
    bench.make(add_fdb(entry));  // once more changes nothing
    auto count = [&](const Result<std::vector<FdbEntry>>& list) {
        REQUIRE_MESSAGE(list.ok(), why(list));
        size_t n = 0;
        for (const FdbEntry& one : *list)
            n += one.mac == entry.mac && one.index == va && !one.permanent && !one.learned;
        return n;
    };
    CHECK(count(fdb(bench.socket, va)) == 1);
    CHECK(count(fdb_of_bridge(bench.socket, br0)) == 1);
    bench.make(delete_fdb(entry));
    bench.make(delete_fdb(entry));
    CHECK(count(fdb(bench.socket, va)) == 0);

    bench.make(create(wire("vx", 5)));
    FdbEntry far;
    far.index = bench.get("vx").index;
    far.mac = mac("52:54:00:00:00:bb");
    far.own = true;
    far.destination = ip("10.0.0.9");
    bench.make(add_fdb(far));
    auto list = fdb(bench.socket, far.index);
    REQUIRE(list.ok());
    bool found = false;
    for (const FdbEntry& one : *list) found |= one.mac == far.mac && one.own && one.destination == far.destination;
    CHECK(found);
}

TEST_CASE("links are deleted one by one and many at once") {
    Bench bench;
    bench.make(create(pair("va", "vb")));
    bench.make(delete_link("va"));
    CHECK_FALSE(bench.has("vb"));
    bench.make(delete_link("va"));  // gone already

    std::vector<uint32_t> doomed;
    for (int i = 0; i < 20; ++i) {
        std::string name = "vx" + std::to_string(i);
        bench.make(create(wire(name, 100u + static_cast<uint32_t>(i))));
        if (i) doomed.push_back(bench.get(name).index);
    }
    bench.make(delete_link("vx5"));  // one of them is gone before
    Status deleted = delete_links(bench.socket, doomed);
    CHECK_MESSAGE(deleted.ok(), why(deleted));
    CHECK(links(bench.socket)->size() == 2);
    CHECK(bench.has("vx0"));
    CHECK(delete_links(bench.socket, {}).ok());
    CHECK(delete_links(bench.socket, doomed).ok());  // all gone

    // lo cannot be deleted: then nothing is, and nothing stays marked.
    std::vector<uint32_t> with_lo{bench.get("lo").index, bench.get("vx0").index};
    CHECK_FALSE(delete_links(bench.socket, with_lo).ok());
    CHECK(bench.get("vx0").group == 0);
    CHECK(bench.get("lo").group == 0);
}

TEST_CASE("taps and macvtaps") {
    Bench bench;
    {
        auto tap = create_tap({.name = "tap0", .owner = 0});
        REQUIRE_MESSAGE(tap.ok(), why(tap));
    }
    CHECK(bench.get("tap0").kind == "tun");  // persistent
    CHECK(why(create_tap({.name = "a-name-of-18-bytes"})) ==
          "create tap a-name-of-18-bytes: the device name is longer than 15 bytes");
    {
        auto tap = create_tap({.name = "tap1", .persistent = false});
        REQUIRE(tap.ok());
        CHECK(bench.has("tap1"));
    }
    CHECK_FALSE(bench.has("tap1"));
    bench.make(delete_link("tap0"));

    bench.make(create(pair("va", "vb")));
    MacvtapSpec spec;
    spec.name = "mt";
    spec.lower = bench.get("vb").index;
    bench.make(create(spec));
    Link mt = bench.get("mt");
    CHECK(mt.kind == "macvtap");
    CHECK(mt.peer == spec.lower);
    CHECK(mt.macvlan_mode == MACVLAN_MODE_PASSTHRU);
    CHECK(mt.ipv6_disabled);
}

TEST_CASE("disabling IPv6: done, absent, and no way out of its directory") {
    Bench bench;
    bench.make(create(pair("va", "vb")));
    bench.make(disable_ipv6("nosuch"));
    CHECK(bench.socket.request(disable_ipv6("../all")).error().code() == Errc::invalid);
    CHECK(bench.socket.request(disable_ipv6("..")).error().code() == Errc::invalid);
    CHECK(bench.socket.request(Request::sysctl("ipv4/../x", "1", false)).error().code() == Errc::invalid);
    CHECK(bench.socket.request(Request::sysctl("ipv4/nosuch", "1", false)).error().code() == Errc::not_found);
}

TEST_CASE("a bridge is without the host's IPv6, whatever its MTU") {
    Bench bench;
    for (const uint32_t mtu : {0, 69, 1279, 1280, 1281, 1500, 65535}) {
        BridgeSpec spec;
        spec.name = "b" + std::to_string(mtu);
        spec.options.mtu = mtu;
        spec.options.up = true;
        bench.make(create(spec));
        const auto made = link(bench.socket, spec.name);
        REQUIRE(made.ok());
        CHECK_MESSAGE(made->ipv6_disabled, spec.name);
        if (mtu != 0) CHECK(made->mtu == mtu);
    }
}
