// The wiring engine in a real kernel, one namespace a test: see test_engine_world.h.
#include <algorithm>
#include <fstream>

#include "base/clock.h"
#include "test_engine_world.h"
#include "wiring/headroom.h"

using namespace banana;
using namespace banana::testengine;

namespace {

// All that the engine can change, one line a thing; two snapshots are compared as sets of lines.
std::vector<std::string> snapshot(Engine& engine) {
    std::vector<std::string> out;
    for (const auto& link : must(netlink::links(engine.socket(), {0, "", false}))) {
        std::string line = fmt::format("{} {} '{}' {} mtu {} txq {} master {} {}", link.index, link.name, link.alias,
                                       link.kind, link.mtu, link.txqueuelen, link.master, link.up ? "up" : "down");
        for (auto direction : {Direction::ingress, Direction::egress}) {
            const auto attached = must(engine.attached({link.index, direction}));
            if (!attached) continue;
            const auto policy = must(engine.crossconnect().policy({link.index, direction}));
            line += fmt::format(" {} {}", xconnect::direction_name(direction), policy ? policy->mac.text() : "-");
        }
        out.push_back(line);
    }
    for (const auto& [port, policy] : must(engine.crossconnect().list_policies()))
        if (char name[IF_NAMESIZE]; if_indextoname(port.ifindex, name) == nullptr)
            out.push_back("policy of what is gone: " + port.text());
    for (const auto& [port, entry] : must(engine.crossconnect().list()))
        out.push_back(fmt::format("{} -> {} {} @{}{}", port.text(), entry.target, int(entry.into), entry.generation,
                                  entry.armed ? " armed" : ""));
    for (const auto& peer : must(engine.filter().list()))
        out.push_back(fmt::format("VNI {} from {}", peer.vni, peer.address.text()));
    return out;
}

std::string entry_text(Engine& engine, const std::string& device, Direction direction) {
    const auto entry = must(engine.crossconnect().get({if_nametoindex(device.c_str()), direction}));
    if (!entry) return "nothing";
    char name[IF_NAMESIZE] = "?";
    if_indextoname(entry->target, name);
    return fmt::format("{} @{}", name, entry->generation);
}

}  // namespace

TEST_CASE("engine: a plan that was applied gives no steps, and neither does it after a restart") {
    isolated([] {
        arrange();
        std::vector<std::string> before;
        {
            Engine engine = open_engine();
            CHECK_FALSE(steps(engine, everything()).empty());
            must(engine.realise(everything()));
            CHECK(steps(engine, everything()) == "");
            before = snapshot(engine);
            must(engine.realise(everything()));
            CHECK(snapshot(engine) == before);
            engine.forget_names();
            CHECK(steps(engine, everything()) == "");
            CHECK(entry_text(engine, "eth7", Direction::ingress) == "bnc00000021 @1");
            CHECK(entry_text(engine, "bnc00000021", Direction::egress) == "eth7 @1");
            CHECK(entry_text(engine, "bnx0000000b", Direction::ingress) == "bnc00000022 @1");
            CHECK(entry_text(engine, "bnc00000022", Direction::egress) == "bnx0000000b @1");
            CHECK(entry_text(engine, "eth8", Direction::ingress) == "bnx0000000c @9");
            CHECK(entry_text(engine, "bnx0000000c", Direction::ingress) == "eth8 @9");
        }
        Engine engine = open_engine();
        CHECK(snapshot(engine) == before);  // the end of a process changes nothing
        CHECK(steps(engine, everything()) == "");
        must(engine.realise(everything()));
        CHECK(must(engine.sweep(everything())).empty());
        CHECK(snapshot(engine) == before);
    });
}

TEST_CASE("engine: an incoming Spike is armed once") {
    isolated([] {
        arrange();
        Engine engine = open_engine();
        const Plan incoming = plan_spike(site, spike_c(model::SpikeState::incoming));
        must(engine.realise(incoming));
        CHECK(must(engine.crossconnect().get({if_nametoindex("eth8"), Direction::ingress}))->armed);
        CHECK(steps(engine, incoming) == "");
        must(engine.realise(plan_spike(site, spike_c())));
        CHECK_FALSE(must(engine.crossconnect().get({if_nametoindex("eth8"), Direction::ingress}))->armed);
    });
}

