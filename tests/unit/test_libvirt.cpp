// Libvirt against libvirt's own test driver: no daemon, one process-wide host with the running domain "test" and the
// network "default". What that driver cannot do (QMP, jobs, redefined networks, hanging, restarts) is tested in
// tests/netns/test_libvirtd.cpp.
#include "controller/libvirt.h"

#include <doctest/doctest.h>
#include <libvirt/libvirt.h>

#include <functional>
#include <optional>
#include <set>

#include <asio/co_spawn.hpp>
#include <asio/detached.hpp>
#include <asio/executor_work_guard.hpp>
#include <asio/steady_timer.hpp>
#include <asio/use_awaitable.hpp>

#include "controller/libvirt_handle.h"

using namespace banana;
using namespace banana::controller;
using namespace std::chrono_literals;

namespace {

constexpr const char* test_uri = "test:///default";

// An io_context with one Libvirt on it; what happened is kept.
struct World {
    explicit World(const std::string& uri = test_uri) : libvirt(io, uri) {}

    void start() {
        LibvirtHandlers handlers;
        handlers.on_connected = [this] { ++connected; };
        handlers.on_disconnected = [this](const std::string&) { ++disconnected; };
        handlers.on_lifecycle = [this](const Domain& domain, int event, int detail) {
            events.insert(domain.name + " " + lifecycle_text(event, detail));
        };
        handlers.on_metadata = [this](const Domain& domain, const std::string& uri) {
            events.insert(domain.name + " " + uri);
        };
        handlers.on_network = [this](const std::string& name, int event) {
            events.insert(name + " " + std::to_string(event));
        };
        libvirt.start(std::move(handlers));
    }

    bool until(const std::function<bool()>& condition) {
        const auto deadline = std::chrono::steady_clock::now() + 10s;
        auto work = asio::make_work_guard(io);
        io.restart();
        while (!condition() && std::chrono::steady_clock::now() < deadline) io.run_one_for(100ms);
        return condition();
    }

    template <class T>
    Result<T> await(asio::awaitable<Result<T>> call) {
        std::optional<Result<T>> result;
        asio::co_spawn(
            io, [&, moved = std::move(call)]() mutable -> asio::awaitable<void> { result = co_await std::move(moved); },
            asio::detached);
        REQUIRE(until([&] { return result.has_value(); }));
        return std::move(*result);
    }

    asio::io_context io;
    Libvirt libvirt;
    int connected = 0, disconnected = 0;
    std::multiset<std::string> events;
};

std::string network_xml(const std::string& bridge, const std::string& corm = "hv1/lab") {
    return "<network><name>banana-lab</name><metadata><banana:network xmlns:banana='urn:banana:1' corm='" + corm +
           "'/></metadata><forward mode='bridge'/><bridge name='" + bridge + "'/></network>";
}

}  // namespace

TEST_CASE("libvirt: no URI means not used") {
    World world("");
    world.start();
    CHECK_FALSE(world.libvirt.used());
    auto domains = world.await(world.libvirt.domains());
    REQUIRE_FALSE(domains.ok());
    CHECK(domains.error().code() == Errc::unreachable);
    CHECK(domains.error().message() == "list domains: libvirt: [libvirt] uri in bananad.toml is empty");
    CHECK(world.connected == 0);
}

TEST_CASE("libvirt: a daemon that is not there is looked for again, and the reason is told") {
    World world("qemu+unix:///system?socket=/nonexistent/libvirt-sock");
    world.start();
    CHECK(world.until([&] { return world.libvirt.problem().find("/nonexistent/libvirt-sock") != std::string::npos; }));
    auto domains = world.await(world.libvirt.domains());
    REQUIRE_FALSE(domains.ok());
    CHECK(domains.error().code() == Errc::unreachable);
    CHECK(domains.error().message().find("connect to libvirt at qemu+unix:///system") != std::string::npos);
}

