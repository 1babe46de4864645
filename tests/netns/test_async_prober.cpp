// Who waits for a probe's answer: over a long way, and where frames are lost.
//
//   prober on "near" ---veth--- "far": a wiretap that answers when the test wants
#include <asio/co_spawn.hpp>
#include <asio/detached.hpp>
#include <asio/io_context.hpp>
#include <chrono>
#include <cstring>
#include <thread>

#include "controller/prober.h"
#include "test_xconnect_lab.h"
#include "xconnect/abi.h"

using namespace banana;
using namespace banana::testlab;
using namespace std::chrono_literals;

namespace {

// Sends back the `number`th request, `late` after it came.
void answer(const Ns& ns, int number, std::chrono::milliseconds late) {
    Wiretap far(ns, "far", XC_PROBE_ETHERTYPE);
    auto asked = far.receive(static_cast<size_t>(number));
    if (asked.size() < static_cast<size_t>(number)) return;
    std::this_thread::sleep_for(late);
    auto reply = asked.back();
    std::swap_ranges(reply.begin(), reply.begin() + 6, reply.begin() + 6);
    reply[14 + offsetof(xc_probe, type)] = XC_PROBE_REPLY;
    far.send(reply);
}

Result<int64_t> probed(int number, std::chrono::milliseconds late, std::chrono::milliseconds patience) {
    Result<int64_t> found = Error("not asked");
    isolated([&] {
        Ns ns("hv1");
        sh("ip -n hv1 link add near type veth peer name far; ip -n hv1 link set near up; ip -n hv1 link set far up");
        ns.enter();
        std::thread far([&] { answer(ns, number, late); });
        asio::io_context io;
        controller::AsyncProber prober(io);
        must(prober.start());
        asio::co_spawn(
            io,
            [&]() -> asio::awaitable<void> {
                found = co_await prober.round_trip(ns.ifindex("near"), 64, patience);
                prober.stop();
            },
            asio::detached);
        io.run();
        far.join();
    });
    return found;
}

}  // namespace

TEST_CASE("prober: an answer that takes longer than the wait between two tries counts") {
    const auto found = probed(1, 600ms, 3000ms);
    REQUIRE(found);
    CHECK(*found >= 600'000'000);
    CHECK(*found < 1'500'000'000);
}

TEST_CASE("prober: lost frames are sent again") {
    const auto found = probed(4, 0ms, 3000ms);
    REQUIRE(found);
    CHECK(*found < 100'000'000);
}

TEST_CASE("prober: patience ends") {
    const auto found = probed(1, 500ms, 300ms);
    REQUIRE_FALSE(found);
    CHECK(found.error().code() == Errc::timeout);
    CHECK(found.error().message() == "no answer to frames of 64 B within 300 ms");
}
