// Corms: those of this host, and what is known of the others'.
//
// Concepts: a Corm's host owns its record; every other host keeps a copy, so that networks and anchors survive a
// restart without the owner. Owners tell all their Corms whenever a connection comes up and whenever one changes
// ("corm.sync", the whole list: it replaces what was known of that host; see corms_sync.cpp). On every host each Corm
// has an anchor bridge and a libvirt network. A short name is reserved with every configured host before a Corm is
// made; a conflict found later is reported, and the Corm known first keeps its place here: of the other one no record
// is kept. A list of more than `max_corms` is refused, and changes nothing. Methods served: corm.create, corm.list,
// corm.show, corm.delete (control); corm.sync, corm.reserve (peers). Threading: the io_context's single thread.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <set>

#include "controller/node.h"
#include "model/corm.h"
#include "registry/table.h"

namespace banana::controller {

inline constexpr size_t max_corms = 256;  // of one host; each is a bridge and a libvirt network on every host

std::string joined(const std::vector<std::string>& names);  // "a, b"; "none"

class Corms {
public:
    explicit Corms(Node& node);

    Status load();                                // records of earlier runs
    void serve();                                 // adds the methods
    wiring::Plan plan() const;                    // bridges and anchors of all Corms known
    void make_room(const model::Corm& corm);      // for VXLAN's headers, in a bridge of this host's (wiring/headroom.h)
    void restore_addresses();                     // after a boot, those that were moved are at the uplink again
    void link_set(const netlink::Link& link);     // an uplink may be back
    void network_event(const std::string& name);  // libvirt's network was stopped or undefined
    void peer_up(const std::string& peer);
    void libvirt_up();

    const model::Corm* by_name(const std::string& full) const;   // "hv1/lab"
    const model::Corm* by_short(const std::string& name) const;  // "lab"
    const model::Corm* by_anchor(const std::string& device) const;
    Result<model::Corm> resolve(const std::string& name) const;  // either form; the error lists what there is
    Result<model::Corm> local(const std::string& full) const;    // one of this host's
    std::vector<model::Corm> all() const;
    std::vector<std::string> problems() const;  // names and libvirt networks that are not a Corm's alone
    std::string network_problem(const std::string& full) const;

    // How many wires a Corm has, for delete and list; set by whoever keeps the wires.
    std::function<std::vector<std::string>(const std::string& full)> wires_of;
    // A tap of a local guest is in this Corm's anchor, or a Spike is wired to it here.
    std::function<std::vector<std::string>(const std::string& full)> local_spikes_of;

private:
    Async<Json> create(Json params);
    Async<Json> remove(Json params);
    Async<Json> list();
    Async<Json> show(Json params);
    Async<Json> sync(const rpc::Context& context, Json params);
    Result<Json> reserve(const rpc::Context& context, const Json& params) const;

    Result<model::Corm> corm_of_request(const Json& params) const;
    Status check_free(const model::Corm& corm) const;
    Async<void> check_network(std::string corm_name);
    Status check_device(const model::Corm& corm, bool move_addresses, bool mtu_given, uint32_t& mtu);
    Async<void> reserve_everywhere(std::string name, bool force);
    Status build(const model::Corm& corm, bool move_addresses);
    Status return_addresses(const model::Corm& corm);
    Status unbuild(const model::Corm& corm);
    asio::awaitable<void> announce(std::string peer);
    void announce_all();
    asio::awaitable<void> ensure_network(model::Corm corm);
    // In corms_sync.cpp; the numbers are of Corms that changed.
    struct Remote {                                    // another host: what it told, as far as it is not carried out
        std::optional<std::vector<model::Corm>> told;  // the latest list
        std::set<std::string> networks;                // short names, whose libvirt networks are made or removed
        bool applying = false, settling = false;       // a coroutine is at it
    };
    asio::awaitable<void> apply_lists(std::string host);
    asio::awaitable<size_t> forget_missing(const std::string& host, const std::vector<model::Corm>& list);
    asio::awaitable<bool> forget(const model::Corm& corm);
    asio::awaitable<size_t> learn(const std::string& host, const std::vector<model::Corm>& list);
    bool note(const model::Corm& corm);
    void make_anchors(const std::vector<model::Corm>& corms);
    void settle_network(const std::string& host, const std::string& corm);
    void begin_settling(const std::string& host);
    asio::awaitable<void> settle_networks(std::string host);
    asio::awaitable<void> remove_network(const std::string& corm);
    Json json(const model::Corm& corm) const;        // as in a list: `wires` is how many
    Json json_shown(const model::Corm& corm) const;  // `wires` is their names
    Json corms_of_this_host() const;

    Node& node_;
    registry::Table<model::Corm> table_;  // by full name
    std::map<std::string, std::string> conflicts_, network_problems_;
    std::map<std::string, Remote> remotes_;  // by host; entries stay
};

}  // namespace banana::controller