TEST_CASE("engine: a wire through its phases, by entries alone") {
    isolated([] {
        arrange();
        Engine engine = open_engine();
        must(engine.realise(plan_corm(corm())));
        model::Wire w = wire_b();
        must(engine.realise(plan_wire(site, corm(), w)));
        const auto state = [&] {
            return fmt::format("{}, {}, {}", entry_text(engine, "bnc00000022", Direction::egress),
                               entry_text(engine, "bnx0000000b", Direction::ingress),
                               entry_text(engine, "bnx0000000d", Direction::ingress));
        };
        must(w.prepare(vxlan("hv3", 0xd)));
        must(engine.realise(plan_wire(site, corm(), w)));
        CHECK(state() == "bnx0000000b @1, bnc00000022 @1, nothing");
        must(w.flip(2));
        must(engine.realise(plan_wire_entries(w)));
        CHECK(state() == "bnx0000000d @2, bnc00000022 @1, bnc00000022 @2");
        must(w.flip_back("hv2"));
        must(engine.realise(plan_wire_entries(w)));
        CHECK(state() == "bnx0000000b @1, bnc00000022 @1, nothing");
        const auto retired = must(w.activate(2));
        must(engine.realise(plan_wire_entries(w, {*retired})));
        CHECK(state() == "bnx0000000d @2, nothing, bnc00000022 @2");
        must(engine.realise(plan_half_gone(*retired)));
        CHECK(if_nametoindex("bnx0000000b") == 0);
        CHECK(must(engine.filter().list()) == std::vector<VxlanPeer>{{0xd, w.active->underlay}});
        must(engine.realise(plan_wire_gone(w)));
        must(engine.realise(plan_corm_gone(corm())));
        CHECK(must(engine.crossconnect().list()).empty());
        CHECK(must(engine.filter().list()).empty());
        CHECK(must(netlink::link(engine.socket(), "eth1")).master == 0);
    });
}

namespace {

// A step that fails, at each place of a plan where there can be one: the k-th of its links, ports, entries.
LinkWant bad_link() {  // its other end's name is somebody else's
    LinkWant want;
    want.name = "bnc0000bad0";
    want.kind = VethKind{"bnp0000bad0"};
    return want;
}
PortWant bad_port() { return {"missing", Direction::ingress, {}}; }
EntryWant bad_entry() { return {"eth7", Direction::egress, "missing", Into::egress, 1, false}; }

std::vector<Plan> failing_variants(const Plan& good) {
    std::vector<Plan> out;
    const auto vary = [&](auto Plan::*list, const auto& bad) {
        for (size_t k = 0; k <= (good.*list).size(); ++k) {
            Plan plan = good;
            (plan.*list).insert((plan.*list).begin() + static_cast<ptrdiff_t>(k), bad);
            out.push_back(std::move(plan));
        }
    };
    vary(&Plan::links, bad_link());
    LinkWant half_made = bad_link();  // made, and then refused its alias
    half_made.kind = BridgeKind{};
    half_made.alias = std::string(300, 'x');
    vary(&Plan::links, half_made);
    vary(&Plan::ports, bad_port());
    vary(&Plan::entries, bad_entry());
    Plan peers = good;
    peers.peers.push_back({1u << 24, site.underlay});  // no VNI
    out.push_back(std::move(peers));
    Plan absent = good;
    absent.absent.push_back("lo");
    out.push_back(std::move(absent));
    return out;
}

}  // namespace

TEST_CASE("engine: whichever step fails, all is as it was before") {
    isolated([] {
        arrange();
        sh("ip link add bnp0000bad0 type bridge; ip link set lo alias 'banana lo'");
        Engine engine = open_engine();
        // Not from nothing: wire B stands by another half, and its Corm has another MTU.
        model::Corm narrow = corm();
        narrow.mtu = 1300;
        model::Wire old = wire(0x22, "hv2/vm1/net0", vxlan("hv2", 0xb));
        Plan standing = plan_corm(narrow);
        standing += plan_wire(site, narrow, old);
        standing.ports.push_back(
            {"eth7", Direction::ingress, {xconnect::PortKind::spike, mac("52:54:00:00:00:99"), false}});
        must(engine.realise(standing));

        Plan good = plan_corm(corm());
        good += plan_anchor(corm());
        good += plan_wire(site, corm(), wire_a());
        must(old.prepare(vxlan("hv3", 0xd)));
        must(old.flip(2));
        good += plan_wire(site, corm(), old);
        good += plan_spike(site, spike_c());
        good.peers.push_back({0xb, *IpAddress::parse("192.0.2.9")});  // a second peer of a VNI that has one
        const auto variants = failing_variants(good);
        CHECK(variants.size() > 20);
        const auto before = snapshot(engine);
        for (int round = 0; round < 2; ++round)  // the second meets what undoing the first has left
            for (size_t i = 0; i < variants.size(); ++i) {
                CAPTURE(round);
                CAPTURE(i);
                const Status failed = engine.realise(variants[i]);
                REQUIRE_FALSE(failed.ok());
                CAPTURE(failed.error().message());
                CHECK(failed.error().message().find("undo") == std::string::npos);
                CHECK(snapshot(engine) == before);
            }
        must(engine.realise(good));
        CHECK(steps(engine, good) == "");
    });
}

