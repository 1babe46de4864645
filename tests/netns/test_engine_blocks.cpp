// Ports that share tc blocks (wiring/blocks.h), in the world of test_engine_world.h.
#include <cstdio>
#include <memory>

#include "test_engine_world.h"

using namespace banana;
using namespace banana::testengine;

namespace {

const char* ingress_block = "1651376129";

std::string output(const std::string& command) {
    FILE* pipe = popen(command.c_str(), "r");
    std::string text;
    char part[256];
    while (fgets(part, sizeof part, pipe) != nullptr) text += part;
    pclose(pipe);
    return text;
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }
std::string filters() { return output(fmt::format("tc filter show block {} 2>&1", ingress_block)); }
std::string qdisc(const char* device) { return output(fmt::format("tc qdisc show dev {} ingress", device)); }
uint32_t index_of(const char* device) { return if_nametoindex(device); }

}  // namespace

TEST_CASE("engine: ports share a block and its one filter, which goes with the last of them") {
    isolated([] {
        arrange();
        Engine engine = open_engine();
        must(engine.realise(everything()));
        for (const char* device : {"bnx0000000b", "bnx0000000c", "bnc00000021", "bnc00000022"})
            CHECK(has(qdisc(device), "_block"));
        CHECK(has(qdisc("bnx0000000b"), ingress_block));
        CHECK(has(filters(), "bn_xc_ingress"));
        CHECK(must(engine.attached({index_of("bnx0000000b"), Direction::ingress})));
        CHECK(must(engine.attached({index_of("bnc00000021"), Direction::egress})));
        CHECK_FALSE(must(engine.attached({index_of("bnc00000021"), Direction::ingress})));
        // Somebody took the filter away: a start puts it back.
        sh(fmt::format("tc filter delete block {} prio 1", ingress_block));
        CHECK_FALSE(has(filters(), "bn_xc_ingress"));
        open_engine();
        CHECK(has(filters(), "bn_xc_ingress"));
        must(engine.realise(plan_wire_gone(wire_b())));
        CHECK(has(filters(), "bn_xc_ingress"));
        must(engine.realise(plan_spike_gone(spike_c())));
        CHECK_FALSE(has(filters(), "bn_xc_ingress"));
        must(engine.realise(everything()));
        CHECK(has(filters(), "bn_xc_ingress"));
    });
}

TEST_CASE("engine: a block of our number that is somebody else's is found at the start") {
    isolated([] {
        arrange();
        Engine engine = open_engine();
        sh(fmt::format("tc qdisc add dev eth7 ingress_block {} ingress", ingress_block));
        sh(fmt::format("tc filter add block {} prio 1 protocol all u32 match u32 0 0", ingress_block));
        const auto refused = Engine::open({"/sys/fs/bpf/banana", 4789, {}});
        REQUIRE_FALSE(refused.ok());
        CHECK(refused.error().code() == Errc::busy);
        sh("tc qdisc delete dev eth7 ingress");
        Engine again = open_engine();
        must(again.realise(plan_spike(site, spike_c())));
        CHECK(must(netlink::link(again.socket(), "bnx0000000c")).up);
    });
}

TEST_CASE("engine: a younger program takes an older one's place on all ports at once") {
    isolated([] {
        arrange();
        must(open_engine().realise(everything()));
        const std::string before = filters();
        sh("rm /sys/fs/bpf/banana/ingress /sys/fs/bpf/banana/egress");  // the next process loads others
        Engine engine = open_engine();
        CHECK(has(filters(), "bn_xc_ingress"));
        CHECK(filters() != before);
        CHECK(steps(engine, everything()) == "attach port eth7 ingress; attach port eth8 ingress; ");  // taps' way
    });
}

