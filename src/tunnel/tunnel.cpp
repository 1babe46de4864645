#include "tunnel/tunnel.h"

#include <fmt/core.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <set>
#include <vector>

#include "base/clock.h"
#include "base/log.h"
#include "tunnel/control.h"

namespace banana::tunnel {

namespace {

constexpr uint32_t mtu_min = 68, mtu_max = 65535;  // RFC 791; a Corm's limits are the controller's

Json count_json(const FrameCount& count) { return Json::object({{"frames", count.frames}, {"bytes", count.bytes}}); }

template <class Reason, size_t size>
void add_reasons(Json& to, const std::array<uint64_t, size>& counts, const char* (*name)(Reason)) {
    for (size_t i = 0; i < size; i++)
        if (counts[i] != 0) to.set(name(static_cast<Reason>(i)), counts[i]);
}

template <size_t size>
void add_up(std::array<uint64_t, size>& sum, const std::array<uint64_t, size>& more) {
    for (size_t i = 0; i < size; i++) sum[i] += more[i];
}

Result<uint32_t> connector_of(const Json& params) {
    TRY_SET(const std::string text, params.string("connector"));
    const auto connector = parse_hex32(text);
    if (!connector || *connector == session_id)
        return Error(Errc::invalid, fmt::format("connector '{}': eight hexadecimal digits, not all zero, are wanted",
                                                printable(text, 40)));
    return *connector;
}

Json channel_json(const Channel& channel, size_t lane, int64_t now) {
    Json out = Json::object({{"lane", static_cast<uint64_t>(lane)},
                             {"state", channel_state_name(channel.state())},
                             {"reason", channel.reason()},
                             {"rekeys", channel.rekeys()},
                             {"moved", channel.moved()},
                             {"foreign", channel.foreign()},
                             {"bad_control", channel.bad_control()},
                             {"sessions", static_cast<uint64_t>(channel.sessions().size())}});
    auto refused = channel.refused();
    for (const auto& live : channel.sessions()) add_up(refused, live->refused);
    Json reasons = Json::object();
    add_reasons<Refusal>(reasons, refused, refusal_name);
    out.set("refused", reasons);
    const Live* live = channel.current();
    if (live == nullptr) return out;
    out.set("cipher", live->session->cipher());
    out.set("address", live->place.to.text());
    out.set("path_mtu", live->path.current());
    out.set("age_s", (now - live->up_since) / 1'000'000'000);
    out.set("round_trip_us", live->round_trip_ns / 1000);
    out.set("dialled", live->session->dialled());
    return out;
}

Status check_udp(const Fd& socket) {
    int protocol = 0;
    socklen_t size = sizeof(protocol);
    if (::getsockopt(socket.get(), SOL_SOCKET, SO_PROTOCOL, &protocol, &size) != 0)
        return errno_error(errno, "a lane's descriptor");
    if (protocol != IPPROTO_UDP) return Error(Errc::invalid, "a lane's descriptor: not a UDP socket");
    return {};
}

}  // namespace

Tunnel::Tunnel(std::shared_ptr<const Context> context, CipherPreference cipher, OnChange on_change)
    : context_(std::move(context)), cipher_(cipher), on_change_(std::move(on_change)), udp_(test_udp_offload()) {
    log::info("tunnel of host {}: UDP segmentation offload {}, receive offload {}, prefers {}", context_->host(),
              udp_.gso ? "on" : "off", udp_.gro ? "on" : "off",
              cipher_ == CipherPreference::aes ? "AES-128-GCM" : "ChaCha20-Poly1305");
}
Tunnel::~Tunnel() = default;

Json Tunnel::hello() const {
    return Json::object({{"version", control_version},
                         {"pid", static_cast<int64_t>(::getpid())},
                         {"host", context_->host()},
                         {"configured", configured_},
                         {"gso", udp_.gso},
                         {"gro", udp_.gro},
                         {"cipher", cipher_ == CipherPreference::aes ? "aes" : "chacha"}});
}

Result<Json> Tunnel::configure(const Json& params, std::vector<Fd> sockets) {
    TRY_SET(const int64_t count, params.integer("lanes", 1, control_fds_max / 2));
    TRY_SET(const std::string poll, params.string("poll"));
    if (poll != "auto" && poll != "never")
        return Error(Errc::invalid, fmt::format("poll '{}': 'auto' or 'never' is wanted", printable(poll, 40)));
    TRY_SET(const int64_t seconds, params.integer("rekey_seconds", 1, 86400 * 30));
    TRY_SET(const int64_t records, params.integer("rekey_records", 1000));
    if (sockets.size() != 2 * static_cast<size_t>(count))
        return Error(Errc::invalid, fmt::format("{} lanes need {} sockets, not {}", count, 2 * count, sockets.size()));
    for (const auto& socket : sockets) TRY(check_udp(socket));
    TRY(steer_by_lane(sockets[0].get()));
    const Json cpus = params.get("cpus");
    wires_.clear();
    peers_.clear();
    lanes_.clear();  // ends their threads and sessions
    for (size_t i = 0; i < static_cast<size_t>(count); i++) {
        LaneConfig config;
        config.number = static_cast<uint8_t>(i);
        config.cpu = cpus.size() != 0 ? static_cast<int>(cpus.at(i % cpus.size()).as_int(-1)) : -1;
        config.poll = poll == "auto";
        config.rekey.age_ns = seconds * 1'000'000'000;
        config.rekey.records = static_cast<uint64_t>(records);
        config.udp = udp_;
        lanes_.push_back(std::make_unique<Lane>(
            context_, LaneSockets{std::move(sockets[2 * i]), std::move(sockets[2 * i + 1])}, config, on_change_));
    }
    configured_ = params;
    log::info("tunnel: {} lanes on {} port {}", count, params.get("address").as_string("any"),
              params.get("port").as_int());
    return Json::object();
}

Result<Json> Tunnel::set_peers(const Json& params) {
    TRY_SET(const Json list, params.array_at("peers"));
    // A list whose parts were cut off, or of which one was refused, begins anew with part 0.
    auto next = std::exchange(more_peers_, {});
    const int64_t part = params.get("part").as_int(), parts = std::exchange(more_parts_, 0);
    if (part == 0) next.clear();
    if (part != 0 && part != parts)
        return Error(Errc::invalid, fmt::format("part {} of the list of peers: part {} is next", part, parts));
    for (size_t i = 0; i < list.size(); i++) {
        const Json item = list.at(i);
        TRY_SET(const std::string name, item.string("name"));
        TRY_SET(const std::string address, item.string("address"));
        TRY_SET(const IpAddress ip, IpAddress::parse(address));
        TRY_SET(const int64_t port, item.integer("port", 1, 65535));
        TRY_SET(const int64_t lanes, item.integer("lanes", 1, 255));
        next[name] = {Endpoint::of(ip, static_cast<uint16_t>(port)), static_cast<size_t>(lanes)};
    }
    if (params.get("more").as_bool()) {
        more_peers_ = std::move(next);
        more_parts_ = part + 1;
        return Json::object();
    }
    for (size_t i = 0; i < lanes_.size(); i++)
        lanes_[i]->run([&] {
            for (const auto& [name, peer] : peers_)
                if (!next.contains(name) || next[name].lanes <= i) lanes_[i]->remove_peer(name);
            for (const auto& [name, peer] : next)
                if (peer.lanes > i) lanes_[i]->set_peer(name, peer.address);
        });
    std::vector<std::string> fewer;  // lanes: what is gone says nothing any more, and may have been all that was down
    for (const auto& [name, peer] : next)
        if (const auto it = peers_.find(name); it != peers_.end() && peer.lanes < it->second.lanes)
            fewer.push_back(name);
    peers_ = std::move(next);
    for (const auto& name : fewer) on_change_(name);
    return Json::object();
}

Result<Json> Tunnel::add_wire(const Json& params, std::vector<Fd> queues) {
    TRY_SET(const uint32_t connector, connector_of(params));
    TRY_SET(const std::string device, params.string("device"));
    TRY_SET(const std::string peer, params.string("peer"));
    TRY_SET(const int64_t mtu, params.integer("mtu", mtu_min, mtu_max));
    const auto known = peers_.find(peer);
    if (known == peers_.end())
        return Error(Errc::not_found, fmt::format("wire {}: host '{}' is no peer", hex32(connector), printable(peer)));
    const size_t lanes = std::min(lanes_.size(), known->second.lanes);
    if (queues.size() != lanes)
        return Error(Errc::invalid, fmt::format("wire {}: {} lanes with host {} need as many tap queues, not {}",
                                                hex32(connector), lanes, peer, queues.size()));
    std::vector<bool> udp_gso;
    for (const auto& queue : queues) udp_gso.push_back(set_offloads(queue.get()));
    for (size_t i = 0; i < lanes_.size(); i++) {
        Fd before;  // closed here
        lanes_[i]->run([&] {
            before = lanes_[i]->remove_wire(connector);
            if (i < lanes)
                lanes_[i]->add_wire(connector, device, peer, static_cast<uint32_t>(mtu), std::move(queues[i]),
                                    udp_gso[i]);
        });
    }
    wires_[connector] = {device, peer, static_cast<uint32_t>(mtu), lanes};
    return Json::object();
}

Result<Json> Tunnel::remove_wire(const Json& params) {
    TRY_SET(const uint32_t connector, connector_of(params));
    if (wires_.erase(connector) == 0) return Json::object();
    for (const auto& lane : lanes_) {
        Fd tap;  // closed here
        lane->run([&] { tap = lane->remove_wire(connector); });
    }
    return Json::object();
}

Result<Json> Tunnel::list_wires(const Json& params) const {
    const std::string after = params.get("after").as_string();
    auto it = after.empty() ? wires_.begin() : wires_.upper_bound(parse_hex32(after).value_or(0));
    std::vector<std::pair<uint32_t, Wire>> page;
    for (; it != wires_.end() && page.size() < control_list_max; ++it) page.emplace_back(*it);
    std::set<uint32_t> lost;
    for (const auto& lane : lanes_)
        lane->run([&] {
            for (const auto& [connector, info] : page)
                if (const LaneWire* wire = lane->wire(connector); wire != nullptr && wire->lost) lost.insert(connector);
        });
    Json list = Json::array();
    for (const auto& [connector, info] : page)
        list.push(Json::object({{"connector", hex32(connector)},
                                {"device", info.device},
                                {"peer", info.peer},
                                {"mtu", info.mtu},
                                {"queues", static_cast<uint64_t>(info.queues)},
                                {"lost", lost.contains(connector)}}));
    return Json::object({{"wires", list}, {"more", it != wires_.end()}});
}

Result<Json> Tunnel::show_wire(const Json& params) {
    TRY_SET(const uint32_t connector, connector_of(params));
    const auto it = wires_.find(connector);
    if (it == wires_.end()) return Error(Errc::not_found, fmt::format("wire {}: not carried", hex32(connector)));
    FrameCount sent, received;
    std::array<uint64_t, static_cast<size_t>(Drop::count_)> drops{};
    Json lanes = Json::array();
    const int64_t now = monotonic_ns();
    for (size_t i = 0; i < lanes_.size(); i++)
        lanes_[i]->run([&] {
            const LaneWire* wire = lanes_[i]->wire(connector);
            if (wire == nullptr) return;
            sent = {sent.frames + wire->sent.frames, sent.bytes + wire->sent.bytes};
            received = {received.frames + wire->received.frames, received.bytes + wire->received.bytes};
            add_up(drops, wire->drops);
            Json lane = lane_json(i);
            lane.set("wire_wakeups", wire->wakeups);
            if (wire->channel != nullptr) lane.set("session", channel_json(*wire->channel, i, now));
            lanes.push(lane);
        });
    Json reasons = Json::object();
    add_reasons<Drop>(reasons, drops, drop_name);
    return Json::object({{"connector", hex32(connector)},
                         {"device", it->second.device},
                         {"peer", it->second.peer},
                         {"mtu", it->second.mtu},
                         {"sent", count_json(sent)},
                         {"received", count_json(received)},
                         {"drops", reasons},
                         {"lanes", lanes}});
}

// On the lane's thread.
Json Tunnel::lane_json(size_t number) {
    const auto& counters = lanes_[number]->counters();
    const auto& sent = lanes_[number]->send_counters();
    Json drops = Json::object();
    add_reasons<Drop>(drops, counters.drops, drop_name);
    const double per_wakeup = counters.wakeups_per_s > 0 ? counters.frames_per_s / counters.wakeups_per_s : 0;
    return Json::object({{"lane", static_cast<uint64_t>(number)},
                         {"wakeups", counters.wakeups},
                         {"polls", counters.polls},
                         {"frames", counters.frames},
                         {"wakeups_per_s", counters.wakeups_per_s},
                         {"frames_per_s", counters.frames_per_s},
                         {"frames_per_wakeup", per_wakeup},
                         {"datagrams_sent", sent.datagrams},
                         {"send_calls", sent.calls},
                         {"send_errors", sent.errors},
                         {"send_no_room", sent.no_room},
                         {"send_too_big", sent.too_big},
                         {"strangers", counters.strangers},
                         {"no_session", counters.no_session},
                         {"challenges", lanes_[number]->challenges()},
                         {"turned_away", lanes_[number]->turned_away()},
                         {"drops", drops}});
}

Json Tunnel::peer_json(const std::string& name, const Peer& peer) {
    Json lanes = Json::array();
    std::string state = "up", reason;
    uint64_t foreign = 0;
    const int64_t now = monotonic_ns();
    for (size_t i = 0; i < std::min(lanes_.size(), peer.lanes); i++)
        lanes_[i]->run([&] {
            const auto it = lanes_[i]->channels().find(name);
            if (it == lanes_[i]->channels().end()) return;
            foreign += it->second->foreign();
            if (it->second->state() != ChannelState::up) {
                state = channel_state_name(it->second->state());
                reason = it->second->reason();
            } else if (state == "up" && reason.empty()) {
                reason = it->second->reason();  // a rekey that fails
            }
            lanes.push(channel_json(*it->second, i, now));
        });
    if (state == "up" && reason.empty() && foreign != 0)
        reason = "it sends frames for wires of other hosts, which are dropped";
    return Json::object({{"name", name}, {"state", state}, {"reason", reason}, {"lanes", lanes}});
}

// One state for all lanes: up when each is.
Json Tunnel::peer_event(const std::string& name) {
    const auto it = peers_.find(name);
    if (it == peers_.end()) return {};
    const Json peer = peer_json(name, it->second);
    return Json::object(
        {{"event", "peer"}, {"name", name}, {"state", peer.get("state")}, {"reason", peer.get("reason")}});
}

Result<Json> Tunnel::status(const Json& params) {
    Json lanes = Json::array(), peers = Json::array();
    for (size_t i = 0; i < lanes_.size(); i++) lanes_[i]->run([&] { lanes.push(lane_json(i)); });
    const size_t most = std::max<size_t>(control_sessions_max / std::max<size_t>(lanes_.size(), 1), 1);
    auto it = peers_.upper_bound(params.get("after").as_string());
    for (; it != peers_.end() && peers.size() < most; ++it) peers.push(peer_json(it->first, it->second));
    return Json::object({{"lanes", lanes},
                         {"peers", peers},
                         {"more", it != peers_.end()},
                         {"wires", static_cast<uint64_t>(wires_.size())}});
}

Result<Json> Tunnel::rekey(const Json& params) {
    const std::string peer = params.get("peer").as_string();
    if (!peer.empty() && !peers_.contains(peer))
        return Error(Errc::not_found, fmt::format("host '{}' is no peer", printable(peer)));
    for (const auto& lane : lanes_) lane->run([&] { lane->rekey(peer); });
    return Json::object();
}

}  // namespace banana::tunnel
