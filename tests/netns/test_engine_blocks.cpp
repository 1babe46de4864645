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
