// Opening, re-opening and attaching: what outlives a controller, and what is refused.
//
//   a0 ---veth--- a1    b1 ---veth--- b0     a1: Spike, cross-connected to b1; all in one namespace
#include <bpf/bpf.h>
#include <fcntl.h>
#include <fmt/core.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <optional>
#include <thread>

#include "test_xconnect_lab.h"

using namespace banana;
using namespace banana::testlab;

namespace {

const char* dir = "/sys/fs/bpf/one";
const Mac to = {{0x52, 0x54, 0, 0, 0, 1}}, from = {{0x52, 0x54, 0, 0, 0, 2}};

struct Pair {
    Ns ns{"one"};
    std::optional<CrossConnect> cc;
    PortKey spike;
    Entry entry;
    std::optional<Wiretap> in, out;

    explicit Pair(const Options& options) {
        sh("ip -n one link add a0 type veth peer name a1; ip -n one link add b0 type veth peer name b1; "
           "for i in a0 a1 b0 b1; do ip -n one link set $i up; done");
        spike = {ns.ifindex("a1"), Direction::ingress};
        entry = {ns.ifindex("b1"), Into::egress, 1, false};
        cc = must(CrossConnect::open(dir, options));
        must(cc->attach(spike, {PortKind::spike, from, false}));
        must(cc->set(spike, entry));
        in.emplace(ns, "a0", data_ethertype);
        out.emplace(ns, "b0", data_ethertype);
    }
    bool passes() { return in->send(frame(to, from)) && out->receive(1).size() == 1; }
};

void in_both_modes(const std::function<void(const Options&)>& body) {
    for (auto mode : {AttachMode::tcx, AttachMode::clsact}) isolated([&] { body({64, mode}); });
}

}  // namespace

TEST_CASE("xconnect: a controller's death and a re-open change nothing") {
    in_both_modes([](const Options& options) {
        Pair p(options);
        CHECK(p.passes());
        auto before = *must(p.cc->attached(p.spike));
        CHECK(before.current);
        CHECK(before.mode == *options.mode);
        p.cc.reset();
        CHECK(p.passes());

        constexpr uint32_t frames = 10000;
        Tally seen;
        std::jthread sender([&] { send_paced(*p.in, to, from, frames, 50); });
        std::jthread reader([&] { seen = tally(*p.out, frames); });
        for (int i = 0; i < 5; i++) {
            p.cc.reset();
            p.cc = must(CrossConnect::open(dir, {4096, options.mode}));  // capacity: the maps keep their own
            auto after = *must(p.cc->attached(p.spike));
            CHECK(after.program_id == before.program_id);
            CHECK(after.current);
            must(p.cc->attach(p.spike, {PortKind::spike, from, false}));
        }
        sender.join();
        reader.join();
        CHECK(seen.distinct == frames);
        CHECK(seen.duplicates == 0);
        CHECK(must(p.cc->get(p.spike)) == p.entry);
        CHECK(must(p.cc->policy(p.spike)) == Policy{PortKind::spike, from, false});
        CHECK(must(p.cc->counters(p.spike)).passed.frames == frames + 2);
    });
}

TEST_CASE("xconnect: another program of ours is replaced under traffic without loss") {
    in_both_modes([](const Options& options) {
        Pair p(options);
        auto other = must(CrossConnect::open("/sys/fs/bpf/two", options));
        CHECK_FALSE(must(other.attached(p.spike))->current);
        must(other.set_policy(p.spike, {PortKind::spike, from, false}));
        must(other.set(p.spike, p.entry));
        constexpr uint32_t frames = 10000;
        Tally seen;
        std::jthread sender([&] { send_paced(*p.in, to, from, frames, 50); });
        std::jthread reader([&] { seen = tally(*p.out, frames); });
        for (int i = 0; i < 50; i++) {
            must(other.attach(p.spike, {PortKind::spike, from, false}));
            must(p.cc->attach(p.spike, {PortKind::spike, from, false}));
        }
        must(other.attach(p.spike, {PortKind::spike, from, false}));
        sender.join();
        reader.join();
        CHECK(must(other.attached(p.spike))->current);
        CHECK(seen.distinct == frames);
        CHECK(seen.duplicates == 0);
        auto by_first = must(p.cc->counters(p.spike)).passed.frames;
        CHECK(by_first + must(other.counters(p.spike)).passed.frames == frames);
    });
}

