// Libvirt against a real libvirtd with a real QEMU (SeaBIOS only, TCG, no disk).
//
//   [ this test: io_context + Libvirt ] --unix socket-- [ libvirtd ] --monitor-- [ qemu: guest "vm" ]
//                                                            |                        |
//                                                   network banana-lab           tap vnet0
//                                                            `------ bridge bn-lab ---'      (down, as an anchor is)
//   all of it in one pid, mount, network and UTS namespace (test_libvirtd_host.h)
#include <libvirt/libvirt.h>

#include <map>
#include <optional>

#include <asio/co_spawn.hpp>
#include <asio/detached.hpp>
#include <asio/executor_work_guard.hpp>

#include "base/clock.h"
#include "controller/libvirt.h"
#include "tests/netns/test_libvirtd_host.h"

using namespace banana;
using namespace banana::controller;
using namespace std::chrono_literals;
using libvirtd_test::Daemon;

namespace {

constexpr const char* uuid = "0d4cbb4e-1b0c-4a3f-9c3e-3a6f8a1f0c01";

std::string domain_xml() {
    return std::string("<domain type='qemu'><name>vm</name><uuid>") + uuid +
           "</uuid><memory unit='MiB'>32</memory><vcpu>1</vcpu>"
           "<os><type arch='x86_64' machine='q35'>hvm</type></os><cpu mode='maximum' migratable='off'/><devices>"
           "<controller type='usb' model='none'/><controller type='pci' model='pcie-root'/>"
           "<controller type='pci' model='pcie-root-port'/><controller type='pci' model='pcie-root-port'/>"
           "<interface type='network'><source network='banana-lab'/><model type='virtio'/><rom enabled='no'/>"
           "<alias name='ua-net0'/></interface><memballoon model='none'/></devices></domain>";
}

std::string network_xml(const std::string& bridge, const std::string& corm = "hv/lab") {
    return "<network><name>banana-lab</name><metadata><banana:network xmlns:banana='urn:banana:1' corm='" + corm +
           "'/></metadata><forward mode='bridge'/><bridge name='" + bridge + "'/></network>";
}

struct World {
    World() : libvirt(io, "qemu:///system") {
        LibvirtHandlers handlers;
        handlers.on_connected = [this] { ++connected; };
        handlers.on_disconnected = [this](const std::string& reason) {
            ++disconnected;
            why = reason;
        };
        handlers.on_lifecycle = [this](const Domain& domain, int event, int detail) {
            ++seen[domain.name + " " + lifecycle_text(event, detail)];
        };
        handlers.on_qmp_event = [this](const Domain& domain, const std::string& name, int64_t seconds, int64_t micros,
                                       const Json& data) {
            ++seen[domain.uuid + " " + name];
            delay[name] = wall_ns() - (seconds * 1000000 + micros) * 1000;
            if (data.is_object()) last_data = data;
        };
        handlers.on_metadata = [this](const Domain& domain, const std::string& uri) {
            ++seen[domain.name + " " + uri];
        };
        handlers.on_device = [this](const Domain& domain, const std::string& alias, DeviceChange change) {
            ++seen[domain.name + (change == DeviceChange::added ? " +" : " -") + alias];
        };
        libvirt.start(std::move(handlers));
    }

    bool until(const std::function<bool()>& condition, std::chrono::seconds patience = 30s) {
        const auto deadline = std::chrono::steady_clock::now() + patience;
        auto work = asio::make_work_guard(io);
        io.restart();
        while (!condition() && std::chrono::steady_clock::now() < deadline) io.run_one_for(100ms);
        return condition();
    }
    bool sees(const std::string& event) {
        const bool seen_it = until([&] { return seen.contains(event); });
        if (!seen_it) {
            for (const auto& [name, count] : seen) fprintf(stderr, "  seen %d x %s\n", count, name.c_str());
        }
        return seen_it;
    }

    template <class T>
    Result<T> await(asio::awaitable<Result<T>> call) {
        std::optional<Result<T>> result;
        asio::co_spawn(
            io, [&, moved = std::move(call)]() mutable -> asio::awaitable<void> { result = co_await std::move(moved); },
            asio::detached);
        EXPECT(until([&] { return result.has_value(); }));
        return std::move(*result);
    }

    // A guest on banana-lab, running.
    void start_guest() {
        EXPECT_OK(await(libvirt.ensure_network("banana-lab", network_xml("bn-lab"))));
        libvirtd_test::write_file("/run/vm.xml", domain_xml());
        EXPECT(system("virsh -q define /run/vm.xml >/run/virsh.log 2>&1 && virsh -q start vm >>/run/virsh.log 2>&1 || "
                      "{ cat /run/virsh.log >&2; false; }") == 0);
    }