TEST_CASE("engine: somebody else's devices are left alone") {
    isolated([] {
        arrange();
        sh("ip link add bn-lab type bridge; ip link set bn-lab up; ip link add bnf00000031 type bridge");
        Engine engine = open_engine();
        const auto before = snapshot(engine);
        const Status anchor = engine.realise(plan_anchor(corm()));
        REQUIRE_FALSE(anchor.ok());
        CHECK(anchor.error().code() == Errc::exists);
        CHECK(anchor.error().message() == "create bridge bn-lab: a bridge of that name is there that is not Banana's");
        must(engine.realise(plan_anchor_gone(corm())));
        Plan plan = plan_corm(corm());
        plan += plan_wire(site, corm(), wire_a());
        plan += plan_macvtap(macvtap(), 1400);
        const Status pair = engine.realise(plan);
        REQUIRE_FALSE(pair.ok());
        CHECK(pair.error().code() == Errc::exists);
        CHECK(pair.error().message().starts_with("create veth bne00000031: "));
        CHECK(snapshot(engine) == before);
    });
}

TEST_CASE("engine: a wrong VXLAN remote is repaired") {
    isolated([] {
        arrange();
        Engine engine = open_engine();
        Plan wrong = plan_corm(corm());
        wrong += plan_wire(site, corm(), wire(0x22, "hv2/vm1/net0", vxlan("hv2", 0xb, "192.0.2.99")));
        must(engine.realise(wrong));
        const uint32_t index = if_nametoindex("bnx0000000b");
        Plan right = plan_corm(corm());
        right += plan_wire(site, corm(), wire_b());
        must(engine.realise(right));
        CHECK(steps(engine, right) == "");
        const auto link = must(netlink::link(engine.socket(), "bnx0000000b"));
        REQUIRE(link.vxlan.has_value());
        CHECK(link.vxlan->remote.text() == "192.0.2.2");
        CHECK(link.index != index);
        CHECK(entry_text(engine, "bnx0000000b", Direction::ingress) == "bnc00000022 @1");
        CHECK(entry_text(engine, "bnc00000022", Direction::egress) == "bnx0000000b @1");
        CHECK_FALSE(must(engine.crossconnect().policy({index, Direction::ingress})).has_value());
        // The old peer's leave ends with the sweep that follows each start.
        CHECK(must(engine.sweep(right)).empty());
        CHECK(must(engine.filter().list()) == std::vector<VxlanPeer>{{0xb, *IpAddress::parse("192.0.2.2")}});
    });
}

TEST_CASE("engine: somebody changed what is ours: it is put back") {
    isolated([] {
        arrange();
        Engine engine = open_engine();
        must(engine.realise(everything()));
        const auto before = snapshot(engine);
        sh("ip link set bnc00000021 nomaster; ip link set bnx0000000b down mtu 1280; ip link set bn-lab up; "
           "ip link set eth1 master other; ip link set bnb00000001 alias x");
        must(engine.crossconnect().erase({if_nametoindex("eth7"), Direction::ingress}));
        sh("tc qdisc delete dev bnc00000022 clsact");
        must(engine.filter().remove(0xb));
        CHECK(snapshot(engine) != before);
        Engine again = open_engine();
        must(again.realise(everything()));
        CHECK(snapshot(again) == before);
    });
}

