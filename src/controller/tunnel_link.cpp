// The connection to banana-tunneld: made, kept, made again.
//
// Every wait has an end: TunnelChannel gives up one that does not answer. A process that was started here and ended is
// started again at once; if it ends soon after, less and less often.

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <asio/posix/stream_descriptor.hpp>
#include <asio/redirect_error.hpp>
#include <asio/use_awaitable.hpp>
#include <csignal>

#include "base/bytes.h"
#include "base/clock.h"
#include "controller/tunnel.h"
#include "peer/spawn.h"
#include "tunnel/control.h"
#include "tunnel/udp.h"

namespace banana::controller {

using std::chrono::milliseconds;

namespace {

constexpr milliseconds first_redial{50}, longest_redial{1000};
constexpr milliseconds starting{3000};  // from the start of a process until its socket is there
constexpr milliseconds grace{1600};     // a little more than end() allows
constexpr size_t socket_bytes = 8 << 20;
constexpr const char* unit_socket = "/run/banana-tunneld/control.sock";

bool under_systemd() { return getenv("NOTIFY_SOCKET") != nullptr; }

Json settings(const Config& config) {
    Json cpus = Json::array();
    for (const uint32_t cpu : config.tunnel.cpus) cpus.push(cpu);
    return Json::object({{"address", config.underlay.text()},
                         {"port", int{config.tunnel.port}},
                         {"lanes", config.tunnel.lanes},
                         {"cpus", cpus},
                         {"poll", config.tunnel.poll},
                         {"rekey_seconds", config.tunnel.rekey_seconds},
                         {"rekey_records", config.tunnel.rekey_records}});
}

bool same_settings(const Json& wanted, const Json& now) {
    const auto keys = wanted.keys();
    return std::all_of(keys.begin(), keys.end(), [&](const std::string& key) {
        return wanted.get(key.c_str()).dump() == now.get(key.c_str()).dump();
    });
}

Result<std::vector<Fd>> open_sockets(const Config& config) {
    TRY_SET(auto lanes,
            tunnel::open_lane_sockets(config.underlay, config.tunnel.port, config.tunnel.lanes, socket_bytes));
    std::vector<Fd> out;
    for (auto& lane : lanes) {
        out.push_back(std::move(lane.listening));
        out.push_back(std::move(lane.dialling));
    }
    return out;
}

}  // namespace

void Tunnel::start(const std::string& run_dir, std::function<void()> on_changed) {
    on_changed_ = std::move(on_changed);
    log_ = run_dir + "/tunneld.log";
    socket_ = config_.tunnel.socket;
    if (socket_.empty()) socket_ = starts_process() ? run_dir + "/tunneld.sock" : unit_socket;
    rpc::spawn(io_.get_executor(), run(), "tunnel");
}

void Tunnel::stop() {
    stopped_ = true;
    pause_.cancel();
    retry_.cancel();
    if (channel_) channel_->close();
    wake();
}

bool Tunnel::starts_process() const {
    if (config_.tunnel.spawn == TunnelConfig::Spawn::automatic) return !under_systemd();
    return config_.tunnel.spawn == TunnelConfig::Spawn::always;
}

void Tunnel::to(State next, const std::string& problem) {
    const State before = std::exchange(state_, next);
    if (next != State::joining) problem_ = problem;
    // Attempts may follow each other for days: one that ends as the last one did is no news.
    if (next == State::ready) log::info("tunnel: ready ({} wires)", slots_.size());
    if (next == State::away && problem != logged_) log::warning("tunnel: {}", problem);
    if (next != State::joining) logged_ = problem;
    if (before == State::ready) begin_grace();
    wake();
    if (on_changed_) on_changed_();
}

void Tunnel::begin_grace() {
    lost_ns_ = monotonic_ns();
    rpc::spawn(io_.get_executor(), outlast_grace(lost_ns_), "tunnel's grace");
}

asio::awaitable<void> Tunnel::outlast_grace(int64_t lost_ns) {
    asio::steady_timer timer(io_, grace);
    asio::error_code ignored;
    co_await timer.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
    if (!stopped_ && state_ != State::ready && lost_ns_ == lost_ns && on_changed_) on_changed_();
}

asio::awaitable<void> Tunnel::run() {
    for (milliseconds pause = first_redial; !stopped_;) {
        const Status served = co_await serve();
        if (stopped_) co_return;
        if (state_ == State::ready) pause = first_redial;
        wires_known_ = false;
        channel_.reset();
        peer_states_.clear();
        to(State::away, served ? "banana-tunneld ended the connection" : served.error().message());
        pause_.expires_after(is_starting() ? first_redial : pause);
        if (!is_starting()) pause = std::min(pause * 2, longest_redial);
        asio::error_code ignored;
        co_await pause_.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
    }
}

// One attempt. Whatever ends it is the error.
asio::awaitable<Result<void>> Tunnel::serve() {
    auto connected = connect();
    if (!connected) co_return connected.error();
    channel_ = *connected;
    asio::steady_timer ended(io_, asio::steady_timer::time_point::max());
    std::optional<Error> why;
    channel_->start([this](const Json& message) { event(message); },
                    [&](const Error& error) {
                        why = error;
                        ended.cancel();
                    });
    const Status joined = co_await join();
    if (!joined) {
        channel_->close();
        co_return why ? *why : joined.error();
    }
    if (!why) to(State::ready, "");
    asio::error_code ignored;
    while (!why && !stopped_) co_await ended.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
    co_return why ? *why : Error(Errc::unreachable, "bananad ends");
}

Result<std::shared_ptr<TunnelChannel>> Tunnel::connect() {
    auto channel = TunnelChannel::connect(io_, socket_);
    if (channel || !starts_process()) return channel;
    if (is_starting()) return Error(Errc::unreachable, problem_);
    if (process_ && !process_->ended()) {
        return channel.error().context(fmt::format("banana-tunneld runs (process {})", process_->pid()));
    }
    std::string died = problem_;
    if (process_) died = fmt::format("banana-tunneld ended ({}): {}", process_->how(), last_line(log_));
    process_.reset();
    if (const Status begun = start_process(); !begun) return begun.error();
    return Error(Errc::unreachable, died);
}

// Its socket may not be there yet.
bool Tunnel::is_starting() {
    return process_ && !process_->ended() && std::chrono::nanoseconds(monotonic_ns() - process_started_ns_) < starting;
}

Status Tunnel::start_process() {
    const auto& own = config_.tunnel;
    for (const auto* file : {&own.certificate, &own.key})
        if (access(file->c_str(), R_OK) < 0)
            return errno_error(errno, "no certificate for the tunnel (banana pki issue " + config_.host +
                                          " --role tunnel): read " + *file);
    TRY_SET(const std::string program, tunnel_program());
    constexpr const char* levels[] = {"debug", "info", "notice", "warning", "error"};
    const std::vector<std::string> arguments{program,
                                             "--socket",
                                             socket_,
                                             "--certificate",
                                             own.certificate,
                                             "--key",
                                             own.key,
                                             "--ca",
                                             config_.tls.ca,
                                             "--log-level",
                                             levels[static_cast<size_t>(config_.log_level)]};
    TRY_SET(process_, TunnelProcess::start(arguments, log_));
    process_started_ns_ = monotonic_ns();
    rpc::spawn(io_.get_executor(), outlive(Fd(::dup(process_->pidfd().get()))), "banana-tunneld's end");
    if (lost_ns_ == 0) begin_grace();  // a guest that is started with the host is not refused for these moments
    log::info("tunnel: started {} as process {}", program, process_->pid());
    return {};
}

// A process that ends closes its connection first, and may take its time for the rest. Its end itself is what another
// is started for; one that ended soon waits for its turn in run().
asio::awaitable<void> Tunnel::outlive(Fd pidfd) {
    asio::posix::stream_descriptor process(io_, pidfd.release());
    const int64_t started_ns = process_started_ns_;
    asio::error_code error;
    co_await process.async_wait(asio::posix::stream_descriptor::wait_read,
                                asio::redirect_error(asio::use_awaitable, error));
    if (!error && std::chrono::nanoseconds(monotonic_ns() - started_ns) > starting) pause_.cancel();
}

asio::awaitable<Result<void>> Tunnel::join() {
    to(State::joining, "");
    Json params = Json::object({{"version", tunnel::control_version}});
    CO_TRY_SET(hello_, co_await TunnelChannel::call(channel_, "hello", params));
    const int64_t version = hello_.get("version").as_int();
    if (version != tunnel::control_version)
        co_return Error(Errc::unsupported, fmt::format("banana-tunneld speaks version {}, bananad {}: restart it",
                                                       version, tunnel::control_version));
    const std::string host = hello_.get("host").as_string();
    if (host != config_.host)
        co_return Error(Errc::invalid, fmt::format("certificate {} is host {}'s, and this is {}",
                                                   config_.tunnel.certificate, printable(host, 40), config_.host));
    CO_TRY(co_await configure(hello_));
    tell_peers();
    CO_TRY(co_await compare_wires());
    co_return co_await learn_peers();
}

asio::awaitable<Result<void>> Tunnel::configure(Json hello) {
    const Json wanted = settings(config_), now = hello.get("configured");
    if (!now.is_null() && same_settings(wanted, now)) co_return Status();
    if (!now.is_null()) {
        // Its sockets hold the port, and their order in the kernel is the lanes': a fresh one is as it should be.
        const pid_t pid = channel_->pid();
        if (pid > 1 && ::kill(pid, SIGTERM) == 0)
            co_return Error(Errc::busy, "banana-tunneld is being started anew, as its settings have changed");
        co_return Error(Errc::busy, "the settings have changed: systemctl restart banana-tunneld");
    }
    TunnelChannel::MakeFds sockets = [this] { return open_sockets(config_); };
    const auto done = co_await TunnelChannel::call(channel_, "configure", wanted, sockets);
    if (!done) co_return done.error();
    co_return Status();
}

// What it carries already stays as it is; what it should not is taken from it; the rest is told.
asio::awaitable<Result<void>> Tunnel::compare_wires() {
    for (auto& [connector, slot] : slots_) slot.told = 0;
    struct Carried {
        wiring::TunnelWire wire;
        size_t queues;
        bool lost;
    };
    std::map<uint32_t, Carried> carried;
    std::string after;
    for (bool more = true; more;) {
        Json params = Json::object({{"after", after}});
        CO_TRY_SET(const Json page, co_await TunnelChannel::call(channel_, "wire.list", params));
        const Json list = page.get("wires");
        for (size_t i = 0; i < list.size(); ++i) {
            const Json one = list.at(i);
            after = one.get("connector").as_string();
            const auto connector = parse_hex32(after);
            if (!connector) co_return Error(Errc::invalid, "wire.list: a connector is not eight hexadecimal digits");
            carried[*connector] = {{*connector, one.get("device").as_string(), one.get("peer").as_string(),
                                    static_cast<uint32_t>(one.get("mtu").as_int())},
                                   static_cast<size_t>(one.get("queues").as_int()),
                                   one.get("lost").as_bool()};
        }
        more = page.get("more").as_bool() && list.size() > 0;
    }
    wires_known_ = true;  // from here on changes go out as they come; nothing is awaited in between
    for (const auto& [connector, found] : carried) {
        const auto& [wire, queues, lost] = found;
        // Its tap was deleted, and may be another by now; or the peer has another number of lanes, perhaps since its
        // page came.
        const bool stale = lost || (queues != 0 && queues != queues_with(wire.peer));
        const auto it = slots_.find(connector);
        if (it == slots_.end()) {
            Json params = Json::object({{"connector", hex32(connector)}});
            channel_->request("wire.remove", params, [](const auto&) {});
            log::notice("tunnel: takes off wire {} to host {}, which no record wants", hex32(connector),
                        printable(wire.peer, 40));
        } else if (it->second.wire == wire && !stale) {
            it->second.told = ++tellings_;
            it->second.carried = true;
            it->second.problem.clear();
        }
    }
    tell_untold();
    co_return Status();
}

asio::awaitable<Result<void>> Tunnel::learn_peers() {
    Json params = Json::object();
    for (bool more = true; more;) {
        CO_TRY_SET(const Json status, co_await TunnelChannel::call(channel_, "status", params));
        const Json list = status.get("peers");
        for (size_t i = 0; i < list.size(); ++i) {
            const Json peer = list.at(i);
            const std::string name = peer.get("name").as_string();
            // An event of this connection is newer: it may have come right behind the answer, and was looked at first.
            if (!peer_states_.contains(name))
                peer_is(name, peer.get("state").as_string(), peer.get("reason").as_string());
            params.set("after", peer.get("name"));
        }
        more = status.get("more").as_bool() && list.size() != 0;
    }
    co_return Status();
}

}  // namespace banana::controller
