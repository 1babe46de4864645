// Wires: the Corm's side. This host alone decides who is wired to its Corms' ports (design §6, "Who decides").
//
// Concepts: every request names the Spike by key and comes from a host; that host may speak only for a half of its own.
// A decision is taken on a copy of the record by the model's state machine (model/wire.h), stored, and only then shown
// to the kernel: a crash in between is repaired on start by realising the plan of what was stored. A half that is
// retired passes nothing from that moment on; its device goes a little later, so that no link is deleted while a
// hand-over is under way.
//
// Methods served to peers and to this host itself:
//   wire.open     {spike, name, mac, allow_any_mac, corm, preference} -> Attachment   an owner's start
//   wire.check    {spike, mac, corm, preference}           may such a wire be opened?
//   wire.owner    {spike} -> {owner, standby, epoch, underlay}   who could grant it; from where its frames come
//   wire.prepare  {grant, mac, allow_any_mac, preference} -> Attachment    a destination's standby half
//   wire.attach   {spike, epoch, device}          this host only: the device of a native half
//   wire.flip     {spike, epoch}                  owner, whose guest was stopped; epoch: its half's
//   wire.back     {spike, abandon}                owner, whose guest runs again; abandon: no standby half is left
//   wire.activate {spike, epoch}                  destination, whose guest runs
//   wire.close    {spike, epoch, handed_over}     gives up the asker's half (epoch 0: whichever it is)
// Threading: the io_context's single thread; one coroutine at a time for each wire.
#pragma once

#include <map>
#include <set>

#include "controller/corms.h"
#include "migration/grant.h"
#include "model/spike.h"
#include "model/wire.h"

namespace banana::controller {

class Wires {
public:
    Wires(Node& node, Corms& corms, migration::Grants& grants);

    Status load();
    void serve();
    wiring::Plan plan() const;
    void drop_stale_devices();  // at start: taps that are gone, or are other guests' by now

    const registry::Table<model::Wire>& table() const { return table_; }
    const model::Wire* by_name(const std::string& name) const;
    std::vector<std::string> names_on(const std::string& corm) const;  // wired Spikes of a Corm
    bool handing_over() const;                                         // a wire has a standby half
    Async<void> evict(std::string spike);       // closes the Corm's side by hand, whoever has the Spike
    void verify_with(const std::string& host);  // asks it whether its sides of wires stand; also this host

private:
    struct Asked {  // a request's common part
        std::string spike, host;
        uint64_t epoch = 0;
    };
    Result<Asked> asked(const rpc::Context& context, const Json& params, bool with_epoch = true) const;
    using Retired = Result<std::vector<model::Half>>;  // the halves that a step has retired

    void note_refusal(const rpc::Context& context, const Json& params, const char* what, const Error& why) const;
    Async<Json> open(const rpc::Context& context, Json params);
    Async<Json> prepare(const rpc::Context& context, Json params);
    Async<Json> attach(const rpc::Context& context, Json params);
    Async<Json> change(const rpc::Context& context, Json params, const char* what, bool with_epoch,
                       std::function<Retired(model::Wire&, const Asked&)> step);
    Async<Json> check(const rpc::Context& context, Json params);
    Async<Json> owner(const rpc::Context& context, Json params);
    Async<Json> flip(const rpc::Context& context, Json params);
    Async<Json> flip_back(const rpc::Context& context, Json params);
    Async<Json> activate(const rpc::Context& context, Json params);
    Async<Json> close(const rpc::Context& context, Json params);

    Async<void> let_go(const rpc::Context& context, Json params);
    asio::awaitable<void> verify(std::string host);

    // An adopted netdev or an endpoint is its home's; a guest's Spike is its guest's, wherever that is started.
    Status check_home(const std::string& spike, const std::string& host) const;
    Status check_room(const std::string& spike, const std::string& host) const;
    Status check_open(const std::string& spike, const Mac& mac, const model::Corm& corm, const std::string& host) const;
    Result<model::Half> make_half(const std::string& host, const model::Corm& corm, const std::string& preference);
    Result<uint32_t> free_connector();
    uint32_t free_port() const;
    std::string free_name(const std::string& name, const std::string& spike) const;
    Async<Json> commit(model::Corm corm, model::Wire wire, std::string host, std::vector<model::Half> retired);
    Status close_half(const std::string& spike, const std::string& host, uint64_t epoch, bool handed_over);
    void retire(const std::vector<model::Half>& halves);
    asio::awaitable<void> drain(std::vector<model::Half> halves);
    Json attachment(const model::Corm& corm, const model::Wire& wire, const model::Half& half) const;

    Node& node_;
    Corms& corms_;
    migration::Grants& grants_;
    migration::NonceCache nonces_;
    registry::Table<model::Wire> table_;  // by Spike key
    // Derived from the table, so that a request does not have to go through all wires.
    struct Seat {
        std::string spike, name;
    };
    std::map<std::pair<std::string, Mac>, Seat> seats_;     // who has a MAC on a Corm
    std::map<std::string, std::set<std::string>> on_corm_;  // Corm -> Spike keys that are wired
    std::map<std::string, std::string> by_name_;            // of those that are not idle -> key
    std::map<std::string, size_t> owned_;                   // host -> wires that it owns
    std::set<uint32_t> vnis_, ports_;
    void index(const model::Wire& wire);
    void unindex(const model::Wire& wire);
    Status save(const model::Wire& wire);
    Status forget(const model::Wire& wire);
    uint64_t last_epoch_ = 0;       // of the wires that were forgotten
    std::set<std::string> asking_;  // hosts that verify() asks
};

}  // namespace banana::controller
