#include "controller/daemon.h"

#include <fmt/core.h>
#include <libvirt/libvirt.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>

#include <asio/posix/stream_descriptor.hpp>
#include <asio/redirect_error.hpp>
#include <asio/signal_set.hpp>
#include <asio/use_awaitable.hpp>

#include "base/clock.h"
#include "controller/guests.h"
#include "controller/handover.h"
#include "controller/views.h"
#include "netlink/monitor.h"
#include "peer/control_server.h"

namespace banana::controller {

namespace {

Status make_directory(const std::string& path) {
    if (mkdir(path.c_str(), 0700) == 0 || errno == EEXIST) return {};
    return errno_error(errno, "create directory " + path);
}

// Under another name none of the Corms would be this host's, and their bridges, which may bear its addresses, would be
// taken for what nobody wants.
Status check_name(registry::Store& store, const std::string& path, const std::string& host) {
    const auto whose = store.claim(host);
    if (!whose) return whose.error();
    if (*whose == host) return {};
    return Error(Errc::invalid,
                 fmt::format("{} has the records of host {}, but bananad.toml says host = \"{}\"; nothing was changed. "
                             "Put host = \"{}\" back. To rename this host, first end or migrate its guests, and "
                             "disconnect and delete its Corms under the old name; then stop bananad and remove {}*",
                             path, *whose, host, *whose, path));
}

wiring::EngineOptions engine_options(const Config& config, const Options& options) {
    wiring::EngineOptions out;
    out.bpf_dir = options.bpf_dir;
    out.vxlan_port = config.vxlan_port;
    return out;
}

void observe_state_machines() {
    model::observe_phases([](const model::Wire& wire, model::Phase before, model::Phase after) {
        log::info("wire {}: {} -> {}", wire.name, model::phase_name(before), model::phase_name(after));
    });
    model::observe_states([](const model::Spike& spike, model::SpikeState before, model::SpikeState after) {
        log::info("Spike {}: {} -> {}", spike.name, model::spike_state_name(before), model::spike_state_name(after));
    });
}

}  // namespace

struct Daemon::Impl {
    Impl(Config c, Options o) : config(std::move(c)), options(std::move(o)), signals(io), monitor_fd(io), ring_fd(io) {}

    Status open();
    Status reconcile();
    Status listen();
    void start_libvirt();
    asio::awaitable<void> settle_loop();
    asio::awaitable<void> filter_loop();
    asio::awaitable<void> monitor_loop();
    asio::awaitable<void> verify_loop();
    asio::awaitable<void> ring_loop();
    asio::awaitable<void> signal_loop();
    void link_event(const netlink::Event& event);
    void stop();

    asio::io_context io{1};
    Config config;
    Options options;
    asio::signal_set signals;
    asio::posix::stream_descriptor monitor_fd, ring_fd;

