// Spikes: the guest's side. What this host has built for the endpoints that are here, or on their way here or away.
//
// Concepts: a Spike goes through build (wire to the Corm's host, probed, its device not needed yet), attach (its device
// in the cross-connect) and release. Each can be repeated and continued: what stands already is left as it is. Who may
// have the Spike is not decided here but by the Corm's host (wires.h), which is asked by method, also when it is this
// host. A release that the Corm's host cannot be told of is remembered and told when it is back.
// Methods served: spike.*, connect, disconnect (control), spike.holds (peers), in spikes_control.cpp. What is looked
// after is in spikes_care.cpp.
// Threading: the io_context's single thread; one coroutine at a time for each Spike.
#pragma once

#include "controller/corms.h"
#include "controller/wires.h"
#include "model/spike.h"

namespace banana::controller {

class Spikes {
public:
    Spikes(Node& node, Corms& corms, Wires& wires);

    Status load();
    void serve();
    wiring::Plan plan() const;
    void drop_stale_devices();                  // at start: taps that are gone, or are other guests' by now
    void verify_with(const std::string& peer);  // tells it what could not be told, asks if its side of wires stands
    void choose_stages();                       // at start: adopted netdevs of an earlier version get one
    void stage_all();                           // adopted netdevs into their stages (wiring/headroom.h)
    void link_set(const netlink::Link& link);   // an adopted netdev may be back
    asio::awaitable<void> retry_loop();         // tells of releases, and makes lost wires anew, again and again
    asio::awaitable<void> settle();             // after start: gives up what a crash left half built

    const registry::Table<model::Spike>& table() const { return table_; }
    const model::Spike* by_name(const std::string& name) const;
    // What a user calls it: its name, or the last part of an adopted or created one's of this host.
    Result<const model::Spike*> resolve(const std::string& name) const;
    const model::Spike* by_device(const std::string& device) const;
    // Keys of those whose adopted device is not there.
    std::set<std::string> without_device() const;
    std::vector<model::Spike> of_domain(const std::string& uuid) const;
    bool handing_over() const;  // a Spike is granted, leaves or arrives
    std::vector<std::string> names_on(const std::string& corm) const;
    // A tap's record ends with its guest's run; so does a macvtap endpoint's away from its home, made for the visit.
    bool goes_with_guest(const model::Spike& spike) const;
    Status save(const model::Spike& spike);

    // One wiring of a Spike: who has waited for its lock to release it must not release its next one.
    struct Wiring {
        std::string key, corm;
        uint64_t epoch = 0;  // 0: it is not wired
        bool operator==(const Wiring&) const = default;
    };
    static Wiring wiring_of(const model::Spike& spike);
    bool stands(const Wiring& wiring) const;

    // Builds the Spike's wire; `spike` says who it is (all but state and attachment). With a grant: a standby wire of
    // an incoming guest. The caller holds the Spike's lock. `as`: what it is while nobody has attached it: built, which
    // a restart gives up, or wired, which a restart makes anew.
    Async<void> build(model::Spike spike, Json grant = {}, model::SpikeState as = model::SpikeState::built);
    // Its device is there: cross-connects it. The caller holds the lock. `realised`: build() had that device already.
    Async<void> attach(std::string key, std::string device, bool realised = false);
    // Both, for a device that is there; all or nothing. The caller holds the lock.
    Async<void> wire(model::Spike spike, std::string device);
    // The wire is given up on both sides. `forget`: the record goes as well. The caller holds the lock.
    Async<void> release(std::string key, bool forget);
    // A new wire for a guest, or a device, that is here and whose old one is lost. The caller holds the lock.
    Async<void> remake(model::Spike spike);
    asio::awaitable<KeyLock::Guard> lock(const std::string& key) { return node_.locks.acquire("spike:" + key); }

    std::string unique_name(const std::string& name, const std::string& key) const;  // on this host

private:
    Async<Json> create(Json params);
    Async<Json> adopt(Json params);
    Async<Json> remove(Json params);
    Async<Json> connect(Json params);
    Async<Json> disconnect(Json params);
    Async<Json> holds(const rpc::Context& context, Json params);
    uint32_t free_stage() const;
    void stage(const std::string& key);
    Status unstage(const model::Spike& spike);
    Result<model::Spike> new_netdev(const Json& params, model::SpikeKind kind) const;

    Result<model::Attachment> read_answer(const Json& reply, model::Spike& spike) const;
    Async<model::Attachment> ask(model::Spike& spike, const Json& grant);
    Async<void> probe(model::Spike spike);
    Async<void> close_at_corm(model::Spike spike, bool handed_over);
    asio::awaitable<void> tell_of_release(std::string key);
    asio::awaitable<void> verify(std::string key);
    asio::awaitable<void> verify_all(std::string peer);
    asio::awaitable<void> look_after(std::string key);
    bool has_moved(const model::Spike& spike, const Json& told) const;
    asio::awaitable<void> reattach(std::string key);
    bool owns_device(const model::Spike& spike) const;
    Async<void> build_once(model::Spike spike, Json grant, model::SpikeState as);

    Node& node_;
    Corms& corms_;
    Wires& wires_;
    Status erase(const std::string& key);
    registry::Table<model::Spike> table_;  // by key
    std::set<std::string> to_verify_;      // keys of those whose wire was lost and could not be made anew
    std::set<std::string> asking_;         // hosts that verify_all() asks
    // Derived from the table, so that a request does not have to go through all Spikes.
    std::map<std::string, std::string> by_device_;           // device -> key
    std::set<std::pair<std::string, std::string>> by_name_;  // (name, key)
};

}  // namespace banana::controller
