// Handover: the moments of a live migration, at its source and at its destination (design §6).
//
// Concepts:
//   source       a Spike that its owner granted to another host is *outgoing*. Its QEMU's STOP, or MIGRATION
//                pre-switchover or device (a paused guest has no STOP), flips the wire: from then on frames to the
//                guest wait in the destination's tap. If the guest runs again here (RESUME, and libvirt says so when
//                asked), the wire is flipped back.
//   destination  RESUME or the guest's first frame activates the new epoch; the Corm's host then lets in nothing else.
//                The source's end of the wire being closed does the same, at the Corm's host. MIGRATION completed does
//                not: libvirt may still let the guest run on at the source.
// Where a guest runs whose wire is another's, or nobody's, its host asks on until it has one, or the guest is gone.
// After events were lost (a reconnect), the states are queried. Flips and activations are repeated until the Corm's
// host has answered, as long as they still mean something. A short history of each migration is kept for `banana
// migration show`. Threading: the io_context's single thread.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <set>

#include "controller/spikes.h"

namespace banana::controller {

class Handover {
public:
    Handover(Node& node, Spikes& spikes, migration::Grants& grants);
    void serve();

    void qmp_event(const Domain& domain, const std::string& name, const Json& data);
    void first_frame(const xconnect::FirstFrame& report);
    void resync();                          // what has no event, or whose event came too early
    void events_lost();                     // libvirt's: QEMU may have told of a migration's end
    void ended(const model::Spike& spike);  // it is being released here

    // A guest became this host's.
    std::function<void(const std::string& uuid)> on_active;

private:
    struct Moment {
        int64_t at_ns;
        std::string what;
    };
    struct Record {
        std::string spike, from, to;
        uint64_t epoch = 0;
        std::string phase;
        std::deque<Moment> moments;
    };
    struct Given {          // a grant
        int64_t at_ns = 0;  // monotonic; 0: before this daemon's start
        bool watched = false;
        bool begun = false;  // QEMU has told of the migration
    };
    Async<Json> grant(const rpc::Context& context, Json params);
    Async<Json> runs(const rpc::Context& context, Json params);
    void watch_grant(const std::string& key, int64_t granted);
    asio::awaitable<void> end_grant(std::string key);
    Async<void> check_only_destination(const model::Spike& spike, const std::string& destination);
    Error refuse_other(const model::Spike& spike, const std::string& destination) const;
    asio::awaitable<void> repeat(std::string key, const char* what, std::function<Async<bool>()> attempt);
    Async<void> rewire(const model::Spike& spike, const Error& why);
    void arrived(const model::Spike& spike, const std::string& sign);
    asio::awaitable<void> leave(std::string key);
    Async<bool> try_leave(const std::string& key, bool first);
    asio::awaitable<void> come_back(std::string key, std::string uuid);
    asio::awaitable<void> activate(std::string key, uint64_t epoch, std::string sign);
    asio::awaitable<void> look_at(std::string key);
    asio::awaitable<void> failed(std::string key, int64_t granted);
    asio::awaitable<void> settle(std::string key, uint64_t epoch);
    Async<bool> try_settle(const std::string& key, uint64_t epoch);
    Status owned(model::Spike spike, const std::string& sign);
    Async<bool> try_activate(const std::string& key, uint64_t epoch, const std::string& sign);
    Async<bool> try_come_back(const std::string& key, const std::string& uuid);
    asio::awaitable<void> restore_queue(std::string key);
    asio::awaitable<void> tell_home(model::Spike spike);
    Record& record(const model::Spike& spike, const std::string& from, const std::string& to);
    void note(const std::string& key, const std::string& phase, const std::string& what);

    Node& node_;
    Spikes& spikes_;
    migration::Grants& grants_;
    std::map<std::string, Record> records_;                  // by key; the latest of each
    std::map<std::string, Given> grants_given_;              // by key
    std::set<std::string> returning_;                        // keys
    std::set<std::pair<std::string, uint64_t>> activating_;  // keys and epochs
};

}  // namespace banana::controller