TEST_CASE("engine: sweep removes our strays and nothing else") {
    isolated([] {
        arrange();
        Engine engine = open_engine();
        must(engine.realise(everything()));
        auto before = snapshot(engine);
        // Strays: wires, a Corm and its anchor that no record tells of any more.
        model::Corm gone = corm();
        gone.id = 2;
        gone.name = "gone";
        gone.kind = model::CormKind::etherstub;
        Plan strays = plan_corm(gone);
        strays += plan_anchor(gone);
        strays += plan_wire(site, gone, wire(0x41, "hv9/vm9/net0", vxlan("hv9", 0x42)));
        must(engine.realise(strays));
        // Not ours: a name like ours, an alias like ours, neither both.
        sh("ip link add bnc000000aa type bridge; ip link add mine type bridge; ip link set mine alias 'banana split'; "
           "ip link add bn-office type bridge");
        Engine again = open_engine();
        auto removed = must(again.sweep(everything()));
        std::sort(removed.begin(), removed.end());
        CHECK(std::find(removed.begin(), removed.end(), "bn-gone") != removed.end());
        for (const char* name : {"bn-gone", "bnb00000002", "bnc00000041", "bnx00000042"}) {
            CAPTURE(name);
            CHECK(std::find(removed.begin(), removed.end(), name) != removed.end());
            CHECK(if_nametoindex(name) == 0);
        }
        for (const char* name : {"bnc000000aa", "mine", "bn-office"}) {
            CAPTURE(name);
            CHECK(if_nametoindex(name) != 0);
            sh(fmt::format("ip link delete {}", name));
        }
        CHECK(snapshot(again) == before);
        CHECK(must(again.sweep(everything())).empty());
    });
}

TEST_CASE("engine: a Corm port of an earlier version, a veth pair, stays until its wire goes") {
    isolated([] {
        arrange();
        Engine engine = open_engine();
        must(engine.realise(plan_corm(corm())));
        sh("ip link add bnc00000022 mtu 1400 master bnb00000001 type veth peer name bnp00000022; "
           "for d in bnc00000022 bnp00000022; do ip link set $d up alias 'banana port hv2/vm1/net0'; done");
        const uint32_t port = if_nametoindex("bnc00000022");
        Plan plan = plan_corm(corm());
        plan += plan_wire(site, corm(), wire_b());
        must(engine.realise(plan));
        CHECK(steps(engine, plan) == "");
        CHECK(if_nametoindex("bnc00000022") == port);
        must(engine.sweep(plan));
        CHECK(if_nametoindex("bnp00000022") != 0);
        must(engine.realise(plan_wire_gone(wire_b())));
        CHECK(if_nametoindex("bnp00000022") == 0);
        must(engine.realise(plan));
        CHECK(must(netlink::link(engine.socket(), "bnc00000022")).kind == "ifb");
    });
}

TEST_CASE("engine: a Corm port forwards when its wire is there, and has no queue") {
    isolated([] {
        arrange();
        Engine engine = open_engine();
        Plan plan = plan_corm(corm());
        plan += plan_wire(site, corm(), wire_b());
        must(engine.realise(plan));
        sh("bridge link show dev bnc00000022 | grep -q 'state forwarding'");
        sh("tc qdisc show dev bnc00000022 root | grep -q noqueue");
    });
}

namespace {

model::Spike adopted(const std::string& device) {
    model::Spike spike;
    spike.kind = model::SpikeKind::netdev;
    spike.device = device;
    spike.stage = 1;
    return spike;
}

uint32_t master_of(Engine& engine, const std::string& device) {
    return must(netlink::link(engine.socket(), device)).master;
}

size_t udp_sockets() {
    std::ifstream table("/proc/thread-self/net/udp");
    size_t lines = 0;
    for (std::string line; std::getline(table, line);) ++lines;
    return lines - 1;
}

}  // namespace

TEST_CASE("engine: headroom: a VXLAN that is down, in the Corm's bridge; nothing else changes") {
    isolated([] {
        arrange();
        Engine engine = open_engine();
        model::Corm c = corm();
        c.mac = mac("52:54:00:00:00:77");
        Plan plan = plan_corm(c);
        plan += plan_headroom(site, c);
        must(engine.realise(plan));
        CHECK(steps(engine, plan) == "");
        const auto room = must(netlink::link(engine.socket(), "bnh00000001"));
        const auto bridge = must(netlink::link(engine.socket(), "bnb00000001"));
        CHECK(room.master == bridge.index);
        CHECK_FALSE(room.up);
        CHECK(bridge.mtu == 1400);
        CHECK(bridge.mac == c.mac);
        CHECK(udp_sockets() == 0);
        // A wire may have that VNI.
        plan += plan_wire(site, c, wire(0x22, "hv2/vm1/net0", vxlan("hv2", 0x1)));
        must(engine.realise(plan));
        CHECK(steps(engine, plan) == "");
        CHECK(must(engine.sweep(plan)).empty());
        CHECK(must(engine.filter().list()).size() == 1);
        sh("ip link set bnh00000001 up nomaster");
        must(engine.realise(plan));
        CHECK(master_of(engine, "bnh00000001") == bridge.index);
        CHECK_FALSE(must(netlink::link(engine.socket(), "bnh00000001")).up);
        must(engine.realise(plan_corm_gone(c)));
        CHECK(if_nametoindex("bnh00000001") == 0);
        CHECK(if_nametoindex("bnb00000001") == 0);
    });
}

