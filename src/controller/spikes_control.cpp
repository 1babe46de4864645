// What an administrator does to Spikes: macvtap endpoints, adopted netdevs, connecting and disconnecting by hand.

#include <fmt/core.h>

#include "controller/spikes.h"
#include "model/names.h"
#include "netlink/address.h"
#include "netlink/link.h"
#include "wiring/headroom.h"

namespace banana::controller {

using model::Spike;
using model::SpikeKind;
using model::SpikeState;

namespace {

Mac random_mac() {
    Mac mac{{0x52, 0x54, 0x00, 0, 0, 0}};  // QEMU's and libvirt's locally administered prefix
    random_bytes(std::span<uint8_t>(mac.bytes).subspan(3));
    return mac;
}

Json spike_json(const Spike& spike) {
    Json out = spike.json();
    out.set("wire", spike.preference);
    out.set("format", spike.attachment ? model::format_name(spike.attachment->half.format) : "");
    out.set("epoch", spike.attachment ? spike.attachment->half.epoch : uint64_t{0});
    if (spike.kind == SpikeKind::macvtap) {
        out.set("device", model::lower_device(spike.id));
        out.set("xml", fmt::format("<interface type='direct'><mac address='{}'/><source dev='{}' mode='passthrough'/>"
                                   "<model type='virtio'/></interface>",
                                   spike.mac.text(), model::lower_device(spike.id)));
    }
    return out;
}

Json spike_json(const Spike& spike, const std::set<std::string>& without_device) {
    Json out = spike_json(spike);
    out.set("problem", without_device.contains(spike.key) ? fmt::format("device {} is not there", spike.device) : "");
    return out;
}

}  // namespace

void Spikes::serve() {
    using rpc::Context;
    auto& d = node_.control;
    d.on("spike.list", [this](Context&, Json) -> Async<Json> {
        Json spikes = Json::array();
        const auto missing = without_device();
        table_.each([&](const Spike& spike) { spikes.push(spike_json(spike, missing)); });
        co_return Json::object({{"spikes", spikes}});
    });
    d.on("spike.show", [this](Context&, Json p) -> Async<Json> {
        CO_TRY_SET(const std::string name, p.string("name"));
        CO_TRY_SET(const Spike* spike, resolve(name));
        co_return spike_json(*spike, without_device());
    });
    d.on("spike.create", [this](Context&, Json p) -> Async<Json> { co_return co_await create(std::move(p)); });
    d.on("spike.adopt", [this](Context&, Json p) -> Async<Json> { co_return co_await adopt(std::move(p)); });
    d.on("spike.delete", [this](Context&, Json p) -> Async<Json> { co_return co_await remove(std::move(p)); });
    d.on("connect", [this](Context&, Json p) -> Async<Json> { co_return co_await connect(std::move(p)); });
    d.on("disconnect", [this](Context&, Json p) -> Async<Json> { co_return co_await disconnect(std::move(p)); });
    node_.dispatcher.on("spike.holds",
                        [this](Context& c, Json p) -> Async<Json> { co_return co_await holds(c, std::move(p)); });
}

std::set<std::string> Spikes::without_device() const {
    std::vector<const Spike*> adopted;
    std::vector<netlink::LinkRef> refs;
    table_.each([&](const Spike& spike) {
        if (spike.kind != SpikeKind::netdev) return;
        adopted.push_back(&spike);
        refs.emplace_back(spike.device);
    });
    const auto found = netlink::links_of(node_.engine.socket(), refs);
    std::set<std::string> out;
    for (size_t i = 0; i < adopted.size(); ++i)
        if (!found[i] && found[i].error().code() == Errc::not_found) out.insert(adopted[i]->key);
    return out;
}

// Asked by a Corm's host. The lock: what is being built has its record by then.
Async<Json> Spikes::holds(const rpc::Context& context, Json params) {
    CO_TRY_SET(const std::string key, params.string("spike"));
    CO_TRY_SET(const int64_t epoch, params.integer("epoch", 0));
    const std::string host = caller(node_, context);
    const auto guard = co_await lock(key);
    const Spike* spike = table_.find(key);
    const bool holds = spike != nullptr && spike->attachment && spike->attachment->corm_host == host &&
                       spike->attachment->half.epoch == static_cast<uint64_t>(epoch);
    if (spike == nullptr && node_.records_ignored) co_return node_.unreadable(key);
    co_return Json::object({{"holds", holds}});
}

Result<Spike> Spikes::new_netdev(const Json& params, SpikeKind kind) const {
    TRY_SET(const std::string label, params.string("name"));
    TRY(model::check_label(label));
    Spike spike;
    spike.kind = kind;
    spike.home = node_.config.host;
    spike.name = model::netdev_spike_name(spike.home, label);
    spike.key = model::netdev_key(spike.home, label);
    spike.id = random_u32();
    spike.allow_any_mac = params.get("allow_any_mac").as_bool();
    if (table_.find(spike.key) != nullptr || by_name(spike.name) != nullptr)
        return Error(Errc::exists, "there is a Spike " + spike.name + " already");
    if (params.has("mac")) {  // one that is none must not pass for "any"
        TRY_SET(spike.mac, Mac::parse(params.get("mac").as_string()));
        if (spike.mac.is_multicast() || spike.mac == Mac{})
            return Error(Errc::invalid, fmt::format("MAC {} is {}: no device sends from it", spike.mac.text(),
                                                    spike.mac == Mac{} ? "all zeros" : "a multicast address"));
    }
    return spike;
}

Async<Json> Spikes::create(Json params) {
    CO_TRY_SET(Spike spike, new_netdev(params, SpikeKind::macvtap));
    if (params.get("kind").as_string() != "macvtap") co_return Error(Errc::invalid, "member 'kind' must be 'macvtap'");
    if (spike.mac == Mac{}) spike.mac = random_mac();
    spike.device = model::lower_stub_device(spike.id);
    const auto guard = co_await lock(spike.key);
    CO_TRY(save(spike));
    if (const Status made = node_.engine.realise(wiring::plan_macvtap(spike, 0)); !made) {
        (void)erase(spike.key);
        co_return made.error().context("create Spike " + spike.name);
    }
    log::info("Spike {}: created (macvtap on {})", spike.name, model::lower_device(spike.id));
    co_return spike_json(spike);
}

Async<Json> Spikes::adopt(Json params) {
    CO_TRY_SET(Spike spike, new_netdev(params, SpikeKind::netdev));
    CO_TRY_SET(spike.device, params.string("device"));
    CO_TRY(model::check_device_name(spike.device));
    const auto link = netlink::link(node_.engine.socket(), spike.device);
    if (!link && link.error().code() == Errc::not_found)
        co_return Error(Errc::not_found, fmt::format("host {} has no device {}", node_.config.host, spike.device));
    if (!link) co_return link.error();
    if (const Spike* other = by_device(spike.device))
        co_return Error(Errc::exists, fmt::format("device {} is Spike {} already", spike.device, other->name));
    if (model::is_own_device(spike.device) || link->kind == "bridge" || link->loopback || link->master != 0)
        co_return Error(Errc::refused, fmt::format("device {} cannot be adopted: it is {}", spike.device,
                                                   link->master != 0        ? "a port of another device"
                                                   : link->loopback         ? "the loopback device"
                                                   : link->kind == "bridge" ? "a bridge"
                                                                            : "Banana's own"));
    CO_TRY_SET(const auto held, netlink::addresses(node_.engine.socket(), link->index));
    if (!held.empty())
        co_return Error(Errc::refused,
                        fmt::format("device {} holds the address {}: as a Spike it would be cut off from "
                                    "this host",
                                    spike.device, held.front().text()));
    if (spike.mac == Mac{}) {
        // A veth's other end is what will speak, and its address is not seen here.
        spike.mac = link->mac;
        spike.allow_any_mac = true;
    }
    const auto guard = co_await lock(spike.key);
    spike.stage = free_stage();
    CO_TRY(save(spike));
    stage(spike.key);
    log::info("Spike {}: adopted device {}", spike.name, spike.device);
    co_return spike_json(*table_.find(spike.key));
}

// The first that has a place.
uint32_t Spikes::free_stage() const {
    std::map<uint32_t, size_t> used;
    table_.each([&](const Spike& spike) { ++used[spike.stage]; });
    uint32_t number = 1;
    while (used[number] >= wiring::stage_places) ++number;
    return number;
}

void Spikes::choose_stages() {
    for (const auto& key : table_.keys()) {
        Spike spike = *table_.find(key);
        if (spike.kind != SpikeKind::netdev || spike.stage != 0) continue;
        const auto link = netlink::link(node_.engine.socket(), spike.device);
        if (!link || link->master != 0) continue;
        const auto held = netlink::addresses(node_.engine.socket(), link->index);
        if (!held || !held->empty()) continue;  // somebody uses it meanwhile
        spike.stage = free_stage();
        if (const Status saved = save(spike); !saved) log::error("{}", saved.error().message());
    }
}

void Spikes::stage_all() {
    for (const auto& key : table_.keys()) stage(key);
}

// What cannot be a port of a bridge does without. One that is not there is staged when it is back.
void Spikes::stage(const std::string& key) {
    const Spike* known = table_.find(key);
    if (known == nullptr || known->stage == 0) return;
    Spike spike = *known;
    wiring::Plan plan = wiring::plan_stage(node_.site(), spike.stage);
    plan += wiring::plan_staged(spike);
    const Status staged = node_.engine.realise(plan);
    if (staged || staged.error().code() == Errc::not_found) return;
    log::warning("Spike {}: its VXLAN wires will be slower, as device {} is in no bridge: {}", spike.name, spike.device,
                 staged.error().message());
    spike.stage = 0;
    if (const Status saved = save(spike); !saved) log::error("{}", saved.error().message());
}

Status Spikes::unstage(const Spike& spike) {
    if (spike.stage == 0) return {};
    size_t users = 0;
    table_.each([&](const Spike& other) { users += other.stage == spike.stage ? 1 : 0; });
    wiring::Plan plan = wiring::plan_unstaged(spike);
    if (users == 1) plan += wiring::plan_stage_gone(spike.stage);
    return node_.engine.realise(plan);
}

Async<Json> Spikes::remove(Json params) {
    CO_TRY_SET(const std::string name, params.string("name"));
    CO_TRY_SET(const Spike* known, resolve(name));
    const std::string key = known->key;
    const auto guard = co_await lock(key);
    const Spike* now = table_.find(key);
    if (now == nullptr) co_return Json::object();
    if (now->kind == SpikeKind::tap)
        co_return Error(Errc::refused,
                        fmt::format("Spike {} is a guest's: it goes with the guest's interface", now->name));
    if (now->state != SpikeState::unwired)
        co_return Error(Errc::refused,
                        fmt::format("Spike {} is wired to Corm {}; banana disconnect it, or shut its guest "
                                    "down, first",
                                    now->name, now->corm));
    const Spike spike = *now;
    // A Corm's host that cannot be told, be it gone for good, asks when it is back (Wires::verify).
    if (spike.attachment) CO_TRY(co_await release(key, false));
    if (spike.kind == SpikeKind::macvtap) CO_TRY(node_.engine.realise(wiring::plan_macvtap_gone(spike)));
    CO_TRY(unstage(spike));
    CO_TRY(erase(key));
    co_return Json::object();
}

Async<Json> Spikes::connect(Json params) {
    CO_TRY_SET(const std::string name, params.string("spike"));
    CO_TRY_SET(const std::string corm_name, params.string("corm"));
    CO_TRY_SET(const model::Corm corm, corms_.resolve(corm_name));
    CO_TRY_SET(const std::string preference, model::parse_preference(params.get("wire").as_string()));
    CO_TRY_SET(const Spike* known, resolve(name));
    const std::string key = known->key;
    const auto guard = co_await lock(key);
    known = table_.find(key);
    if (known == nullptr) co_return Error(Errc::not_found, "Spike " + name + " is gone");
    Spike spike = *known;
    if (spike.kind == SpikeKind::tap)
        co_return Error(Errc::refused,
                        fmt::format("Spike {} is a guest's tap: its Corm is that of its libvirt network (virsh "
                                    "update-device), its wire that of its metadata",
                                    spike.name));
    spike.corm = corm.full_name();
    spike.preference = preference;
    if (spike.kind == SpikeKind::macvtap && spike.state == SpikeState::unwired) {
        // Its guest is not running: the wire is built when it starts.
        CO_TRY(save(spike));
        co_return spike_json(spike);
    }
    if (spike.state != SpikeState::unwired)
        co_return Error(Errc::exists, fmt::format("Spike {} is wired to Corm {} already; banana disconnect it first",
                                                  spike.name, known->corm));
    CO_TRY(co_await build(spike));
    const Status attached = co_await attach(key, spike.device, spike.kind == SpikeKind::netdev);
    if (!attached) {
        (void)co_await release(key, false);
        co_return attached.error();
    }
    co_return spike_json(*table_.find(key));
}

Async<Json> Spikes::disconnect(Json params) {
    CO_TRY_SET(const std::string name, params.string("spike"));
    const auto found = resolve(name);
    if (!found) {
        // The Corm's side of a wire whose Spike's host is gone for good.
        const auto* wire = wires_.by_name(name);
        if (wire == nullptr) co_return found.error();
        if (node_.peers.is_up(wire->owner()))
            co_return Error(
                Errc::refused,
                fmt::format("Spike {} is on host {}, which is connected: disconnect it there", name, wire->owner()));
        log::warning("Spike {}: disconnected by hand; host {} is not connected", name, wire->owner());
        CO_TRY(co_await wires_.evict(wire->spike));
        co_return Json::object();
    }
    const std::string key = (*found)->key;
    const auto guard = co_await lock(key);
    const Spike* known = table_.find(key);
    if (known != nullptr && known->kind != SpikeKind::netdev && known->state != SpikeState::unwired)
        co_return Error(Errc::refused,
                        fmt::format("Spike {} is a running guest's: detach its interface by virsh", name));
    CO_TRY(co_await release(key, false));
    co_return Json::object();
}

}  // namespace banana::controller
