#include "wiring/diff.h"

#include <doctest/doctest.h>
#include <fmt/core.h>

using namespace banana;
using namespace banana::wiring;

namespace {

const IpAddress here = *IpAddress::parse("192.0.2.1"), there = *IpAddress::parse("192.0.2.2"),
                elsewhere = *IpAddress::parse("192.0.2.3");

// A wire's end: bridge, Corm port, VXLAN device, both ports, both entries.
Plan sample() {
    Plan plan;
    plan.peers = {{7, there}};
    LinkWant bridge{.name = "bnb00000001",
                    .kind = BridgeKind{},
                    .alias = "banana Corm hv1/lab",
                    .mtu = 1500,
                    .master = "",
                    .up = true,
                    .mac = {}};
    LinkWant port{.name = "bnc00000002",
                  .kind = IfbKind{},
                  .alias = "banana port x",
                  .mtu = 1500,
                  .master = "bnb00000001",
                  .up = true,
                  .mac = {}};
    LinkWant wire{.name = "bnx00000007",
                  .kind = VxlanKind{7, here, there, 4789},
                  .alias = "banana wire x",
                  .mtu = 1500,
                  .master = "",
                  .up = true,
                  .mac = {}};
    plan.links = {bridge, port, wire};
    plan.ports = {{"bnc00000002", Direction::egress, {xconnect::PortKind::corm, {}, false}},
                  {"bnx00000007", Direction::ingress, {xconnect::PortKind::wire, {}, false}}};
    plan.entries = {{"bnx00000007", Direction::ingress, "bnc00000002", Into::ingress, 3, false},
                    {"bnc00000002", Direction::egress, "bnx00000007", Into::egress, 3, false}};
    return plan;
}

// The kernel, when all of it is done.
Observed fulfilled() {
    Observed seen;
    const auto add = [&](uint32_t index, const char* name, const char* kind, const char* alias) -> netlink::Link& {
        netlink::Link& link = seen.links[name];
        link.index = index;
        link.name = name;
        link.kind = kind;
        link.alias = alias;
        link.mtu = 1500;
        link.up = true;
        return link;
    };
    add(10, "bnb00000001", "bridge", "banana Corm hv1/lab");
    add(11, "bnc00000002", "ifb", "banana port x").master = 10;
    add(13, "bnx00000007", "vxlan", "banana wire x").vxlan =
        netlink::VxlanInfo{.vni = 7, .local = here, .remote = there, .port = 4789};
    seen.ports[{"bnc00000002", Direction::egress}] = {true, xconnect::Policy{xconnect::PortKind::corm, {}, false},
                                                      xconnect::Entry{13, Into::egress, 3, false}};
    seen.ports[{"bnx00000007", Direction::ingress}] = {true, xconnect::Policy{xconnect::PortKind::wire, {}, false},
                                                       xconnect::Entry{11, Into::ingress, 3, false}};
    seen.peers = {{7, there}};
    return seen;
}

std::string steps(const Plan& plan, const Observed& seen) {
    const auto result = diff(plan, seen);
    if (!result) return fmt::format("!{} {}", errc_name(result.error().code()), result.error().message());
    std::string out;
    for (const auto& step : *result) out += (out.empty() ? "" : "; ") + describe(step);
    return out;
}

}  // namespace

TEST_CASE("diff: all is there, nothing to do; nothing is there, all of it in order") {
    CHECK(steps(sample(), fulfilled()) == "");
    CHECK(steps(sample(), {}) ==
          "allow 1 VXLAN peers; create bridge bnb00000001; create ifb bnc00000002; create vxlan bnx00000007; "
          "attach port bnc00000002 egress; attach port bnx00000007 ingress; "
          "connect bnx00000007 ingress to bnc00000002; connect bnc00000002 egress to bnx00000007");
    CHECK(steps({}, fulfilled()) == "");
}