TEST_CASE("engine: a stage takes what is free, passes nothing, and lets go") {
    isolated([] {
        arrange();
        sh("ip link set eth8 master other; ip link set eth7 up; ip link set eth7.far up");
        Engine engine = open_engine();
        Plan plan = plan_stage(site, 1);
        plan += plan_staged(adopted("eth7"));
        plan += plan_staged(adopted("eth8"));
        must(engine.realise(plan));
        CHECK(steps(engine, plan) == "");
        const uint32_t stage = if_nametoindex("bns00000001");
        CHECK(master_of(engine, "bng00000001") == stage);
        CHECK(master_of(engine, "eth8") == if_nametoindex("other"));
        const auto port = must(netlink::link(engine.socket(), "eth7"));
        CHECK(port.master == stage);
        CHECK(port.up);
        REQUIRE(port.port.has_value());
        CHECK(port.port->state == 0);  // BR_STATE_DISABLED
        CHECK(udp_sockets() == 0);
        sh("ip link set eth7 nomaster");
        must(engine.realise(plan));
        CHECK(master_of(engine, "eth7") == stage);

        Plan out = plan_unstaged(adopted("eth7"));
        out += plan_unstaged(adopted("eth8"));
        out += plan_unstaged(adopted("missing"));
        CHECK(steps(engine, out) == "change link eth7; ");
        // What fails later puts it back.
        Plan fails = out;
        fails.absent.push_back("lo");
        sh("ip link set lo alias 'banana lo'");
        REQUIRE_FALSE(engine.realise(fails).ok());
        CHECK(master_of(engine, "eth7") == stage);
        must(engine.realise(out));
        CHECK(master_of(engine, "eth7") == 0);
        CHECK(if_nametoindex("bns00000001") == stage);
        out += plan_stage_gone(1);
        must(engine.realise(out));
        CHECK(master_of(engine, "eth8") == if_nametoindex("other"));
        CHECK(if_nametoindex("bns00000001") == 0);
        CHECK(if_nametoindex("bng00000001") == 0);
        CHECK(steps(engine, out) == "");
    });
}

TEST_CASE(
    "engine: a wire's ports join a block at once, and get programs of their own when nothing else is to be done") {
    isolated([] {
        arrange();
        const auto own_program = [](Engine& engine, const std::string& device) {
            const auto own = must(engine.crossconnect().attached({if_nametoindex(device.c_str()), Direction::ingress}));
            return own ? own->program_id : 0;
        };
        uint32_t program = 0;
        {
            Engine engine = open_engine();
            if (engine.crossconnect().mode() != xconnect::AttachMode::tcx) return;
            must(engine.realise(everything()));
            CHECK(own_program(engine, "bnx0000000b") == 0);
            const size_t ports = engine.unsettled();
            CHECK(ports >= 4);
            CHECK_FALSE(must(engine.settle_port(monotonic_ns())));  // it has only just changed something
            const int64_t later = monotonic_ns() + Engine::quiet_ns + 1;
            for (size_t i = 0; i < ports; i++) CHECK(must(engine.settle_port(later)));
            CHECK_FALSE(must(engine.settle_port(later)));
            CHECK(engine.unsettled() == 0);
            program = own_program(engine, "bnx0000000b");
            CHECK(program != 0);
            CHECK(steps(engine, everything()) == "");
        }
        Engine engine = open_engine();
        CHECK(steps(engine, everything()) == "");
        CHECK(engine.unsettled() == 0);  // they have been looked at, and stand
        CHECK(own_program(engine, "bnx0000000b") == program);
        must(engine.let_go("eth8"));
        CHECK(own_program(engine, "eth8") == 0);
        // Ports that are gone are not settled.
        Plan gone;
        gone.absent = {"bnx0000000b"};
        must(engine.realise(gone));
        must(engine.realise(everything()));
        CHECK(engine.unsettled() > 0);
        must(engine.realise(gone));
        CHECK(engine.unsettled() == 0);
    });
}