TEST_CASE("engine: plans that are realised together share a block of their own, and a bad one fails alone") {
    isolated([] {
        arrange();
        Engine engine = open_engine();
        must(engine.realise(plan_corm(corm())));
        const auto plans_from = [](uint32_t first) {
            std::vector<Plan> plans;
            for (uint32_t id = first; id < first + 4; ++id)
                plans.push_back(plan_wire(site, corm(), wire(id, fmt::format("hv2/vm{}/net0", id), vxlan("hv2", id))));
            return plans;
        };
        auto plans = plans_from(0x41);
        for (const auto& result : engine.realise_each(plans)) must(result);
        const std::string first = qdisc("bnx00000041");
        const auto at = first.find("ingress_block ");
        REQUIRE(at != std::string::npos);
        const std::string block = first.substr(at + 14, first.find(' ', at + 14) - at - 14);
        CHECK(block != ingress_block);
        for (const char* device : {"bnx00000042", "bnx00000043", "bnx00000044"}) CHECK(has(qdisc(device), block));
        CHECK(qdisc("bnc00000041").substr(qdisc("bnc00000041").find("egress_block")) ==
              qdisc("bnc00000044").substr(qdisc("bnc00000044").find("egress_block")));
        for (const auto& plan : plans) CHECK(steps(engine, plan) == "");
        // Another process, with a younger program, knows the block by its number.
        const auto filter = [&] { return output(fmt::format("tc filter show block {} 2>&1", block)); };
        const std::string before = filter();
        CHECK(has(before, "bn_xc_ingress"));
        sh("rm /sys/fs/bpf/banana/ingress /sys/fs/bpf/banana/egress");
        Engine younger = open_engine();
        CHECK(has(filter(), "bn_xc_ingress"));
        CHECK(filter() != before);
        CHECK(steps(younger, plans[0]) == "");

        auto more = plans_from(0x51);
        more[2].ports.push_back({"missing", Direction::ingress, {}});
        const auto results = younger.realise_each(more);
        for (size_t i = 0; i < results.size(); ++i) CHECK(results[i].ok() == (i != 2));
        CHECK(has(results[2].error().message(), "missing"));
        CHECK(if_nametoindex("bnx00000053") == 0);
        for (const size_t i : {0, 1, 3}) CHECK(steps(younger, more[i]) == "");
    });
}

TEST_CASE("engine: a port that an undo took out of its block gets no program later") {
    isolated([] {
        arrange();
        model::Spike adopted = spike_c();
        adopted.kind = model::SpikeKind::netdev;
        Engine engine = open_engine();
        Plan plan = plan_spike(site, adopted);
        plan.entries.push_back({"eth8", Direction::egress, "missing", Into::egress, 1, false});
        REQUIRE_FALSE(engine.realise(plan).ok());
        CHECK(engine.unsettled() == 0);
        CHECK(qdisc("eth8") == "");
        CHECK_FALSE(must(engine.attached({index_of("eth8"), Direction::ingress})));
    });
}

TEST_CASE("engine: a port whose records are lost is found in its block") {
    isolated([] {
        arrange();
        model::Spike adopted = spike_c();
        adopted.kind = model::SpikeKind::netdev;
        Engine engine = open_engine();
        must(engine.realise(plan_spike(site, adopted)));
        must(engine.crossconnect().forget(index_of("eth8")));
        const std::string before = qdisc("eth8");
        must(engine.realise(plan_spike(site, adopted)));
        CHECK(qdisc("eth8") == before);
        CHECK(must(engine.attached({index_of("eth8"), Direction::ingress})));
        CHECK(steps(engine, plan_spike(site, adopted)) == "");
    });
}

TEST_CASE("engine: what an earlier version attached one by one stays, and is brought up to date") {
    isolated([] {
        arrange();
        EngineOptions earlier{"/sys/fs/bpf/banana", 4789, {}};
        earlier.xconnect.mode = xconnect::AttachMode::clsact;
        must(must(Engine::open(earlier)).realise(everything()));
        CHECK_FALSE(has(qdisc("bnx0000000b"), "_block"));
        CHECK(steps(*std::make_unique<Engine>(open_engine()), everything()) == "");
        sh("rm /sys/fs/bpf/banana/ingress /sys/fs/bpf/banana/egress");
        Engine engine = open_engine();
        CHECK(has(steps(engine, everything()), "attach port bnx0000000b ingress; "));
        must(engine.realise(everything()));
        CHECK(steps(engine, everything()) == "");
        CHECK_FALSE(has(qdisc("bnx0000000b"), "_block"));
    });
}

TEST_CASE("engine: an adopted device's own qdisc is left alone; ours goes when the device is let go") {
    isolated([] {
        arrange();
        Engine engine = open_engine();
        model::Spike adopted = spike_c();
        adopted.kind = model::SpikeKind::netdev;
        const xconnect::PortKey port{index_of("eth8"), Direction::ingress};
        must(engine.realise(plan_spike(site, adopted)));
        CHECK(has(qdisc("eth8"), ingress_block));
        must(engine.let_go("eth8"));
        CHECK(qdisc("eth8") == "");
        CHECK_FALSE(must(engine.attached(port)));
        for (const char* kind : {"ingress", "clsact"}) {
            sh(fmt::format("tc qdisc add dev eth8 {}", kind));
            const std::string theirs = qdisc("eth8");
            must(engine.realise(plan_spike(site, adopted)));
            CHECK(must(engine.attached(port)));
            CHECK(steps(engine, plan_spike(site, adopted)) == "");
            must(engine.let_go("eth8"));
            CHECK_FALSE(must(engine.attached(port)));
            CHECK(qdisc("eth8") == theirs);
            sh(fmt::format("tc qdisc delete dev eth8 {}", kind));
        }
    });
}