TEST_CASE("libvirt: domains, their state and definition") {
    World world;
    world.start();
    REQUIRE(world.until([&] { return world.connected == 1; }));
    CHECK(world.libvirt.problem().empty());
    auto domains = world.await(world.libvirt.domains());
    REQUIRE(domains.ok());
    REQUIRE(domains->size() == 1);
    const Domain test = domains->front().domain;
    CHECK(test.name == "test");
    CHECK(domains->front().state.active());
    CHECK(domains->front().state.text() == "running");
    auto state = world.await(world.libvirt.domain_state(test.uuid));
    REQUIRE(state.ok());
    CHECK(state->state == VIR_DOMAIN_RUNNING);
    auto xml = world.await(world.libvirt.domain_xml(test.uuid));
    REQUIRE(xml.ok());
    CHECK(xml->find("<uuid>" + test.uuid) != std::string::npos);

    auto missing = world.await(world.libvirt.domain_state("00000000-1111-2222-3333-444444444444"));
    REQUIRE_FALSE(missing.ok());
    CHECK(missing.error().code() == Errc::not_found);
    CHECK(missing.error().message().find("read the state of domain 00000000-1111-2222-3333-444444444444: ") == 0);
    auto monitor = world.await(world.libvirt.monitor_command(test.uuid, "{}"));
    REQUIRE_FALSE(monitor.ok());
    CHECK(monitor.error().code() == Errc::unsupported);
}

TEST_CASE("libvirt: metadata is written, announced, read and removed") {
    World world;
    world.start();
    REQUIRE(world.until([&] { return world.connected == 1; }));
    auto domains = world.await(world.libvirt.domains());
    REQUIRE((domains.ok() && domains->size() == 1));
    const std::string uuid = domains->front().domain.uuid;
    CHECK(*world.await(world.libvirt.get_metadata(uuid)) == "");
    constexpr unsigned both = VIR_DOMAIN_AFFECT_LIVE | VIR_DOMAIN_AFFECT_CONFIG;
    REQUIRE(world.await(world.libvirt.set_metadata(uuid, "<domain><spike interface='net0'/></domain>", both)).ok());
    CHECK(world.until([&] { return world.events.contains("test urn:banana:1"); }));
    auto metadata = world.await(world.libvirt.get_metadata(uuid));
    REQUIRE(metadata.ok());
    CHECK(metadata->find("interface=\"net0\"") != std::string::npos);
    for (unsigned flags : {0u, static_cast<unsigned>(VIR_DOMAIN_XML_INACTIVE)}) {
        auto xml = world.await(world.libvirt.domain_xml(uuid, flags));
        REQUIRE(xml.ok());
        CHECK(xml->find("<banana:domain xmlns:banana=\"urn:banana:1\">") != std::string::npos);
    }
    REQUIRE(world.await(world.libvirt.set_metadata(uuid, "", both)).ok());
    CHECK(*world.await(world.libvirt.get_metadata(uuid)) == "");
}

TEST_CASE("libvirt: lifecycle events come from connected on") {
    World world;
    world.start();
    REQUIRE(world.until([&] { return world.connected == 1; }));
    const ConnectionOwner other(virConnectOpen(test_uri));  // the test driver's host is the process's
    REQUIRE(other);
    const DomainOwner domain(virDomainLookupByName(other.get(), "test"));
    REQUIRE(domain);
    CHECK(virDomainSuspend(domain.get()) == 0);
    CHECK(virDomainResume(domain.get()) == 0);
    CHECK(world.until([&] { return world.events.contains("test resumed (unpaused)"); }));
    CHECK(world.events.contains("test suspended (paused)"));
    world.libvirt.stop();
    world.events.clear();
    CHECK(virDomainSuspend(domain.get()) == 0);
    CHECK(virDomainResume(domain.get()) == 0);
    world.io.restart();
    world.io.run_for(50ms);
    CHECK(world.events.empty());
}

