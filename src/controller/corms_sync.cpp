// Other hosts' Corms: what they tell of them, and what is made of that here.
//
// A member of the cluster may be broken, or hostile, and tell list after list of ever new names; each name is a bridge
// and a libvirt network here. Goal: it costs this host no more than a share of its time, and the others none of theirs.
// So of each host only the latest list counts; one coroutine carries it out, in pieces between which others have their
// turn, and then rests in proportion to what it changed. A second one sees to libvirt's networks, one at a time:
// libvirt may be slow or hang, and records and anchors must not wait for it. Which networks are due is a set of names;
// what each needs is looked up when its turn comes, so that it does not matter what was told in between.

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "controller/corms.h"
#include "model/names.h"

namespace banana::controller {

namespace {

constexpr size_t piece = 16;                // anchors that are made or removed by one plan
constexpr milliseconds between_pieces{10};  // for whoever waits for this thread
constexpr milliseconds rest{100}, rest_for_change{50}, libvirt_look{500};
constexpr size_t networks_due_max = 2 * max_corms;

}  // namespace

Async<Json> Corms::sync(const rpc::Context& context, Json params) {
    const std::string host = caller(node_, context);
    if (host == node_.config.host) co_return Error(Errc::refused, "a host does not announce Corms to itself");
    CO_TRY_SET(const Json corms, params.array_at("corms"));
    if (corms.size() > max_corms)
        co_return Error(Errc::refused, fmt::format("host {} announced {} Corms; at most {} of a host are known", host,
                                                   corms.size(), max_corms));
    std::vector<model::Corm> told;
    for (size_t i = 0; i < corms.size(); ++i) {
        CO_TRY_SET(model::Corm corm, model::Corm::from_json(corms.at(i)));
        if (corm.host != host)
            co_return Error(Errc::refused, fmt::format("host {} announced a Corm of host {}", host, corm.host));
        told.push_back(std::move(corm));
    }
    Remote& remote = remotes_[host];
    remote.told = std::move(told);
    if (!std::exchange(remote.applying, true)) node_.spawn(apply_lists(host), "learning of Corms");
    co_return Json::object();
}

asio::awaitable<void> Corms::apply_lists(std::string host) {
    Remote& remote = remotes_[host];
    while (remote.told) {
        const auto list = *std::exchange(remote.told, std::nullopt);
        size_t changes = co_await forget_missing(host, list);
        changes += co_await learn(host, list);
        co_await node_.sleep(rest + changes * rest_for_change);
        while (node_.libvirt.connected() && remote.networks.size() > networks_due_max)
            co_await node_.sleep(libvirt_look);
    }
    remote.applying = false;
}

asio::awaitable<size_t> Corms::forget_missing(const std::string& host, const std::vector<model::Corm>& list) {
    std::set<std::string> told;
    for (const auto& corm : list) told.insert(corm.full_name());
    const auto is_gone = [&](const std::string& full) {
        return model::corm_host(full) == host && !told.contains(full);
    };
    std::erase_if(conflicts_, [&](const auto& conflict) { return is_gone(conflict.first); });
    std::vector<model::Corm> gone = all();
    std::erase_if(gone, [&](const auto& corm) { return !is_gone(corm.full_name()); });
    size_t changes = 0;
    for (size_t first = 0; first < gone.size(); first += piece) {
        std::vector<model::Corm> forgotten;
        for (size_t i = first; i < std::min(first + piece, gone.size()); ++i)
            if (co_await forget(gone[i])) forgotten.push_back(gone[i]);
        wiring::Plan plan;
        for (const auto& corm : forgotten)
            if (by_short(corm.name) == nullptr)
                plan += wiring::plan_anchor_gone(corm);  // else it was made here just now
        if (const Status done = node_.engine.realise(plan); !done)
            log::error("Corms of host {}: {}", host, done.error().message());
        for (const auto& corm : forgotten) settle_network(host, corm.name);
        changes += forgotten.size();
        co_await node_.sleep(between_pieces);
    }
    co_return changes;
}

// False: it stays.
asio::awaitable<bool> Corms::forget(const model::Corm& corm) {
    const std::string full = corm.full_name();
    const auto guard = co_await node_.locks.acquire("corm:" + corm.name);
    const model::Corm* known = by_name(full);
    if (known == nullptr || known->id != corm.id) co_return false;  // another one of that name by now
    if (const auto used = local_spikes_of(full); !used.empty()) {
        log::warning("Corm {} is gone, but wired on this host: {}", full, joined(used));
        co_return false;
    }
    log::info("Corm {}: its host no longer has it", full);
    if (const Status erased = table_.erase(full); !erased) {
        log::error("Corm {}: {}", full, erased.error().message());
        co_return false;
    }
    network_problems_.erase(full);
    co_return true;
}

asio::awaitable<size_t> Corms::learn(const std::string& host, const std::vector<model::Corm>& list) {
    size_t changes = 0;
    for (size_t first = 0; first < list.size(); first += piece) {
        std::vector<model::Corm> known;
        for (size_t i = first; i < std::min(first + piece, list.size()); ++i) {
            const std::string full = list[i].full_name();
            const bool changed = note(list[i]);
            changes += changed ? 1 : 0;
            if (by_name(full) == nullptr) continue;
            known.push_back(list[i]);
            if (changed || network_problems_.contains(full)) settle_network(host, list[i].name);
        }
        make_anchors(known);
        co_await node_.sleep(between_pieces);
    }
    co_return changes;
}

// True: it says something new.
bool Corms::note(const model::Corm& corm) {
    const std::string full = corm.full_name();
    const model::Corm *known = by_name(full), *same_name = by_short(corm.name);
    if (same_name != nullptr && same_name->full_name() != full) {
        const std::string text = fmt::format(
            "Corm {0} and Corm {1} have the same short name: {0} keeps the network {2} on this host, the "
            "other cannot be used from here; delete one of them",
            same_name->full_name(), full, model::network_name(corm.name));
        if (std::exchange(conflicts_[full], text) == text) return false;
        log::error("{}", text);
        return true;
    }
    conflicts_.erase(full);
    if (known != nullptr && known->json().dump() == corm.json().dump()) return false;
    log::info("Corm {}: told by host {}", full, corm.host);
    if (const Status saved = table_.save(full, corm); !saved) log::error("Corm {}: {}", full, saved.error().message());
    return true;
}

// One that cannot be had must not keep the others from being made.
void Corms::make_anchors(const std::vector<model::Corm>& corms) {
    wiring::Plan all;
    for (const auto& corm : corms) all += wiring::plan_anchor(corm);
    if (node_.engine.realise(all)) return;
    for (const auto& corm : corms)
        if (const Status made = node_.engine.realise(wiring::plan_anchor(corm)); !made)
            log::error("Corm {}: {}", corm.full_name(), made.error().message());
}

void Corms::settle_network(const std::string& host, const std::string& corm) {
    Remote& remote = remotes_[host];
    const bool room = node_.libvirt.connected() || remote.networks.size() < networks_due_max;
    if (node_.libvirt.used() && room) remote.networks.insert(corm);
    begin_settling(host);
}

// Also when libvirt is back: what a Corm that was forgotten meanwhile leaves is in no other list.
void Corms::begin_settling(const std::string& host) {
    Remote& remote = remotes_[host];
    if (remote.networks.empty() || !node_.libvirt.connected() || std::exchange(remote.settling, true)) return;
    node_.spawn(settle_networks(host), "settling networks");
}

asio::awaitable<void> Corms::settle_networks(std::string host) {
    Remote& remote = remotes_[host];
    while (!remote.networks.empty() && node_.libvirt.connected()) {
        const std::string name = remote.networks.extract(remote.networks.begin()).value();
        if (const model::Corm* corm = by_short(name))
            co_await ensure_network(*corm);
        else
            co_await remove_network(name);
        if (!node_.libvirt.connected()) remote.networks.insert(name);  // it may not have come to that
    }
    remote.settling = false;
}

asio::awaitable<void> Corms::remove_network(const std::string& corm) {
    const auto guard = co_await node_.locks.acquire("network:" + corm);
    if (by_short(corm) != nullptr) co_return;  // made anew meanwhile, and ensure_network() waits for us
    const auto removed = co_await node_.libvirt.remove_network(model::network_name(corm));
    if (!removed) log::warning("Corm {}: {}", corm, removed.error().message());
}

}  // namespace banana::controller