    std::optional<netlink::Monitor> monitor;
    std::optional<migration::Grants> grants;
    std::unique_ptr<Node> node;
    std::unique_ptr<Corms> corms;
    std::unique_ptr<Wires> wires;
    std::unique_ptr<Spikes> spikes;
    std::unique_ptr<Handover> handover;
    std::unique_ptr<Guests> guests;
    std::unique_ptr<Views> views;
    std::unique_ptr<rpc::ControlServer> control;
};

Daemon::Daemon(Config config, Options options) : impl_(std::make_unique<Impl>(std::move(config), std::move(options))) {}
Daemon::~Daemon() = default;

// Everything that belongs to this host alone.
Status Daemon::Impl::open() {
    TRY(make_directory(options.state_dir));
    TRY(make_directory(options.run_dir));
    const std::string path = options.state_dir + "/state.db";
    TRY_SET(auto store, registry::Store::open(path));
    TRY(check_name(store, path, config.host));
    TRY_SET(auto engine, wiring::Engine::open(engine_options(config, options)));
    TRY_SET(monitor, netlink::Monitor::open());
    node = std::make_unique<Node>(io, config, std::move(engine), std::move(store));
    corms = std::make_unique<Corms>(*node);
    wires = std::make_unique<Wires>(*node, *corms, *grants);
    spikes = std::make_unique<Spikes>(*node, *corms, *wires);
    handover = std::make_unique<Handover>(*node, *spikes, *grants);
    guests = std::make_unique<Guests>(*node, *corms, *spikes, *handover);
    views = std::make_unique<Views>(*node, *corms, *wires, *spikes, *grants, options);
    corms->wires_of = [this](const std::string& corm) { return wires->names_on(corm); };
    corms->local_spikes_of = [this](const std::string& corm) { return spikes->names_on(corm); };
    handover->on_active = [this](const std::string& uuid) { guests->settled(uuid); };
    TRY(node->tunnel.load());
    TRY(corms->load());
    TRY(wires->load());
    return spikes->load();
}

// The kernel has what it had when the last bananad ended, less what a reboot or somebody's hand took away.
Status Daemon::Impl::reconcile() {
    wires->drop_stale_devices();
    spikes->drop_stale_devices();
    spikes->choose_stages();
    wiring::Plan plan = corms->plan();
    plan += wires->plan();
    plan += spikes->plan();
    // One part that cannot be had (an uplink that is gone) must not keep the others from being repaired.
    if (const Status all = node->engine.realise(plan); !all) {
        log::error("reconcile: {}", all.error().message());
        for (const auto& corm : corms->all()) {
            wiring::Plan one = wiring::plan_anchor(corm);
            if (corm.host == config.host) one += wiring::plan_corm(corm);
            if (const Status done = node->engine.realise(one); !done)
                log::error("Corm {}: {}", corm.full_name(), done.error().message());
            else if (corm.host == config.host)
                corms->make_room(corm);
        }
        wires->table().each([&](const model::Wire& wire) {
            const auto* corm = corms->by_name(wire.corm);
            if (corm == nullptr || wire.phase == model::Phase::idle) return;
            if (const Status done = node->engine.realise(wiring::plan_wire(node->site(), *corm, wire)); !done)
                log::error("wire {}: {}", wire.name, done.error().message());
        });
        spikes->table().each([&](const model::Spike& spike) {
            if (spike.state == model::SpikeState::unwired) return;
            if (const Status done = node->engine.realise(wiring::plan_spike(node->site(), spike)); !done)
                log::error("Spike {}: {}", spike.name, done.error().message());
        });
    }
    spikes->stage_all();
    corms->restore_addresses();
    if (node->records_ignored) {
        log::warning("nothing is swept: some records could not be read");
        return {};
    }
    TRY_SET(const auto removed, node->engine.sweep(plan));
    for (const auto& what : removed) log::notice("removed what no record wants: {}", what);
    return {};
}

Status Daemon::Impl::listen() {
    corms->serve();
    wires->serve();
    spikes->serve();
    handover->serve();
    guests->serve();
    views->serve();
    TRY(node->prober.start());
    rpc::ControlOptions control_options;
    control_options.path = options.control_socket();
    control = std::make_unique<rpc::ControlServer>(io, control_options, node->control);
    TRY(control->start());
    node->peers.on_up([this](const std::string& peer) {
        node->refresh_underlay();
        node->peer_changed(peer);
        corms->peer_up(peer);
        spikes->verify_with(peer);
        wires->verify_with(peer);
        if (node->libvirt.connected()) guests->look_again();
    });
    node->peers.on_changed([this](const std::string& peer) { node->peer_changed(peer); });
    node->tunnel.start(options.run_dir, [this] { node->tell_abilities(); });
    return node->peers.start();
}

void Daemon::Impl::start_libvirt() {
    LibvirtHandlers handlers;
    handlers.on_connected = [this] {
        log::info("libvirt: connected to {}", config.libvirt_uri);
        corms->libvirt_up();
        guests->connected();
    };
    handlers.on_disconnected = [](const std::string& why) { log::warning("libvirt: {}", why); };
    handlers.on_lifecycle = [this](const Domain& domain, int event, int detail) {
        log::debug("domain {}: {}", domain.name, lifecycle_text(event, detail));
        if (event == VIR_DOMAIN_EVENT_STOPPED) guests->stopped(domain);
    };
    handlers.on_qmp_event = [this](const Domain& domain, const std::string& name, int64_t, int64_t, const Json& data) {
        handover->qmp_event(domain, name, data);
    };
    handlers.on_metadata = [this](const Domain& domain, const std::string& uri) {
        if (uri == metadata_uri) guests->metadata_changed(domain);
    };
    handlers.on_device = [this](const Domain& domain, const std::string&, DeviceChange change) {
        if (change == DeviceChange::added) guests->device_added(domain);
    };
    handlers.on_network = [this](const std::string& name, int event) {
        if (event == VIR_NETWORK_EVENT_STOPPED || event == VIR_NETWORK_EVENT_UNDEFINED) corms->network_event(name);
    };
    node->libvirt.start(std::move(handlers));
}

Status Daemon::load_certificates() {
    Impl& d = *impl_;
    const auto& tls = d.config.tls;
    auto loaded = migration::Grants::load({tls.ca, tls.certificate, tls.key});
    if (!loaded)
        return loaded.error().context(fmt::format("this host's certificate (banana pki issue {})", d.config.host));
    d.grants = std::move(*loaded);
    return {};
}

Status Daemon::start() {
    Impl& d = *impl_;
    observe_state_machines();
    TRY(d.open());
    TRY(d.reconcile());
    TRY(d.listen());
    d.monitor_fd.assign(dup(d.monitor->fd()));
    d.ring_fd.assign(dup(d.node->engine.crossconnect().events_fd()));
    d.node->spawn(d.spikes->settle(), "giving up what was half built");
    d.node->spawn(d.verify_loop(), "asking for wires' other sides");
    d.node->spawn(d.spikes->retry_loop(), "telling of releases");
    d.node->spawn(d.monitor_loop(), "link monitor");
    d.node->spawn(d.ring_loop(), "first-frame reports");
    d.signals.add(SIGTERM);
    d.signals.add(SIGINT);
    d.node->spawn(d.settle_loop(), "settling ports");
    d.node->spawn(d.filter_loop(), "looking after the VXLAN filter");
    d.node->spawn(d.signal_loop(), "signals");
    d.start_libvirt();
    sd_notify(0, "READY=1");
    log::info("bananad {} of host {} is ready: {} Corms, {} wires, {} Spikes", BANANA_VERSION, d.config.host,
              d.corms->all().size(), d.wires->table().size(), d.spikes->table().size());
    return {};
}

void Daemon::run() { impl_->io.run(); }

asio::awaitable<void> Daemon::Impl::signal_loop() {
    asio::error_code error;
    const int number = co_await signals.async_wait(asio::redirect_error(asio::use_awaitable, error));
    if (error) co_return;
    log::info("ends on signal {}; traffic goes on", number);
    sd_notify(0, "STOPPING=1");
    stop();
}

void Daemon::Impl::stop() {
    control->stop();
    node->peers.stop();
    node->libvirt.stop();
    node->prober.stop();
    node->tunnel.stop();
    asio::error_code ignored;
    monitor_fd.close(ignored);
    ring_fd.close(ignored);
    // Coroutines that sleep or wait would hold the loop: what they were to do is done by the next start's reconcile.
    io.stop();
}

void Daemon::Impl::link_event(const netlink::Event& event) {
    using Kind = netlink::Event::Kind;
    if (event.kind == Kind::link_set) {
        guests->link_set(*event.link);
        corms->link_set(*event.link);
        spikes->link_set(*event.link);
    } else if (event.kind == Kind::link_deleted) {
        node->engine.link_gone(event.link->index);
        guests->link_deleted(event.link->name);
    } else if (event.kind == Kind::resync) {
        log::warning("link events were lost; looking at everything again");
        node->engine.forget_names();
        if (const Status again = reconcile(); !again) log::error("{}", again.error().message());
        guests->connected();
    }
}

// What two hosts have may come apart at any time: an answer that is lost is enough.
asio::awaitable<void> Daemon::Impl::verify_loop() {
    constexpr milliseconds pause{60'000};
    for (;; co_await node->sleep(pause)) {
        wires->verify_with(node->config.host);
        spikes->verify_with(node->config.host);
        for (const auto& peer : node->config.peers) {
            if (!node->peers.is_up(peer.name)) continue;
            wires->verify_with(peer.name);
            spikes->verify_with(peer.name);
        }
    }
}

// What has time, and keeps others waiting: none of it while a hand-over is under way. A port takes the RTNL lock for
// the length of an RCU grace period, one at a time; the records' checkpoint waits for the disk.
asio::awaitable<void> Daemon::Impl::settle_loop() {
    constexpr milliseconds idle{1000}, pause{100};
    std::string told;
    for (;;) {
        co_await node->sleep(node->engine.unsettled() == 0 ? idle : pause);
        if (wires->handing_over() || spikes->handing_over()) continue;
        if (const auto settled = node->engine.settle_port(monotonic_ns()); !settled)
            log::warning("{}", settled.error().message());
        if (!node->store.wants_checkpoint()) continue;
        const Status done = node->store.checkpoint();
        const std::string problem = done ? "" : done.error().message();
        if (!problem.empty() && problem != told) log::warning("state: {}", problem);
        told = problem;
    }
}

// `nft flush ruleset`, which restarting nftables.service is, takes our table too: until it is back, VXLAN frames of our
// VNIs are let in from anywhere.
asio::awaitable<void> Daemon::Impl::filter_loop() {
    constexpr milliseconds look{2000};
    std::string told;  // what fails again and again is said once
    for (;;) {
        co_await node->sleep(look);
        const auto mended = node->engine.filter().mend();
        if (mended && *mended)
            log::warning(
                "nftables: somebody took the table `banana`, or its rules, away (nft flush ruleset?); it is made anew");
        const std::string problem = mended ? "" : mended.error().message();
        if (!problem.empty() && problem != told) log::error("{}", problem);
        told = problem;
    }
}

asio::awaitable<void> Daemon::Impl::monitor_loop() {
    for (;;) {
        asio::error_code error;
        co_await monitor_fd.async_wait(asio::posix::stream_descriptor::wait_read,
                                       asio::redirect_error(asio::use_awaitable, error));
        if (error) co_return;
        const auto events = monitor->read();
        if (!events) {
            log::error("{}", events.error().message());
            co_return;
        }
        for (const auto& event : *events) link_event(event);
    }
}

asio::awaitable<void> Daemon::Impl::ring_loop() {
    for (;;) {
        asio::error_code error;
        co_await ring_fd.async_wait(asio::posix::stream_descriptor::wait_read,
                                    asio::redirect_error(asio::use_awaitable, error));
        if (error) co_return;
        const auto reports = node->engine.crossconnect().read_events();
        if (!reports) {
            log::error("{}", reports.error().message());
            co_return;
        }
        for (const auto& report : *reports) handover->first_frame(report);
    }
}

}  // namespace banana::controller
