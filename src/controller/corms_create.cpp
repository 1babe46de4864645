// Making and deleting Corms. Everything is checked, and the name reserved, before anything is changed.

#include <fmt/core.h>

#include <algorithm>

#include "controller/corms.h"
#include "model/names.h"
#include "netlink/address.h"
#include "netlink/link.h"

namespace banana::controller {

Result<model::Corm> Corms::corm_of_request(const Json& params) const {
    Json record = Json::object({{"id", hex32(random_u32())},
                                {"name", params.get("name")},
                                {"host", node_.config.host},
                                {"kind", params.get("kind")},
                                {"device", params.get("device").as_string()},
                                {"mtu", params.get("mtu").as_int(1500)},
                                {"hosts", params.get("hosts")}});
    record.set("formats",
               params.get("formats").size() != 0
                   ? params.get("formats")
                   : model::formats_json({model::Format::native, model::Format::vxlan, model::Format::dtls}));
    const Json formats = record.get("formats");
    for (size_t i = 0; i < formats.size(); ++i) TRY(model::parse_format(formats.at(i).as_string()));
    const Json hosts = params.get("hosts");
    for (size_t i = 0; i < hosts.size(); ++i) TRY(model::check_host_name(hosts.at(i).as_string()));
    TRY_SET(model::Corm corm, model::Corm::from_json(record));
    if (corm.kind == model::CormKind::etherstub && !corm.device.empty())
        return Error(Errc::invalid, "an etherstub has no uplink");
    if (corm.kind != model::CormKind::etherstub) TRY(model::check_device_name(corm.device));
    return corm;
}

Status Corms::check_free(const model::Corm& corm) const {
    if (const auto* known = by_short(corm.name))
        return Error(Errc::exists, fmt::format("the Corm name '{}' is taken: {}", corm.name, known->full_name()));
    size_t count = 0;
    for (const auto& other : all()) {
        if (other.host != corm.host) continue;
        ++count;
        if (!corm.device.empty() && other.device == corm.device)
            return Error(Errc::refused, fmt::format("device {} is Corm {}'s", corm.device, other.full_name()));
    }
    if (count < max_corms) return {};
    return Error(Errc::refused, fmt::format("host {} has {} Corms, and may have no more", corm.host, count));
}

// Guests would use that one in the Corm's place. libvirt need not be there; then it is found later, and told.
Async<void> Corms::check_network(std::string corm_name) {
    if (!node_.libvirt.connected()) co_return Status();
    const std::string network = model::network_name(corm_name);
    const auto known = co_await node_.libvirt.networks();
    const bool foreign = known && std::any_of(known->begin(), known->end(), [&](const NetworkEntry& entry) {
                             return entry.name == network && !entry.ours;
                         });
    if (!foreign) co_return Status();
    co_return Error(Errc::exists,
                    fmt::format("host {} has a libvirt network {} that is not Banana's, which guests would "
                                "use in the Corm's place: remove it, or choose another name",
                                node_.config.host, network));
}

Status Corms::check_device(const model::Corm& corm, bool move_addresses, bool mtu_given, uint32_t& mtu) {
    if (corm.kind == model::CormKind::etherstub) return {};
    auto link = netlink::link(node_.engine.socket(), corm.device);
    if (!link && link.error().code() == Errc::not_found)
        return Error(Errc::not_found, fmt::format("host {} has no device {}", corm.host, corm.device));
    if (!link) return link.error();
    if (!mtu_given) mtu = link->mtu;
    const Status fits = model::check_mtu(mtu).context("device " + corm.device);
    if (corm.kind == model::CormKind::bridge) {
        if (link->kind != "bridge" || model::is_own_device(link->name) || by_anchor(link->name) != nullptr)
            return Error(Errc::refused, fmt::format("device {} is not a bridge that can be adopted", corm.device));
        TRY(fits);
        if (mtu > link->mtu)
            return Error(Errc::invalid,
                         fmt::format("MTU {} is larger than that of bridge {}, {}", mtu, corm.device, link->mtu));
        return {};
    }
    if (link->loopback || link->kind == "bridge")
        return Error(Errc::refused,
                     fmt::format("device {} cannot be an uplink; for a bridge use --bridge", corm.device));
    if (link->master != 0)
        return Error(Errc::refused,
                     fmt::format("device {} is a port of another device; take it out of that first, or use "
                                 "--bridge with it",
                                 corm.device));
    TRY(fits);
    if (mtu > link->mtu)
        return Error(Errc::invalid,
                     fmt::format("MTU {} is larger than that of uplink {}, {}", mtu, corm.device, link->mtu));
    TRY_SET(const auto addresses, netlink::addresses(node_.engine.socket(), link->index));
    if (addresses.empty() || move_addresses) return {};
    return Error(Errc::refused,
                 fmt::format("uplink {} holds the address {}; --move-addresses moves addresses and routes to "
                             "the Corm's bridge",
                             corm.device, addresses.front().text()));
}

Result<Json> Corms::reserve(const rpc::Context& context, const Json& params) const {
    TRY_SET(const std::string name, params.string("name"));
    if (node_.locks.held("corm:" + name))
        return Error(Errc::busy, fmt::format("host {} is making or deleting a Corm of that name", node_.config.host));
    const model::Corm* corm = by_short(name);
    if (corm != nullptr && corm->host != caller(node_, context))
        return Error(Errc::exists,
                     fmt::format("host {} knows a Corm {} already", node_.config.host, corm->full_name()));
    return Json::object();
}

Async<void> Corms::reserve_everywhere(std::string name, bool force) {
    for (const auto& peer : node_.peers.names()) {
        Json params = Json::object({{"name", name}});
        const auto reply = co_await node_.call(peer, "corm.reserve", params);
        if (reply) continue;
        if (reply.error().code() == Errc::exists) co_return reply.error();
        if (force) {
            log::warning("Corm {}: made without host {}'s word: {}", name, peer, reply.error().message());
            continue;
        }
        co_return Error(Errc::unreachable,
                        fmt::format("host {} cannot be asked whether the name '{}' is free: {}; --force "
                                    "does without",
                                    peer, name, reply.error().message()));
    }
    co_return Status();
}

Status Corms::build(const model::Corm& corm, bool move_addresses) {
    wiring::Plan plan = wiring::plan_corm(corm);
    plan += wiring::plan_anchor(corm);
    TRY(node_.engine.realise(plan));
    make_room(corm);
    if (!move_addresses) return {};
    TRY_SET(const uint32_t from, node_.engine.ifindex(corm.device));
    TRY_SET(const uint32_t to, node_.engine.ifindex(corm.bridge()));
    return netlink::move_addresses(node_.engine.socket(), from, to);
}

// The bridge's addresses are the host's own: they are at the uplink again before the bridge goes.
Status Corms::return_addresses(const model::Corm& corm) {
    auto& socket = node_.engine.socket();
    const auto bridge = netlink::link(socket, corm.bridge());
    if (!bridge && bridge.error().code() == Errc::not_found) return {};
    if (!bridge) return bridge.error();
    const auto uplink = netlink::link(socket, corm.device);
    if (!uplink) {
        TRY_SET(const auto held, netlink::addresses(socket, bridge->index));
        if (held.empty()) return {};
        return uplink.error().context(
            fmt::format("bridge {} holds the address {} of uplink {}", bridge->name, held.front().text(), corm.device));
    }
    if (uplink->master == bridge->index) TRY(socket.request(netlink::clear_master(uplink->index)));
    return netlink::move_addresses(socket, bridge->index, uplink->index);
}

Status Corms::unbuild(const model::Corm& corm) {
    if (corm.moved_addresses) TRY(return_addresses(corm));
    return node_.engine.realise(wiring::plan_corm_gone(corm));
}

Async<Json> Corms::create(Json params) {
    CO_TRY_SET(model::Corm corm, corm_of_request(params));
    const bool move_addresses = params.get("move_addresses").as_bool();
    const std::string full = corm.full_name();
    const auto guard = co_await node_.locks.acquire("corm:" + corm.name);
    const bool mtu_given = params.has("mtu") && !params.get("mtu").is_null();
    CO_TRY(check_free(corm));
    CO_TRY(check_device(corm, move_addresses, mtu_given, corm.mtu));
    CO_TRY(co_await check_network(corm.name));
    CO_TRY(co_await reserve_everywhere(corm.name, params.get("force").as_bool()));
    // While the peers were asked, another Corm may have got the name or the device.
    CO_TRY(check_free(corm));
    CO_TRY(check_device(corm, move_addresses, mtu_given, corm.mtu));
    if (corm.kind == model::CormKind::uplink) {
        CO_TRY_SET(const auto uplink, netlink::link(node_.engine.socket(), corm.device));
        corm.mac = uplink.mac;
    }
    corm.moved_addresses = move_addresses && corm.kind == model::CormKind::uplink;
    CO_TRY(table_.save(full, corm));
    if (const Status built = build(corm, corm.moved_addresses); !built) {
        (void)unbuild(corm);
        (void)table_.erase(full);
        co_return built.error().context("create Corm " + full);
    }
    log::info("Corm {}: created ({}{}{}, MTU {})", full, model::corm_kind_name(corm.kind),
              corm.device.empty() ? "" : " ", corm.device, corm.mtu);
    co_await ensure_network(corm);
    announce_all();
    co_return json_shown(corm);
}

Async<Json> Corms::remove(Json params) {
    CO_TRY_SET(const std::string name, params.string("name"));
    CO_TRY_SET(const model::Corm known, resolve(name));
    const auto guard = co_await node_.locks.acquire("corm:" + known.name);
    CO_TRY_SET(const model::Corm corm, local(known.full_name()));
    const std::string full = corm.full_name();
    auto wired = wires_of(full);
    for (const auto& spike : local_spikes_of(full)) wired.push_back(spike);
    std::sort(wired.begin(), wired.end());
    wired.erase(std::unique(wired.begin(), wired.end()), wired.end());
    if (!wired.empty())
        co_return Error(Errc::refused, fmt::format("Corm {} is wired to {}; disconnect or shut down those first", full,
                                                   joined(wired)));
    // Without a pause, so that nobody is wired to it meanwhile; and the record last: what a crash leaves is whole again
    // after the next start, with the host's addresses.
    Status gone = unbuild(corm);
    if (gone) gone = table_.erase(full);
    if (!gone) {
        if (const Status back = build(corm, corm.moved_addresses); !back)
            log::error("Corm {}: {}", full, back.error().message());
        co_return gone.error().context("delete Corm " + full);
    }
    if (node_.libvirt.connected()) {
        const auto network = co_await node_.locks.acquire("network:" + corm.name);
        const auto removed = co_await node_.libvirt.remove_network(model::network_name(corm.name));
        if (!removed) log::warning("Corm {}: {}", full, removed.error().message());
    }
    log::info("Corm {}: deleted", full);
    announce_all();
    co_return Json::object();
}

}  // namespace banana::controller