TEST_CASE("xconnect: attachment changes from clsact to tcx and back without loss") {
    isolated([] {
        Pair p({64, AttachMode::clsact});
        constexpr uint32_t frames = 10000;
        Tally seen;
        std::jthread sender([&] { send_paced(*p.in, to, from, frames, 50); });
        std::jthread reader([&] { seen = tally(*p.out, frames); });
        for (int i = 0; i < 10; i++) {
            auto mode = i % 2 ? AttachMode::clsact : AttachMode::tcx;
            p.cc.reset();
            p.cc = must(CrossConnect::open(dir, {64, mode}));
            must(p.cc->attach(p.spike, {PortKind::spike, from, false}));
            CHECK(must(p.cc->attached(p.spike))->mode == mode);
        }
        sender.join();
        reader.join();
        CHECK(seen.distinct == frames);
        CHECK(seen.duplicates == 0);
    });
}

TEST_CASE("xconnect: detach, and devices that are not there") {
    in_both_modes([](const Options& options) {
        Pair p(options);
        must(p.cc->detach(p.spike));
        must(p.cc->detach(p.spike));
        CHECK_FALSE(must(p.cc->attached(p.spike)));
        CHECK(must(p.cc->get(p.spike)));
        PortKey none{999999, Direction::ingress};
        CHECK_FALSE(must(p.cc->attached(none)));
        must(p.cc->detach(none));
        auto refused = p.cc->attach(none, {PortKind::wire, {}, false});
        REQUIRE_FALSE(refused);
        CHECK(refused.error().code() == Errc::not_found);
        MESSAGE(refused.error().message());
        // The kernel takes the program off with the device.
        must(p.cc->attach(p.spike, {PortKind::spike, from, false}));
        sh("ip -n one link del a1");
        CHECK_FALSE(must(p.cc->attached(p.spike)));
        must(p.cc->forget(p.spike.ifindex));
        CHECK(must(p.cc->list()).empty());
    });
}

TEST_CASE("xconnect: policy and entry come and go by themselves") {
    in_both_modes([](const Options& options) {
        Pair p(options);
        const Policy any{PortKind::spike, from, true};
        const Entry armed{p.entry.target, Into::egress, 7, true};
        must(p.cc->set(p.spike, armed));
        must(p.cc->set_policy(p.spike, any));
        CHECK(must(p.cc->get(p.spike)) == armed);
        CHECK(must(p.cc->policy(p.spike)) == any);
        CHECK(p.passes());
        CHECK(must(p.cc->read_events()).size() == 1);
        must(p.cc->set_policy(p.spike, any));  // no second report
        must(p.cc->attach(p.spike, any));
        CHECK(p.passes());
        CHECK(must(p.cc->read_events()).empty());

        must(p.cc->erase(p.spike));
        CHECK(must(p.cc->policy(p.spike)) == any);
        CHECK(must(p.cc->list()).empty());
        CHECK(must(p.cc->list_policies()).size() == 1);
        CHECK(must(p.cc->counters(p.spike)).passed.frames == 2);
        CHECK(p.cc->set(p.spike, {0, Into::egress, 1, false}).error().code() == Errc::invalid);
        CHECK_FALSE(must(p.cc->get(p.spike)));
    });
}

TEST_CASE("xconnect: every port counts for itself, also where another's counters were") {
    isolated([] {
        Pair p({4, std::nullopt});  // four ports
        CHECK(p.passes());
        const auto passed = [&](PortKey port) { return must(p.cc->counters(port)).passed.frames; };
        std::vector<PortKey> others;
        for (uint32_t ifindex = 1001; ifindex <= 1003; ifindex++) others.push_back({ifindex, Direction::ingress});
        for (int round = 0; round < 3; round++) {
            p.cc.reset();  // what is taken is found again
            p.cc = must(CrossConnect::open(dir));
            for (auto& port : others) {
                // Its counters stand where those of the port before stood.
                must(p.cc->forget(p.spike.ifindex));
                must(p.cc->attach(p.spike, {PortKind::spike, from, false}));
                must(p.cc->set(p.spike, p.entry));
                CHECK(passed(p.spike) == 0);
                CHECK(p.passes());
                CHECK(passed(p.spike) == 1);
                if (round == 0) must(p.cc->set_policy(port, {PortKind::wire, {}, false}));
            }
        }
        // A port that was never attached has no counters: what it lets pass is counted with the unknown ones'.
        for (auto& port : others) CHECK(p.cc->counters(port).error().code() == Errc::not_found);
        CHECK(passed({}) == 0);
    });
}

