#include "controller/views.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>

#include "base/clock.h"
#include "base/mtu.h"
#include "controller/certificates.h"
#include "controller/config_change.h"
#include "controller/doctor.h"
#include "model/names.h"
#include "tunnel/dtls.h"
#include "tunnel/record.h"
#include "tunnel/wire_format.h"

namespace banana::controller {

using model::Format;
using model::Phase;
using model::Spike;
using model::SpikeState;
using model::Wire;
using wiring::Direction;

namespace {

// RFC 7348 section 5: inner Ethernet, VXLAN and UDP headers, and the outer IP header.
constexpr uint32_t vxlan_overhead_v4 = 50, vxlan_overhead_v6 = 70;

Json count_json(const xconnect::Count& count) {
    return Json::object({{"frames", count.frames}, {"bytes", count.bytes}});
}

}  // namespace

Views::Views(Node& node, Corms& corms, Wires& wires, Spikes& spikes, migration::Grants& grants, Options options)
    : node_(node), corms_(corms), wires_(wires), spikes_(spikes), grants_(grants), options_(std::move(options)) {}

void Views::serve() {
    using rpc::Context;
    auto& d = node_.control;
    d.on("status", [this](Context&, Json) -> Async<Json> { co_return status(); });
    d.on("wire.list", [this](Context&, Json) -> Async<Json> { co_return wire_list(); });
    d.on("wire.show", [this](Context&, Json p) -> Async<Json> {
        CO_TRY_SET(const std::string name, p.string("name"));
        CO_TRY_SET(Json shown, wire_show(name));
        if (shown.get("format").as_string() == "dtls") co_await add_tunnel(shown);
        co_return shown;
    });
    d.on("wire.probe", [this](Context&, Json p) -> Async<Json> { co_return co_await probe(std::move(p)); });
    d.on("peer.list", [this](Context&, Json) -> Async<Json> {
        Json out = Json::object();
        out.set("peers", node_.peer_status());
        co_return out;
    });
    d.on("doctor", [this](Context&, Json) -> Async<Json> {
        Doctor doctor(node_, corms_, wires_, spikes_, options_.state_dir);
        co_return co_await doctor.examine();
    });
    d.on("reload", [this](Context&, Json) -> Async<Json> { co_return reload(); });
}

std::vector<std::string> Views::warnings() const {
    std::vector<std::string> out;
    if (bridge_nf_call())
        out.emplace_back(
            "bridge-nf-call-iptables is 1: frames through this host's bridges pass iptables, which costs 10 % and "
            "lets a FORWARD DROP cut them (sysctl net.bridge.bridge-nf-call-iptables=0)");
    for (auto& text : examine_certificates(node_.config, wall_ns() / 1'000'000'000).problems())
        out.push_back(std::move(text));
    for (auto& text : corms_.problems()) out.push_back(std::move(text));
    return out;
}

Json Views::status() {
    node_.refresh_underlay();
    size_t wires = 0, spikes = spikes_.table().size();
    wires_.table().each([&](const Wire& wire) { wires += wire.phase != Phase::idle ? 1 : 0; });
    spikes_.table().each([&](const Spike& spike) { wires += wired_elsewhere(spike) ? 1 : 0; });
    const Json libvirt = Json::object({{"uri", node_.config.libvirt_uri},
                                       {"state", !node_.libvirt.used()       ? "not used"
                                                 : node_.libvirt.connected() ? "connected"
                                                                             : "not connected"},
                                       {"error", node_.libvirt.problem()}});
    Json out = Json::object({{"host", node_.config.host},
                             {"site", node_.config.site},
                             {"version", BANANA_VERSION},
                             {"pid", static_cast<int64_t>(getpid())},
                             {"uptime_s", (monotonic_ns() - node_.started_ns) / 1'000'000'000},
                             {"underlay", node_.config.underlay.text()},
                             {"corms", static_cast<int64_t>(corms_.all().size())},
                             {"spikes", static_cast<int64_t>(spikes)},
                             {"wires", static_cast<int64_t>(wires)}});
    out.set("crossconnect", node_.engine.crossconnect().mode() == xconnect::AttachMode::tcx ? "tcx" : "clsact");
    out.set("ports_unsettled", static_cast<int64_t>(node_.engine.unsettled()));
    out.set("libvirt", libvirt);
    out.set("tunnel", node_.tunnel.status());
    out.set("peers", node_.peer_status());
    out.set("warnings", Json::array(warnings()));
    return out;
}

Json Views::json_of(const Wire& wire) const {
    const model::Half* half = wire.current();
    const auto* corm = corms_.by_name(wire.corm);
    Json out = Json::object({{"name", wire.name},
                             {"spike", wire.spike},
                             {"corm", wire.corm},
                             {"phase", model::phase_name(wire.phase)},
                             {"mac", wire.mac.text()},
                             {"corm_host", node_.config.host},
                             {"port", model::port_device(wire.port)},
                             {"mtu", corm != nullptr ? corm->mtu : 0U},
                             {"role", "corm"}});
    if (half != nullptr) {
        out.set("format", model::format_name(half->format));
        out.set("why", half->why);
        out.set("epoch", half->epoch);
        out.set("connector", half->format == Format::native ? "" : hex32(half->connector));
        out.set("spike_host", half->host);
        out.set("device", model::end_device(*half));
    }
    if (wire.standby) out.set("standby", wire.standby->json());
    return out;
}

Json Views::json_of(const Spike& spike) const {
    const auto& a = *spike.attachment;
    return Json::object({{"name", spike.name},
                         {"spike", spike.key},
                         {"corm", spike.corm},
                         {"format", model::format_name(a.half.format)},
                         {"why", a.half.why},
                         {"phase", model::spike_state_name(spike.state)},
                         {"epoch", a.half.epoch},
                         {"connector", a.half.format == Format::native ? "" : hex32(a.half.connector)},
                         {"mac", spike.mac.text()},
                         {"spike_host", node_.config.host},
                         {"corm_host", a.corm_host},
                         {"port", spike.device},
                         {"device", a.half.format == Format::native ? "" : a.far_device()},
                         {"mtu", a.mtu},
                         {"role", "spike"}});
}

// The others' wires stand in this host's records of Corms.
bool Views::wired_elsewhere(const Spike& spike) const {
    return spike.attachment && spike.attachment->corm_host != node_.config.host && spike.state != SpikeState::unwired;
}

Json Views::wire_list() {
    Json list = Json::array();
    wires_.table().each([&](const Wire& wire) {
        if (wire.phase == Phase::idle) return;
        Json one = json_of(wire);
        const Spike* here = spikes_.table().find(wire.spike);
        if (here != nullptr && here->attachment && here->state != SpikeState::unwired) one.set("role", "both");
        list.push(one);
    });
    spikes_.table().each([&](const Spike& spike) {
        if (wired_elsewhere(spike)) list.push(json_of(spike));
    });
    return Json::object({{"wires", list}});
}

Json Views::port_counters(const std::string& port, const std::string& device, Direction direction) {
    Json out = Json::object({{"port", port}, {"device", device}, {"direction", xconnect::direction_name(direction)}});
    const auto counters = node_.engine.counters(device, direction);
    if (!counters) {
        out.set("error", counters.error().message());
        return out;
    }
    out.set("frames", counters->passed.frames);
    out.set("bytes", counters->passed.bytes);
    Json drops = Json::object();
    for (size_t i = 0; i < XC_DROP_REASONS; ++i)
        if (counters->drops[i].frames != 0)
            drops.set(xconnect::drop_reason_name(static_cast<xc_drop>(i)), count_json(counters->drops[i]));
    out.set("drops", drops);
    return out;
}

Json Views::underlay_of(Format format, const IpAddress& remote, uint32_t mtu) const {
    const model::Host self = node_.self();
    Json out = Json::object(
        {{"local", self.underlay.text()}, {"remote", remote.text()}, {"mtu", self.underlay_mtu}, {"cost", ""}});
    if (format != Format::vxlan || self.underlay_mtu == 0) return out;
    const uint32_t needed = mtu + (remote.size() == 4 ? vxlan_overhead_v4 : vxlan_overhead_v6);
    out.set("cost",
            needed <= self.underlay_mtu
                ? std::string("none: full-size frames fit")
                : fmt::format("full-size frames need {} B on the underlay, which has {}: they go as two IP fragments; "
                              "a larger underlay MTU, or a smaller Corm MTU, avoids that",
                              needed, self.underlay_mtu));
    return out;
}

Result<Json> Views::wire_show(const std::string& name) {
    Json out, ports = Json::array();
    const auto found = spikes_.resolve(name);
    const Spike* spike = found ? *found : nullptr;
    const Wire* wire = wires_.by_name(spike != nullptr ? spike->name : name);
    if (spike != nullptr && (!spike->attachment || spike->state == SpikeState::unwired)) spike = nullptr;
    if (wire == nullptr && spike == nullptr)
        return Error(Errc::not_found, fmt::format("host {} has no wire of Spike '{}' (banana wire list)",
                                                  node_.config.host, printable(name, 80)));
    if (spike != nullptr) {
        out = json_of(*spike);
        const auto& a = *spike->attachment;
        if (!spike->device.empty()) ports.push(port_counters("spike", spike->device, Direction::ingress));
        if (a.half.format != Format::native) ports.push(port_counters("wire", a.far_device(), Direction::ingress));
        out.set("underlay", underlay_of(a.half.format, a.corm_underlay, a.mtu));
    }
    if (wire != nullptr) {
        const bool both = spike != nullptr;
        out = json_of(*wire);
        if (both) out.set("role", "both");
        ports.push(port_counters("corm", model::port_device(wire->port), Direction::egress));
        for (const auto& half : {wire->active, wire->standby}) {
            if (!half || half->format == Format::native) continue;
            ports.push(port_counters("wire", model::end_device(*half), Direction::ingress));
            out.set("underlay",
                    underlay_of(half->format, half->underlay, static_cast<uint32_t>(out.get("mtu").as_int())));
        }
    }
    out.set("counters", Json::object({{"ports", ports}}));
    return out;
}

// What the tunnel process knows of the wire; or why that cannot be told.
asio::awaitable<void> Views::add_tunnel(Json& shown) {
    const uint32_t connector = parse_hex32(shown.get("connector").as_string()).value_or(0);
    const auto told = co_await node_.tunnel.show(connector);
    if (!told) {
        shown.set("tunnel", Json::object({{"problem", told.error().message()}}));
        co_return;
    }
    shown.set("tunnel", *told);
    const Json lanes = told->get("lanes");
    int64_t path_mtu = 0;
    for (size_t i = 0; i < lanes.size(); ++i) {
        const int64_t one = lanes.at(i).get("session").get("path_mtu").as_int();
        if (one > 0 && (path_mtu == 0 || one < path_mtu)) path_mtu = one;
    }
    if (path_mtu == 0) co_return;
    const size_t ip_udp = node_.config.underlay.size() == 4 ? 28 : 48;
    const size_t overhead =
        ip_udp + tunnel::data_header_bytes + tunnel::record_overhead + tunnel::entry_bytes + ethernet_bytes;
    const int64_t needed = shown.get("mtu").as_int() + static_cast<int64_t>(overhead);
    Json underlay = shown.get("underlay");
    underlay.set("path_mtu", path_mtu);
    underlay.set("cost",
                 needed <= path_mtu
                     ? std::string("none: full-size frames fit")
                     : fmt::format("full-size frames need {} B on the path, which takes {}: they are cut inside "
                                   "the wire and put together again",
                                   needed, path_mtu));
}

Async<Json> Views::probe(Json params) {
    CO_TRY_SET(const std::string name, params.string("name"));
    CO_TRY_SET(const Json shown, wire_show(name));
    const auto mtu = static_cast<size_t>(shown.get("mtu").as_int());
    const auto size = static_cast<size_t>(params.get("size").as_int(64));
    if (size < xconnect::Prober::min_frame || size > mtu + ethernet_bytes)
        co_return Error(Errc::invalid,
                        fmt::format("size {}: it must be {} to {} B (the wire's MTU and the Ethernet header)", size,
                                    xconnect::Prober::min_frame, mtu + ethernet_bytes));
    const std::string device = shown.get("device").as_string();
    if (shown.get("format").as_string() == "native")
        co_return Error(Errc::unsupported,
                        fmt::format("the wire of {} is native: there is no way between its ends to probe", name));
    CO_TRY_SET(const uint32_t index, node_.engine.ifindex(device));
    const milliseconds patience(std::clamp<int64_t>(params.get("timeout_ms").as_int(1000), 1, 1000));
    const auto rtt = co_await node_.prober.round_trip(index, size, patience);
    if (!rtt && rtt.error().code() == Errc::timeout) co_return Json::object({{"lost", true}});
    if (!rtt) co_return rtt.error().context("probe the wire of " + name);
    co_return Json::object({{"rtt_us", *rtt / 1000}, {"size", static_cast<int64_t>(size)}});
}

Result<Json> Views::reload() {
    TRY_SET(const Config fresh, Config::load(options_.config));
    TRY(node_.peers.reload());
    TRY(grants_.reload());
    Config& running = node_.config;
    const ConfigChange change = compare(running, fresh);
    std::vector<std::string> taken{"certificates"};
    if (change.log_level) taken.emplace_back("log level");
    if (change.limits) taken.emplace_back("limits");
    log::set_level(fresh.log_level);
    running.log_level = fresh.log_level;
    running.limits = fresh.limits;
    for (const auto& peer : change.new_peers) {
        taken.push_back("peer " + peer.name);
        running.peers.push_back(peer);
        node_.peers.add({peer.name, peer.address, peer.port});
    }
    log::info("reloaded: {}; waits for a restart: {}", joined(taken), joined(change.restart));
    const auto problems = examine_certificates(running, wall_ns() / 1'000'000'000).problems();
    for (const auto& text : problems) log::warning("{}", text);
    return Json::object({{"reloaded", Json::array(taken)},
                         {"restart", Json::array(change.restart)},
                         {"warnings", Json::array(problems)}});
}

}  // namespace banana::controller
