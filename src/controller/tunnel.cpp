#include "controller/tunnel.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <asio/redirect_error.hpp>
#include <asio/use_awaitable.hpp>
#include <csignal>

#include "base/bytes.h"
#include "base/clock.h"
#include "controller/tunnel_taps.h"
#include "peer/spawn.h"
#include "tunnel/control.h"

namespace banana::controller {

using std::chrono::milliseconds;
using wiring::TunnelWire;

namespace {

constexpr milliseconds wire_retry{1000};

}  // namespace

Json TunnelPeer::json() const {
    return Json::object({{"name", name}, {"address", address.text()}, {"port", int{port}}, {"lanes", lanes}});
}

Result<TunnelPeer> TunnelPeer::from_json(const Json& json) {
    TunnelPeer peer;
    TRY_SET(peer.name, json.string("name"));
    TRY_SET(const std::string address, json.string("address"));
    TRY_SET(peer.address, IpAddress::parse(address));
    TRY_SET(const int64_t port, json.integer("port", 1, UINT16_MAX));
    peer.port = static_cast<uint16_t>(port);
    TRY_SET(const int64_t lanes, json.integer("lanes", 1, model::tunnel_lanes_max));
    peer.lanes = static_cast<uint32_t>(lanes);
    return peer;
}

Tunnel::Tunnel(asio::io_context& io, const Config& config, registry::Store& store)
    : io_(io), config_(config), peers_(store, "tunnel_peer"), pause_(io), retry_(io) {}

Status Tunnel::load() {
    TRY(peers_.load([](const Error& error) { log::error("ignored record: {}", error.message()); }));
    for (const auto& name : peers_.keys()) {
        const bool configured =
            std::any_of(config_.peers.begin(), config_.peers.end(), [&](const auto& p) { return p.name == name; });
        if (!configured) TRY(peers_.erase(name));
    }
    return {};
}

// ---- What is wanted ----

const TunnelWire* Tunnel::wanted(uint32_t connector) const {
    const auto it = slots_.find(connector);
    return it == slots_.end() ? nullptr : &it->second.wire;
}

void Tunnel::want(const TunnelWire& wire) {
    Slot& slot = slots_[wire.connector];
    slot = Slot{wire, 0, false, ""};
    if (wires_known_) tell(slot);
}

void Tunnel::unwant(uint32_t connector) {
    if (slots_.erase(connector) == 0 || !wires_known_) return;
    channel_->request("wire.remove", Json::object({{"connector", hex32(connector)}}), [connector](const auto& answer) {
        if (!answer && answer.error().code() != Errc::unreachable)
            log::error("DTLS wire {}: {}", hex32(connector), answer.error().message());
    });
}

void Tunnel::set_peer(const model::Host& host) {
    const TunnelPeer fresh{host.name, host.underlay, host.tunnel.port, host.tunnel.lanes};
    const TunnelPeer* known = peers_.find(host.name);
    // A host whose tunnel is away for a moment keeps its address; so does its session.
    if (fresh.port == 0 || (known != nullptr && *known == fresh)) return;
    const bool other_lanes = known == nullptr || known->lanes != fresh.lanes;
    if (const Status saved = peers_.save(host.name, fresh); !saved) log::error("{}", saved.error().message());
    if (channel_ == nullptr || state_ == State::away) return;
    tell_peers();
    if (!other_lanes) return;
    for (auto& [connector, slot] : slots_)
        if (slot.wire.peer == host.name) slot.told = 0;
    if (wires_known_) tell_untold();
}

std::string Tunnel::problem() const {
    return problem_.empty() ? "banana-tunneld is being told what to carry" : problem_;
}

model::TunnelEnd Tunnel::end() const {
    // A restart is shorter than what wires are prepared with patience for.
    constexpr int64_t grace_ns = 1'500'000'000;
    const bool restarting = lost_ns_ != 0 && monotonic_ns() - lost_ns_ < grace_ns;
    return {config_.tunnel.port, config_.tunnel.lanes, state_ == State::ready || restarting ? "" : problem()};
}

// ---- Telling ----

// As many in a message as it has room for.
void Tunnel::tell_peers() {
    Json list = Json::array();
    int64_t part = 0;
    const auto send = [&](bool more) {
        const Json params =
            Json::object({{"peers", std::exchange(list, Json::array())}, {"part", part++}, {"more", more}});
        channel_->request("peers", params, [](const auto& answer) {
            if (!answer) log::error("tunnel: {}", answer.error().message());
        });
    };
    peers_.each([&](const TunnelPeer& peer) {
        if (list.size() == tunnel::control_list_max) send(true);
        list.push(peer.json());
    });
    send(false);
}

size_t Tunnel::queues_with(const std::string& peer) const {
    const TunnelPeer* known = peers_.find(peer);
    return known == nullptr ? 0 : std::min(known->lanes, config_.tunnel.lanes);
}

void Tunnel::tell(Slot& slot) {
    const size_t queues = queues_with(slot.wire.peer);
    if (queues == 0) {
        slot.problem = fmt::format("host {} has not said how its tunnel is reached", slot.wire.peer);
        return;
    }
    slot.told = ++tellings_;
    slot.carried = false;
    const Json params = Json::object({{"connector", hex32(slot.wire.connector)},
                                      {"device", slot.wire.device},
                                      {"peer", slot.wire.peer},
                                      {"mtu", slot.wire.mtu}});
    channel_->request(
        "wire.add", params,
        [this, connector = slot.wire.connector, telling = slot.told](const auto& answer) {
            told(connector, telling, answer);
        },
        [device = slot.wire.device, queues] { return open_tap_queues(device, queues); });
}

void Tunnel::told(uint32_t connector, uint64_t telling, const Result<Json>& answer) {
    const auto it = slots_.find(connector);
    if (it == slots_.end() || it->second.told != telling) return;  // replaced or removed meanwhile
    Slot& slot = it->second;
    slot.carried = answer.ok();
    const std::string problem = answer ? "" : answer.error().message();
    if (!answer && answer.error().code() != Errc::unreachable) {
        if (problem != slot.problem)
            log::error("DTLS wire {} to host {}: {}", slot.wire.device, slot.wire.peer, problem);
        slot.told = 0;
        retry_later();
    }
    slot.problem = problem;
    wake();
}

void Tunnel::tell_untold() {
    for (auto& [connector, slot] : slots_)
        if (slot.told == 0) tell(slot);
}

void Tunnel::retry_later() {
    retry_.expires_after(wire_retry);
    retry_.async_wait([this](const asio::error_code& error) {
        if (!error && wires_known_) tell_untold();
    });
}

// ---- Being told ----

void Tunnel::event(const Json& message) {
    if (message.get("event").as_string() == "peer")
        peer_is(message.get("name").as_string(), message.get("state").as_string(), message.get("reason").as_string());
}

void Tunnel::peer_is(const std::string& name, const std::string& state, const std::string& reason) {
    PeerState& peer = peer_states_[name];
    if (peer.state == state && peer.reason == reason) return;
    const std::string why = printable(reason);
    log::info("tunnel to host {}: {} -> {}{}{}", printable(name), peer.state, printable(state), why.empty() ? "" : ": ",
              why);
    peer = {printable(state), why};
    wake();
}

void Tunnel::wake() {
    for (auto* timer : waiting_) timer->cancel();
}

asio::awaitable<void> Tunnel::changed(milliseconds patience) {
    asio::steady_timer timer(io_, patience);
    struct Waiting {
        std::set<asio::steady_timer*>& all;
        asio::steady_timer* timer;
        Waiting(std::set<asio::steady_timer*>& a, asio::steady_timer* t) : all(a), timer(t) { all.insert(timer); }
        Waiting(const Waiting&) = delete;
        ~Waiting() { all.erase(timer); }
    } waiting(waiting_, &timer);
    asio::error_code ignored;
    co_await timer.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
}

std::string Tunnel::why_not(const Slot& slot) const {
    if (state_ != State::ready) return problem();
    const auto peer = peer_states_.find(slot.wire.peer);
    if (!slot.carried) return slot.problem.empty() ? "banana-tunneld has not taken the wire yet" : slot.problem;
    if (peer == peer_states_.end()) return "no session yet";
    if (peer->second.state == "up") return "";
    return peer->second.reason.empty() ? peer->second.state : peer->second.reason;
}

asio::awaitable<Result<void>> Tunnel::await_up(uint32_t connector, milliseconds patience) {
    const int64_t deadline = monotonic_ns() + std::chrono::nanoseconds(patience).count();
    for (;;) {
        const auto it = slots_.find(connector);
        if (it == slots_.end()) co_return Error(Errc::not_found, "DTLS wire " + hex32(connector) + " is gone");
        const std::string why = why_not(it->second);
        if (why.empty()) co_return Status();
        const auto left = std::chrono::duration_cast<milliseconds>(std::chrono::nanoseconds(deadline - monotonic_ns()));
        if (left.count() <= 0)
            co_return Error(Errc::unreachable,
                            fmt::format("the tunnel to {} is not up: {}", it->second.wire.peer, why));
        co_await changed(left);
    }
}

asio::awaitable<Result<Json>> Tunnel::show(uint32_t connector) {
    if (state_ != State::ready) co_return Error(Errc::unreachable, problem());
    Json params = Json::object({{"connector", hex32(connector)}});
    co_return co_await TunnelChannel::call(channel_, "wire.show", params);
}

Json Tunnel::status() const {
    const char* state = state_ == State::ready ? "ready" : state_ == State::joining ? "joining" : "away";
    Json out = Json::object({{"state", state},
                             {"problem", state_ == State::ready ? "" : problem()},
                             {"port", int{config_.tunnel.port}},
                             {"lanes", config_.tunnel.lanes},
                             {"wires", static_cast<int64_t>(slots_.size())}});
    for (const char* key : {"pid", "cipher", "gso", "gro"}) out.set(key, hello_.get(key));
    return out;
}

Json Tunnel::peer_status(const std::string& name) const {
    if (peers_.find(name) == nullptr) return Json::object({{"state", "unknown"}, {"reason", ""}});
    if (state_ != State::ready) return Json::object({{"state", "down"}, {"reason", problem()}});
    const auto it = peer_states_.find(name);
    const PeerState peer = it == peer_states_.end() ? PeerState{} : it->second;
    return Json::object({{"state", peer.state}, {"reason", peer.reason}});
}

}  // namespace banana::controller