TEST_CASE("xconnect: directories that will not do") {
    isolated([] {
        char place[] = "/run/not-bpf-XXXXXX";
        REQUIRE(mkdtemp(place));
        auto elsewhere = CrossConnect::open(std::string(place) + "/banana");
        REQUIRE_FALSE(elsewhere);
        CHECK(elsewhere.error().code() == Errc::invalid);
        CHECK(elsewhere.error().message().find("mount -t bpf bpf /sys/fs/bpf") != std::string::npos);
        CHECK(access((std::string(place) + "/banana").c_str(), F_OK) < 0);
        CHECK(CrossConnect::open("/sys/fs/bpf/no/such").error().code() == Errc::not_found);

        must(CrossConnect::open(dir));
        must(CrossConnect::unpin(dir));
        must(CrossConnect::unpin(dir));
        CHECK(access(dir, F_OK) < 0);
    });
}

TEST_CASE("xconnect: objects of another ABI version are refused and left alone") {
    isolated([] {
        Pair p({64, {}});
        p.cc.reset();
        Fd abi(bpf_obj_get("/sys/fs/bpf/one/abi"));
        REQUIRE(abi.get() >= 0);
        uint32_t zero = 0;
        xc_abi version{XC_ABI_VERSION + 1, 0};
        REQUIRE(bpf_map_update_elem(abi.get(), &zero, &version, BPF_ANY) == 0);
        auto refused = CrossConnect::open(dir);
        REQUIRE_FALSE(refused);
        CHECK(refused.error().code() == Errc::unsupported);
        CHECK(refused.error().message().find(fmt::format("ABI version {}", XC_ABI_VERSION + 1)) != std::string::npos);
        CHECK(p.passes());
        // Version 0: a process died while it made the objects; the next completes them.
        version.version = 0;
        REQUIRE(bpf_map_update_elem(abi.get(), &zero, &version, BPF_ANY) == 0);
        p.cc = must(CrossConnect::open(dir));
        REQUIRE(bpf_map_lookup_elem(abi.get(), &zero, &version) == 0);
        CHECK(version.version == XC_ABI_VERSION);
        CHECK(p.passes());
    });
}

TEST_CASE("xconnect: beside an ingress qdisc tcx works, clsact's egress is refused") {
    isolated([] {
        Pair p({64, AttachMode::tcx});
        sh("tc -n one qdisc add dev a1 ingress");
        CHECK(p.passes());
        p.cc.reset();
        p.cc = must(CrossConnect::open(dir, {64, AttachMode::clsact}));
        auto refused = p.cc->attach({p.spike.ifindex, Direction::egress}, {PortKind::corm, {}, false});
        REQUIRE_FALSE(refused);
        MESSAGE(refused.error().message());
        CHECK(refused.error().message().find("'ingress' qdisc") != std::string::npos);
        CHECK(p.passes());
        // At ingress the filter goes into that qdisc's own list.
        must(p.cc->attach(p.spike, {PortKind::spike, from, false}));
        CHECK(must(p.cc->attached(p.spike))->mode == AttachMode::clsact);
        CHECK(p.passes());
    });
}

TEST_CASE("xconnect: refresh brings an older program of ours up to date, in the mode that it stands in") {
    for (auto mode : {AttachMode::tcx, AttachMode::clsact}) {
        isolated([&] {
            Pair p({64, mode});
            const auto other = mode == AttachMode::tcx ? AttachMode::clsact : AttachMode::tcx;
            CHECK_FALSE(must(p.cc->refresh(p.spike, other)));
            CHECK(must(p.cc->refresh(p.spike, mode)));
            const uint32_t before = must(p.cc->attached(p.spike))->program_id;
            CHECK(before == p.cc->program(Direction::ingress).id);
            p.cc.reset();
            sh("rm /sys/fs/bpf/one/ingress");  // the next process loads another
            p.cc = must(CrossConnect::open(dir, {64, std::nullopt}));
            CHECK_FALSE(must(p.cc->attached(p.spike))->current);
            CHECK(must(p.cc->refresh(p.spike, mode)));
            CHECK(must(p.cc->attached(p.spike))->current);
            CHECK(must(p.cc->attached(p.spike))->mode == mode);
            CHECK(must(p.cc->attached(p.spike))->program_id != before);
            CHECK(p.passes());
            CHECK_FALSE(must(p.cc->refresh({p.ns.ifindex("b1"), Direction::ingress}, mode)));
        });
    }
}