TEST_CASE("libvirt: a network is made and listed; wrong definitions are refused") {
    World world;
    world.start();
    REQUIRE(world.until([&] { return world.connected == 1; }));
    Libvirt& libvirt = world.libvirt;
    auto ensure = [&](const std::string& name, const std::string& xml) {
        return world.await(libvirt.ensure_network(name, xml));
    };
    auto outcome = ensure("banana-lab", network_xml("bn-lab"));
    REQUIRE_MESSAGE(outcome.ok(), (outcome.ok() ? "" : outcome.error().message()));
    CHECK(*outcome == NetworkOutcome::created);
    CHECK(
        world.until([&] { return world.events.contains("banana-lab " + std::to_string(VIR_NETWORK_EVENT_STARTED)); }));
    auto networks = world.await(libvirt.networks());
    REQUIRE(networks.ok());
    int ours = 0;
    for (const NetworkEntry& entry : *networks) {
        if (!entry.ours) continue;
        ++ours;
        CHECK(entry.name == "banana-lab");
        CHECK(entry.bridge == "bn-lab");
        CHECK(entry.active);
        CHECK(entry.autostart);
    }
    CHECK(ours == 1);

    CHECK(ensure("banana-x", network_xml("bn-lab")).error().code() == Errc::invalid);
    CHECK(ensure("banana-lab", "<network><name>banana-lab</name></network>").error().code() == Errc::invalid);
    CHECK(world.await(libvirt.remove_network("absent")).ok());
    const ConnectionOwner other(virConnectOpen(test_uri));
    const NetworkOwner made(virNetworkLookupByName(other.get(), "banana-lab"));
    REQUIRE(made);
    CHECK(virNetworkDestroy(made.get()) == 0);
    CHECK(virNetworkUndefine(made.get()) == 0);
}

TEST_CASE("libvirt: stop ends what is awaited, also when called by a handler") {
    asio::io_context io;
    Libvirt libvirt(io, test_uri);
    int connected = 0;
    std::optional<Errc> ended;
    LibvirtHandlers handlers;
    handlers.on_connected = [&] {
        ++connected;
        asio::co_spawn(
            io,
            [&]() -> asio::awaitable<void> {
                auto result = co_await libvirt.domains();
                if (!result) ended = result.error().code();
            },
            asio::detached);
        libvirt.stop();
    };
    libvirt.start(std::move(handlers));
    auto work = asio::make_work_guard(io);
    const auto deadline = std::chrono::steady_clock::now() + 10s;
    while (!ended && std::chrono::steady_clock::now() < deadline) io.run_one_for(100ms);
    CHECK(connected == 1);
    CHECK(ended == Errc::unreachable);
    CHECK_FALSE(libvirt.connected());
}

TEST_CASE("libvirt: events and states in words") {
    CHECK(lifecycle_text(VIR_DOMAIN_EVENT_STOPPED, VIR_DOMAIN_EVENT_STOPPED_MIGRATED) == "stopped (migrated)");
    CHECK(lifecycle_text(VIR_DOMAIN_EVENT_SUSPENDED, VIR_DOMAIN_EVENT_SUSPENDED_POSTCOPY_FAILED) ==
          "suspended (post-copy failed)");
    CHECK(lifecycle_text(VIR_DOMAIN_EVENT_CRASHED, VIR_DOMAIN_EVENT_CRASHED_PANICKED) == "crashed (panicked)");
    CHECK(lifecycle_text(VIR_DOMAIN_EVENT_STOPPED, 99) == "stopped (99)");
    CHECK(lifecycle_text(99, 1) == "event 99");
    CHECK(DomainState{VIR_DOMAIN_PAUSED, VIR_DOMAIN_PAUSED_MIGRATION}.text() == "paused (migration)");
    CHECK(DomainState{VIR_DOMAIN_PMSUSPENDED, 0}.active());
    CHECK_FALSE(DomainState{VIR_DOMAIN_SHUTOFF, 0}.active());
}
