// Plans that come at about the same time (controller/plan_queue.h), in the world of test_engine_world.h.
#include <asio/co_spawn.hpp>
#include <asio/detached.hpp>
#include <asio/io_context.hpp>
#include <set>

#include "controller/plan_queue.h"
#include "netlink/tc.h"
#include "test_engine_world.h"

using namespace banana;
using namespace banana::testengine;

namespace {

std::vector<Plan> wires(uint32_t count) {
    std::vector<Plan> plans;
    for (uint32_t id = 0x41; id < 0x41 + count; ++id)
        plans.push_back(plan_wire(site, corm(), wire(id, fmt::format("hv2/vm{}/net0", id), vxlan("hv2", id))));
    return plans;
}

// All are asked for at once; their results.
std::vector<Status> realise(Engine& engine, const std::vector<Plan>& plans) {
    asio::io_context io;
    controller::PlanQueue queue(io, engine);
    std::vector<Status> results(plans.size(), Error("no answer"));
    for (size_t i = 0; i < plans.size(); ++i)
        asio::co_spawn(
            io, [&, i]() -> asio::awaitable<void> { results[i] = co_await queue.realise(plans[i]); }, asio::detached);
    io.run();
    return results;
}

}  // namespace

TEST_CASE("plan queue: plans of one moment are realised together, so many at a time; a bad one fails alone") {
    isolated([] {
        arrange();
        Engine engine = open_engine();
        must(engine.realise(plan_corm(corm())));
        const size_t most = controller::PlanQueue::together_max;
        auto plans = wires(static_cast<uint32_t>(2 * most + 4));
        for (const auto& result : realise(engine, plans)) must(result);
        std::set<uint32_t> blocks;  // each turn's ports have one of their own
        for (const auto& in : must(netlink::all_blocks(engine.socket()))) blocks.insert(in.ingress);
        blocks.erase(0x626e0003);  // the empty one
        CHECK(blocks.size() == 3);
        for (const auto& plan : plans) {
            CHECK(steps(engine, plan) == "");
            Plan gone;
            for (const auto& link : plan.links) gone.absent.push_back(link.name);
            must(engine.realise(gone));
        }
        plans[1].ports.push_back({"missing", Direction::ingress, {}});
        const auto results = realise(engine, plans);
        for (size_t i = 0; i < results.size(); ++i) CHECK(results[i].ok() == (i != 1));
        CHECK(results[1].error().message().find("missing") != std::string::npos);
        CHECK(realise(engine, {}).empty());
        CHECK(realise(engine, {plans[0]})[0].ok());
    });
}
