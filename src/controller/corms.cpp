#include "controller/corms.h"

#include <fmt/format.h>

#include <algorithm>

#include "libvirt-hooks/metadata.h"
#include "model/names.h"
#include "netlink/address.h"
#include "wiring/headroom.h"

namespace banana::controller {

namespace {

std::string network_xml(const model::Corm& corm) {
    hooks::NetworkMeta meta;
    meta.name = corm.full_name();
    meta.corm = corm.name;
    meta.host = corm.host;
    meta.mtu = corm.mtu;
    for (model::Format f : corm.formats) meta.formats.emplace_back(model::format_name(f));
    // No <mtu>: libvirt takes it in networks only that it forwards for itself (tests/assumptions). The anchor's MTU
    // reaches the tap; a guest is told by its own <interface><mtu size=/>.
    return fmt::format(
        "<network><name>{}</name><metadata>{}</metadata><forward mode='bridge'/><bridge name='{}'/></network>",
        model::network_name(corm.name), hooks::format_network_metadata(meta), model::anchor_device(corm.name));
}

std::vector<std::string> names_of(const std::vector<model::Corm>& corms) {
    std::vector<std::string> names;
    for (const auto& corm : corms) names.push_back(corm.full_name());
    return names;
}

}  // namespace

std::string joined(const std::vector<std::string>& names) {
    return names.empty() ? "none" : fmt::format("{}", fmt::join(names, ", "));
}

Corms::Corms(Node& node) : node_(node), table_(node.store, "corm") {}

Status Corms::load() {
    return table_.load([&](const Error& error) {
        node_.records_ignored = true;
        log::error("ignored record: {}", error.message());
    });
}

void Corms::serve() {
    using rpc::Context;
    auto& control = node_.control;
    control.on("corm.create", [this](Context&, Json p) -> Async<Json> { co_return co_await create(std::move(p)); });
    control.on("corm.list", [this](Context&, Json) -> Async<Json> { co_return co_await list(); });
    control.on("corm.show", [this](Context&, Json p) -> Async<Json> { co_return co_await show(std::move(p)); });
    control.on("corm.delete", [this](Context&, Json p) -> Async<Json> { co_return co_await remove(std::move(p)); });
    auto& d = node_.dispatcher;
    d.on("corm.sync", [this](Context& c, Json p) -> Async<Json> { co_return co_await sync(c, std::move(p)); });
    d.on("corm.reserve", [this](Context& c, Json p) -> Async<Json> { co_return reserve(c, p); });
}

wiring::Plan Corms::plan() const {
    wiring::Plan plan;
    table_.each([&](const model::Corm& corm) {
        if (corm.host == node_.config.host) {
            plan += wiring::plan_corm(corm);
            plan += wiring::plan_headroom(node_.site(), corm);
        }
        plan += wiring::plan_anchor(corm);
    });
    return plan;
}

void Corms::make_room(const model::Corm& corm) {
    if (const Status made = node_.engine.realise(wiring::plan_headroom(node_.site(), corm)); !made)
        log::warning("Corm {}: its VXLAN wires will be slower: {}", corm.full_name(), made.error().message());
}

const model::Corm* Corms::by_name(const std::string& full) const { return table_.find(full); }

const model::Corm* Corms::by_short(const std::string& name) const {
    const model::Corm* found = nullptr;
    table_.each([&](const model::Corm& corm) {
        if (corm.name == name) found = &corm;
    });
    return found;
}

const model::Corm* Corms::by_anchor(const std::string& device) const {
    return device.rfind("bn-", 0) == 0 ? by_short(device.substr(3)) : nullptr;
}

Result<model::Corm> Corms::resolve(const std::string& name) const {
    const model::Corm* corm = name.find('/') == std::string::npos ? by_short(name) : by_name(name);
    if (corm != nullptr) return *corm;
    return Error(Errc::not_found, fmt::format("there is no Corm '{}'; host {} knows: {}", printable(name, 40),
                                              node_.config.host, joined(names_of(all()))));
}

Result<model::Corm> Corms::local(const std::string& full) const {
    const model::Corm* corm = by_name(full);
    if (corm != nullptr && corm->host != node_.config.host)
        return Error(Errc::refused,
                     fmt::format("Corm {} is host {}'s, not host {}'s", full, corm->host, node_.config.host));
    if (corm == nullptr)
        return Error(Errc::not_found, fmt::format("host {} has no Corm '{}'; it has: {}", node_.config.host,
                                                  printable(full, 80), joined(names_of(all()))));
    return *corm;
}

std::vector<model::Corm> Corms::all() const {
    std::vector<model::Corm> out;
    table_.each([&](const model::Corm& corm) { out.push_back(corm); });
    return out;
}

std::string Corms::network_problem(const std::string& full) const {
    const auto it = network_problems_.find(full);
    return it == network_problems_.end() ? "" : it->second;
}

std::vector<std::string> Corms::problems() const {
    std::vector<std::string> out;
    for (const auto& [corm, text] : conflicts_) out.push_back(text);
    table_.each([&](const model::Corm& corm) {
        if (auto text = network_problem(corm.full_name()); !text.empty()) out.push_back(std::move(text));
    });
    return out;
}

Json Corms::json(const model::Corm& corm) const {
    const bool here = corm.host == node_.config.host;
    const auto wired = here ? wires_of(corm.full_name()) : local_spikes_of(corm.full_name());
    std::vector<std::string> problems;
    if (const auto it = conflicts_.find(corm.full_name()); it != conflicts_.end()) problems.push_back(it->second);
    if (const auto text = network_problem(corm.full_name()); !text.empty()) problems.push_back(text);
    if (node_.libvirt.used() && !node_.libvirt.connected())
        problems.push_back(fmt::format("libvirt network {} is made or checked when libvirt is connected again ({})",
                                       model::network_name(corm.name), node_.libvirt.problem()));
    bool up = true;
    if (here) {
        const auto missing = node_.engine.difference(wiring::plan_corm(corm));
        if (!missing) problems.push_back(missing.error().message());
        if (missing && !missing->empty())
            problems.push_back("not as it should be: " + wiring::describe(missing->front()));
    } else if (!node_.peers.is_up(corm.host)) {
        up = false;
        problems.push_back("host " + corm.host + " is not connected");
    }
    Json out = corm.json();
    out.set("name", corm.full_name());
    out.set("short", corm.name);
    out.set("bridge", here ? corm.bridge() : "");
    out.set("anchor", model::anchor_device(corm.name));
    out.set("network", model::network_name(corm.name));
    out.set("local", here);
    out.set("wires", static_cast<int64_t>(wired.size()));
    out.set("state", !up ? "unreachable" : problems.empty() ? "up" : "degraded");
    out.set("problems", Json::array(problems));
    return out;
}

Json Corms::json_shown(const model::Corm& corm) const {
    Json out = json(corm);
    out.set("wires", Json::array(corm.host == node_.config.host ? wires_of(corm.full_name())
                                                                : local_spikes_of(corm.full_name())));
    return out;
}

Async<Json> Corms::list() {
    Json corms = Json::array();
    table_.each([&](const model::Corm& corm) { corms.push(json(corm)); });
    co_return Json::object({{"corms", corms}});
}

Async<Json> Corms::show(Json params) {
    CO_TRY_SET(const std::string name, params.string("name"));
    CO_TRY_SET(const model::Corm corm, resolve(name));
    co_return json_shown(corm);
}

void Corms::peer_up(const std::string& peer) { node_.spawn(announce(peer), "announcing Corms"); }

void Corms::announce_all() {
    for (const auto& peer : node_.peers.names())
        if (node_.peers.is_up(peer)) peer_up(peer);
}

Json Corms::corms_of_this_host() const {
    Json corms = Json::array();
    table_.each([&](const model::Corm& corm) {
        if (corm.host == node_.config.host) corms.push(corm.json());
    });
    return corms;
}

asio::awaitable<void> Corms::announce(std::string peer) {
    Json params = Json::object({{"corms", corms_of_this_host()}});
    const auto reply = co_await node_.call(peer, "corm.sync", params);
    if (!reply) log::warning("announcing Corms to host {}: {}", peer, reply.error().message());
}

void Corms::libvirt_up() {
    for (auto& corm : all()) node_.spawn(ensure_network(std::move(corm)), "defining a network");
    for (const auto& [host, remote] : remotes_) begin_settling(host);
}

void Corms::network_event(const std::string& name) {
    const std::string prefix = model::network_prefix;
    if (name.rfind(prefix, 0) != 0) return;
    if (const auto* corm = by_short(name.substr(prefix.size())))
        node_.spawn(ensure_network(*corm), "defining a network");
}

void Corms::link_set(const netlink::Link& link) {
    if (link.master != 0) return;
    table_.each([&](const model::Corm& corm) {
        if (corm.host != node_.config.host || corm.kind != model::CormKind::uplink || corm.device != link.name) return;
        if (node_.locks.held("corm:" + corm.name)) return;  // it is being made or deleted
        log::notice("Corm {}: uplink {} is put into its bridge", corm.full_name(), link.name);
        if (const Status done = node_.engine.realise(wiring::plan_corm(corm)); !done)
            log::error("Corm {}: {}", corm.full_name(), done.error().message());
    });
    restore_addresses();
}

void Corms::restore_addresses() {
    table_.each([&](const model::Corm& corm) {
        if (corm.host != node_.config.host || !corm.moved_addresses) return;
        const auto from = node_.engine.ifindex(corm.device), to = node_.engine.ifindex(corm.bridge());
        if (!from || !to) return;
        const auto held = netlink::addresses(node_.engine.socket(), *from);
        if (!held || held->empty()) return;
        log::notice("Corm {}: the addresses of {} move to its bridge", corm.full_name(), corm.device);
        if (const Status moved = netlink::move_addresses(node_.engine.socket(), *from, *to); !moved)
            log::error("Corm {}: {}", corm.full_name(), moved.error().message());
    });
}

asio::awaitable<void> Corms::ensure_network(model::Corm corm) {
    if (!node_.libvirt.connected()) co_return;  // libvirt_up() does it then
    const auto guard = co_await node_.locks.acquire("network:" + corm.name);
    if (by_name(corm.full_name()) == nullptr) co_return;  // deleted meanwhile
    const std::string network = model::network_name(corm.name);
    const auto outcome = co_await node_.libvirt.ensure_network(network, network_xml(corm));
    network_problems_.erase(corm.full_name());
    if (!outcome) {
        network_problems_[corm.full_name()] = outcome.error().message();
        log::error("Corm {}: {}", corm.full_name(), outcome.error().message());
    } else if (*outcome != NetworkOutcome::unchanged) {
        log::info("Corm {}: libvirt network {} is {}", corm.full_name(), network,
                  *outcome == NetworkOutcome::created ? "created" : "changed");
    }
}

}  // namespace banana::controller