TEST_CASE("diff: a quick port comes with its link when that is made") {
    Plan plan = sample();
    for (auto& port : plan.ports) port.quick = true;
    const auto all = diff(plan, {});
    REQUIRE(all.ok());
    size_t with_ports = 0;
    for (const auto& step : *all) {
        CHECK_FALSE(std::holds_alternative<AttachPort>(step));
        if (const auto* make = std::get_if<MakeLink>(&step)) with_ports += make->ports.size();
    }
    CHECK(with_ports == 2);
    Observed seen = fulfilled();
    CHECK(steps(plan, seen) == "");
    seen.ports.clear();
    CHECK(steps(plan, seen).starts_with("attach port bnc00000002 egress; attach port bnx00000007 ingress; "));
}

TEST_CASE("diff: one thing that is otherwise, one step, with its undo") {
    const char* change_port = "change link bnc00000002";
    struct {
        const char* steps;
        void (*spoil)(Observed&);
    } table[] = {
        {"allow 1 VXLAN peers", [](Observed& o) { o.peers.clear(); }},
        {"allow 1 VXLAN peers",
         [](Observed& o) {
             o.peers = {{7, elsewhere}};
         }},
        {change_port, [](Observed& o) { o.links["bnc00000002"].mtu = 1400; }},
        {change_port, [](Observed& o) { o.links["bnc00000002"].up = false; }},
        {change_port, [](Observed& o) { o.links["bnc00000002"].alias = "banana port y"; }},
        {change_port, [](Observed& o) { o.links["bnc00000002"].master = 0; }},
        {change_port, [](Observed& o) { o.links["bnc00000002"].master = 99; }},
        {"attach port bnc00000002 egress",
         [](Observed& o) {
             o.ports[{"bnc00000002", Direction::egress}].attached = false;
         }},
        {"attach port bnc00000002 egress",
         [](Observed& o) {
             o.ports[{"bnc00000002", Direction::egress}].policy.reset();
         }},
        {"attach port bnx00000007 ingress",
         [](Observed& o) {
             o.ports[{"bnx00000007", Direction::ingress}].policy->kind = xconnect::PortKind::spike;
         }},
        {"connect bnx00000007 ingress to bnc00000002",
         [](Observed& o) {
             o.ports[{"bnx00000007", Direction::ingress}].entry.reset();
         }},
        {"connect bnx00000007 ingress to bnc00000002",
         [](Observed& o) {
             o.ports[{"bnx00000007", Direction::ingress}].entry->target = 99;
         }},
        {"connect bnx00000007 ingress to bnc00000002",
         [](Observed& o) {
             o.ports[{"bnx00000007", Direction::ingress}].entry->into = Into::egress;
         }},
        {"connect bnx00000007 ingress to bnc00000002",
         [](Observed& o) {
             o.ports[{"bnx00000007", Direction::ingress}].entry->generation = 2;
         }},
        {"connect bnx00000007 ingress to bnc00000002",
         [](Observed& o) {
             o.ports[{"bnx00000007", Direction::ingress}].entry->armed = true;
         }},
    };
    for (const auto& row : table) {
        Observed seen = fulfilled();
        row.spoil(seen);
        CHECK(steps(sample(), seen) == row.steps);
    }
    Observed seen = fulfilled();
    seen.links["bnc00000002"].mtu = 1400;
    seen.links["bnc00000002"].master = 0;
    const auto result = diff(sample(), seen);
    REQUIRE((result.ok() && result->size() == 1));
    const auto& step = std::get<ChangeLink>(result->front());
    CHECK(step.master == "bnb00000001");
    CHECK(step.change.mtu == 1500u);
    CHECK(step.undo.mtu == 1400u);
    CHECK(step.undo.master == 0u);
    CHECK_FALSE(step.undo.up.has_value());
    CHECK_FALSE(step.undo.alias.has_value());
}