    asio::io_context io;
    Libvirt libvirt;
    int connected = 0, disconnected = 0;
    std::string why;
    std::map<std::string, int> seen;
    std::map<std::string, int64_t> delay;  // from QEMU's time stamp to the handler, in ns
    Json last_data;
};

int64_t elapsed_ms(const std::function<void()>& action) {
    const int64_t before = monotonic_ns();
    action();
    return (monotonic_ns() - before) / 1000000;
}

void events_and_calls() {
    World world;  // before libvirtd: it is found once it is there
    EXPECT(world.until(
        [&] { return !world.libvirt.problem().empty() && world.libvirt.problem() != "not connected yet"; }));
    Daemon daemon;
    daemon.start();
    EXPECT(world.until([&] { return world.connected == 1; }));
    world.start_guest();
    EXPECT(world.sees("vm started (booted)"));
    EXPECT(world.sees(std::string(uuid) + " RESUME"));

    EXPECT(system("virsh -q suspend vm &") == 0);  // in the background: the io_context is to run when STOP comes
    EXPECT(world.sees(std::string(uuid) + " STOP"));
    EXPECT(world.sees("vm suspended (paused)"));
    EXPECT(system("virsh -q resume vm") == 0);
    EXPECT(world.sees("vm resumed (unpaused)"));
    fprintf(stderr, "STOP reached its handler %.2f ms after QEMU's time stamp\n",
            static_cast<double>(world.delay["STOP"]) / 1e6);
    EXPECT(world.delay["STOP"] < 100'000'000);  // 0.4 ms on an idle machine; the bound is for a busy one

    auto job = world.await(world.libvirt.job(uuid));
    EXPECT_OK(job);
    EXPECT(!job->active && !job->migration_out);
    auto reply = world.await(world.libvirt.monitor_command(uuid, R"({"execute":"query-status"})"));
    EXPECT_OK(reply);
    EXPECT(reply->find("\"running\":true") != std::string::npos);
    auto refused = world.await(world.libvirt.monitor_command(uuid, "no json"));
    EXPECT(!refused.ok() && refused.error().message().find("send a monitor command to domain") == 0);

    EXPECT_OK(world.await(world.libvirt.set_metadata(uuid, "<domain><spike interface='net0'/></domain>",
                                                     VIR_DOMAIN_AFFECT_LIVE | VIR_DOMAIN_AFFECT_CONFIG)));
    EXPECT(world.sees("vm urn:banana:1"));
    for (unsigned flags : {0u, static_cast<unsigned>(VIR_DOMAIN_XML_INACTIVE)}) {
        auto xml = world.await(world.libvirt.domain_xml(uuid, flags));
        EXPECT_OK(xml);
        EXPECT(xml->find("<banana:spike interface=\"net0\"/>") != std::string::npos);
    }
    EXPECT(system("virsh -q attach-interface vm network banana-lab --model virtio --live --alias ua-net1 "
                  "|| virsh -q attach-interface vm network banana-lab --model virtio --live") == 0);
    EXPECT(world.until([&] { return world.seen.contains("vm +net1") || world.seen.contains("vm +ua-net1"); }));

    EXPECT(system("virsh -q destroy vm") == 0);
    EXPECT(world.sees("vm stopped (destroyed)"));
    auto state = world.await(world.libvirt.domain_state(uuid));
    EXPECT_OK(state);
    EXPECT(!state->active());
    EXPECT(elapsed_ms([&] { world.libvirt.stop(); }) < 250);
}

void networks() {
    Daemon daemon;
    daemon.start();
    World world;
    EXPECT(world.until([&] { return world.connected == 1; }));
    Libvirt& libvirt = world.libvirt;
    auto ensure = [&](const std::string& xml) {
        auto outcome = world.await(libvirt.ensure_network("banana-lab", xml));
        EXPECT_OK(outcome);
        return *outcome;
    };
    auto corm = [](const char* inactive) {
        return system((std::string("virsh -q net-dumpxml banana-lab ") + inactive + " | grep -q hv/lab").c_str()) == 0;
    };
    EXPECT(ensure(network_xml("bn-lab")) == NetworkOutcome::created);
    EXPECT(ensure(network_xml("bn-lab")) == NetworkOutcome::unchanged);
    EXPECT(ensure(network_xml("bn-lab", "hv/other")) == NetworkOutcome::changed);
    EXPECT(!corm("") && !corm("--inactive"));
    EXPECT(ensure(network_xml("bn-lab")) == NetworkOutcome::changed);
    EXPECT(system("virsh -q net-destroy banana-lab && virsh -q net-autostart banana-lab --disable") == 0);
    EXPECT(ensure(network_xml("bn-lab")) == NetworkOutcome::changed);
    auto list = world.await(libvirt.networks());
    EXPECT_OK(list);
    EXPECT(list->size() == 1 && list->front().active && list->front().autostart && list->front().ours);

    world.start_guest();
    EXPECT(ensure(network_xml("bn-lab", "hv/other")) == NetworkOutcome::pending);
    EXPECT(corm("") && !corm("--inactive"));  // the guest's network is as it was
    EXPECT(system("virsh -q net-port-list banana-lab | grep -q -") == 0);
    EXPECT(system("virsh -q destroy vm") == 0);
    EXPECT(ensure(network_xml("bn-lab", "hv/other")) == NetworkOutcome::changed);

    EXPECT(system("echo \"<network><name>theirs</name><forward mode='bridge'/><bridge name='bn-lab'/></network>\" "
                  ">/run/n.xml; virsh -q net-define /run/n.xml >/dev/null") == 0);
    std::string stolen = network_xml("bn-lab");
    stolen.replace(stolen.find("banana-lab"), 10, "theirs");
    auto taken = world.await(libvirt.ensure_network("theirs", stolen));
    EXPECT(!taken.ok() && taken.error().code() == Errc::exists);
    auto theirs = world.await(libvirt.remove_network("theirs"));
    EXPECT(!theirs.ok() && theirs.error().code() == Errc::refused);
    EXPECT_OK(world.await(libvirt.remove_network("banana-lab")));
    EXPECT_OK(world.await(libvirt.remove_network("banana-lab")));
    list = world.await(libvirt.networks());
    EXPECT_OK(list);
    EXPECT(list->size() == 1 && list->front().name == "theirs" && !list->front().ours);
}

void restarts() {
    Daemon daemon;
    daemon.start();
    World world;
    EXPECT(world.until([&] { return world.connected == 1; }));
    world.start_guest();
    daemon.kill_and_wait();
    EXPECT(world.until([&] { return world.disconnected == 1; }));
    EXPECT(!world.why.empty() && !world.libvirt.connected());
    auto lost = world.await(world.libvirt.domains());
    EXPECT(!lost.ok() && lost.error().code() == Errc::unreachable);
    daemon.start();
    EXPECT(world.until([&] { return world.connected == 2; }));
    world.seen.clear();
    EXPECT(system("virsh -q suspend vm") == 0);  // the same QEMU, and events flow again
    EXPECT(world.sees(std::string(uuid) + " STOP"));
    EXPECT(world.seen[std::string(uuid) + " STOP"] == 1);
    auto state = world.await(world.libvirt.domain_state(uuid));
    EXPECT_OK(state);
    EXPECT(state->text() == "paused (user)");
}

void hangs() {
    Daemon daemon;
    daemon.start();
    World world;
    EXPECT(world.until([&] { return world.connected == 1; }));
    daemon.send(SIGSTOP);
    // More calls than workers, each ended by its own deadline.
    int timeouts = 0, others = 0;
    auto ask = [&](Libvirt::Milliseconds deadline) -> asio::awaitable<void> {
        auto result = co_await world.libvirt.domains(deadline);
        ++(!result && result.error().code() == Errc::timeout ? timeouts : others);
    };
    const int64_t waited = elapsed_ms([&] {
        for (int i = 0; i < 8; ++i) asio::co_spawn(world.io, ask(300ms), asio::detached);
        EXPECT(world.until([&] { return timeouts + others == 8; }));
    });
    EXPECT(timeouts == 8);
    EXPECT(waited < 2000);
    daemon.send(SIGCONT);
    EXPECT_OK(world.await(world.libvirt.domains()));  // late answers confuse nobody

    daemon.send(SIGSTOP);
    asio::co_spawn(world.io, ask(60s), asio::detached);
    world.io.restart();
    world.io.poll();
    EXPECT(elapsed_ms([&] { world.libvirt.stop(); }) < 1000);
    EXPECT(world.until([&] { return others == 1; }, 5s));  // it ends now, not at its deadline
}

void gives_up_on_one_that_hangs() {
    Daemon daemon;
    daemon.start();
    World world;
    EXPECT(world.until([&] { return world.connected == 1; }));
    daemon.send(SIGSTOP);
    EXPECT(world.until([&] { return world.disconnected == 1; }, 40s));
    EXPECT(world.why == "libvirtd does not answer");
    daemon.send(SIGCONT);
    EXPECT(world.until([&] { return world.connected == 2; }));
    EXPECT_OK(world.await(world.libvirt.domains()));
}

}  // namespace

TEST_CASE("libvirtd: events reach us, calls work, also if it starts after us") {
    libvirtd_test::in_host(events_and_calls);
}
TEST_CASE("libvirtd: networks are made and changed without disturbing guests") { libvirtd_test::in_host(networks); }
TEST_CASE("libvirtd: killed and started again: connected again, the guest is the same") {
    libvirtd_test::in_host(restarts);
}
TEST_CASE("libvirtd: hanging: deadlines hold and stop is quick") { libvirtd_test::in_host(hangs); }
TEST_CASE("libvirtd: hanging for long: the connection is given up, and made again") {
    libvirtd_test::in_host(gives_up_on_one_that_hangs);
}