TEST_CASE("diff: what cannot be changed is made anew, with all that hangs on it") {
    const char* wire_anew =
        "delete bnx00000007; create vxlan bnx00000007; attach port bnx00000007 ingress; "
        "connect bnx00000007 ingress to bnc00000002; connect bnc00000002 egress to bnx00000007";
    for (void (*spoil)(netlink::VxlanInfo&) : std::initializer_list<void (*)(netlink::VxlanInfo&)>{
             [](auto& v) { v.remote = elsewhere; }, [](auto& v) { v.local = elsewhere; }, [](auto& v) { v.vni = 8; },
             [](auto& v) { v.port = 8472; }}) {
        Observed seen = fulfilled();
        spoil(*seen.links["bnx00000007"].vxlan);
        CHECK(steps(sample(), seen) == wire_anew);
    }
    Observed seen = fulfilled();
    seen.links["bnx00000007"].kind = "dummy";
    seen.links["bnx00000007"].vxlan.reset();
    CHECK(steps(sample(), seen) == wire_anew);
    seen = fulfilled();
    seen.links["bnc00000002"].kind = "dummy";
    CHECK(steps(sample(), seen) ==
          "delete bnc00000002; create ifb bnc00000002; attach port bnc00000002 egress; "
          "connect bnx00000007 ingress to bnc00000002; connect bnc00000002 egress to bnx00000007");
    seen = fulfilled();
    seen.links["bnc00000002"].kind = "veth";  // an earlier version's port
    CHECK(steps(sample(), seen) == "");
    Plan pair;
    pair.links = {{.name = "bne00000003",
                   .kind = VethKind{"bnf00000003"},
                   .alias = "banana Spike x",
                   .master = "",
                   .up = {},
                   .mac = {}}};
    netlink::Link& end = seen.links["bne00000003"];
    end.name = "bne00000003";
    end.kind = "veth";
    end.alias = "banana Spike x";
    end.peer = 21;
    seen.links["bnf00000003"].index = 21;
    CHECK(steps(pair, seen) == "");
    end.peer = 99;
    CHECK(steps(pair, seen) == "delete bne00000003; create veth bne00000003");
}

TEST_CASE("diff: what is somebody else's is neither taken nor deleted") {
    Plan plan;
    plan.links = {{.name = "bn-lab",
                   .kind = BridgeKind{},
                   .alias = "banana anchor hv1/lab",
                   .mtu = 1500,
                   .master = "",
                   .up = false,
                   .mac = {}}};
    Observed seen;
    netlink::Link& link = seen.links["bn-lab"];
    link.name = "bn-lab";
    link.index = 5;
    link.mtu = 1500;
    const std::string refused = "!exists create bridge bn-lab: a {} of that name is there that is not Banana's";
    link.kind = "dummy";
    CHECK(steps(plan, seen) == fmt::format(fmt::runtime(refused), "dummy"));
    link.kind = "";
    CHECK(steps(plan, seen) == fmt::format(fmt::runtime(refused), "device"));
    link.kind = "bridge";
    link.up = true;
    CHECK(steps(plan, seen) == fmt::format(fmt::runtime(refused), "bridge"));
    link.up = false;
    link.alias = "office";
    CHECK(steps(plan, seen) == fmt::format(fmt::runtime(refused), "bridge"));
    Plan gone;
    gone.absent = {"bn-lab", "bnb00000001"};
    CHECK(steps(gone, seen) == "");

    link.alias = "";  // made by us a moment ago, by a run that ended there
    CHECK(steps(plan, seen) == "change link bn-lab");
    link.alias = "banana anchor hv2/lab";
    CHECK(steps(plan, seen) == "change link bn-lab");
    CHECK(steps(gone, seen) == "delete bn-lab");

    Plan adopts;
    adopts.links = {
        {.name = "eth1", .kind = AdoptedKind{}, .alias = "", .mtu = 0, .master = "", .up = true, .mac = {}}};
    CHECK(steps(adopts, seen) == "!not-found device eth1: there is no such device on this host");
}

TEST_CASE("diff: fences, absences and filters") {
    Plan plan;
    plan.entries = {{"bnx00000007", Direction::ingress, "", Into::ingress, 3, false}};
    CHECK(steps(plan, fulfilled()) == "connect bnx00000007 ingress to nothing");
    Observed seen = fulfilled();
    seen.ports[{"bnx00000007", Direction::ingress}].entry.reset();
    CHECK(steps(plan, seen) == "");
    CHECK(steps(plan, {}) == "");  // what is not there passes nothing

    Plan gone;
    gone.absent = {"bnx00000007", "bnx00000008", "bnc00000002"};
    gone.absent_vnis = {7, 8};
    CHECK(steps(gone, fulfilled()) == "delete bnx00000007, bnc00000002; remove 1 VXLAN filters");
    CHECK(steps(gone, {}) == "");
}

TEST_CASE("diff: an armed entry is armed once") {
    Plan plan;
    plan.entries = {{"bnc00000002", Direction::egress, "bnx00000007", Into::egress, 3, true}};
    CHECK(steps(plan, fulfilled()) == "connect bnc00000002 egress to bnx00000007");
    Observed seen = fulfilled();
    seen.ports[{"bnc00000002", Direction::egress}].entry->armed = true;
    CHECK(steps(plan, seen) == "");
}

TEST_CASE("diff: DTLS wires are joined after their entries, and anew when their tap is; left before it goes") {
    const TunnelWire wire{7, "bnd00000007", "hv2", 1500};
    Plan plan;
    LinkWant tap;
    tap.name = "bnd00000007";
    tap.kind = TapKind{};
    tap.alias = "banana wire x";
    tap.mtu = 1500;
    plan.links = {tap};
    plan.entries = {{"bnd00000007", Direction::ingress, "bnd00000007", Into::egress, 1, false}};
    plan.tunnel_wires = {wire};
    Observed seen;
    CHECK(steps(plan, seen) ==
          "create tun bnd00000007; connect bnd00000007 ingress to bnd00000007; "
          "join bnd00000007 to host hv2's tunnel");
    netlink::Link& link = seen.links["bnd00000007"];
    link.index = 3;
    link.name = "bnd00000007";
    link.kind = "tun";
    link.mtu = 1500;
    link.alias = "banana wire x";
    seen.ports[{"bnd00000007", Direction::ingress}].entry = xconnect::Entry{3, Into::egress, 1, false};
    CHECK(steps(plan, seen) == "join bnd00000007 to host hv2's tunnel");
    seen.tunnel_wires[7] = wire;
    CHECK(steps(plan, seen) == "");
    seen.tunnel_wires[7].peer = "hv3";
    CHECK(steps(plan, seen) == "join bnd00000007 to host hv2's tunnel");
    seen.tunnel_wires[7] = wire;
    Plan gone;
    gone.absent = {"bnd00000007"};
    gone.absent_tunnel_wires = {7, 8};
    CHECK(steps(gone, seen) == "take 1 wires off the tunnel; delete bnd00000007");
    seen.links.clear();  // somebody deleted the tap
    CHECK(steps(plan, seen).ends_with("join bnd00000007 to host hv2's tunnel"));
}

TEST_CASE("diff: a port that is to be taken only when free, and one that is to be let go") {
    Plan take, let_go;
    LinkWant want;
    want.name = "eth7";
    want.master = "bns00000001";
    want.only_if_free = true;
    take.links = {want};
    let_go.loose = {{"eth7", "bns00000001"}};
    Observed seen;
    CHECK(steps(let_go, seen) == "");  // neither is there
    for (const auto& [name, index] : {std::pair("eth7", 3u), std::pair("bns00000001", 4u), std::pair("br0", 5u)}) {
        seen.links[name].index = index;
        seen.links[name].name = name;
    }
    CHECK(steps(take, seen) == "change link eth7");
    CHECK(steps(let_go, seen) == "");
    seen.links["eth7"].master = 5;
    CHECK(steps(take, seen) == "");
    CHECK(steps(let_go, seen) == "");
    take.links[0].only_if_free = false;
    CHECK(steps(take, seen) == "change link eth7");
    seen.links["eth7"].master = 4;
    CHECK(steps(take, seen) == "");
    const auto done = diff(let_go, seen);
    REQUIRE((done.ok() && done->size() == 1));
    const auto& step = std::get<ChangeLink>(done->front());
    CHECK(step.change.master == 0u);
    CHECK(step.undo.master == 4u);
}
