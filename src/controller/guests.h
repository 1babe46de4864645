// Guests: what libvirt does with domains, turned into what happens to Spikes.
//
// Concepts: a start comes by hooks: `prepare` builds the wires (and may refuse the start), `start` cross-connects the
// taps, before QEMU runs. A migration's destination has `migrate` first: its Spikes are incoming, their wires standby
// ones under a grant of the owner. A hotplug has no domain hook: the network's port is checked (and may be refused) by
// `port-created`, and the wire is made when the tap appears in the Corm's anchor. An interface moved to another Corm is
// a tap that changed anchors. The end comes by `stopped`, `release` or the tap's disappearance; all are the same.
// What was missed (this daemon or libvirtd was down) is found by resync(), from libvirt's list of domains.
//
// A hook's answer never waits for libvirt. What libvirt is needed for (metadata, XML) runs by itself afterwards.
// Methods served: hook.qemu, hook.network (control); spike.moved (peers).
// Threading: the io_context's single thread.
#pragma once

#include <asio/steady_timer.hpp>
#include <map>
#include <optional>
#include <set>

#include "controller/handover.h"
#include "controller/spikes.h"
#include "libvirt-hooks/domain_xml.h"
#include "libvirt-hooks/network_xml.h"
#include "netlink/link.h"

namespace banana::controller {

class Guests {
public:
    Guests(Node& node, Corms& corms, Spikes& spikes, Handover& handover);
    void serve();

    // From the link monitor.
    void link_set(const netlink::Link& link);
    void link_deleted(const std::string& name);
    // From libvirt.
    void connected();   // to libvirt; events may have been lost
    void look_again();  // at all guests
    void device_added(const Domain& domain);
    void stopped(const Domain& domain);
    void metadata_changed(const Domain& domain);
    // After a guest became this host's: its metadata is written, its tap's queue restored.
    void settled(const std::string& uuid);

private:
    struct Preparation {
        bool abandoned = false;  // nobody waits for it any more: it gives up what it built
        std::vector<Spikes::Wiring> built;
        std::optional<Status> result;
        std::shared_ptr<asio::steady_timer> timer;
    };

    Async<Json> hook_qemu(Json params);
    Async<Json> hook_network(Json params);
    Async<void> prepare(const hooks::DomainFacts& facts, bool incoming, Preparation& run);
    Async<Spikes::Wiring> prepare_one(const hooks::DomainFacts& facts, const hooks::Interface& interface,
                                      bool incoming);
    Async<void> build_prepared(model::Spike spike, bool incoming);
    Async<void> start(const hooks::DomainFacts& facts);
    // `over`: libvirt has taken its own devices (a macvtap) away, too.
    asio::awaitable<void> end(std::string uuid, bool over);
    asio::awaitable<void> adopt(hooks::DomainFacts facts);
    asio::awaitable<void> look_at_all();
    asio::awaitable<void> resync();
    bool look_wanted_ = false;
    asio::awaitable<void> look_at(std::string uuid);
    bool is_in_anchor(const std::string& device, const std::string& corm) const;
    asio::awaitable<void> change_corm(std::string key, std::string corm);
    asio::awaitable<void> write_metadata(std::string uuid);
    Async<void> write_hints(std::string uuid, bool persistent);
    asio::awaitable<void> unplugged(std::string key, std::string device);

    bool is_ours(const hooks::Interface& interface) const;
    Result<model::Spike> spike_of(const hooks::DomainFacts& facts, const hooks::Interface& interface) const;
    Result<model::Spike> macvtap_of(const hooks::DomainFacts& facts, const hooks::Interface& interface,
                                    const hooks::SpikeMeta* meta) const;
    Async<Json> obtain_grant(const model::Spike& spike);
    Status check_interface(const hooks::Interface& interface, const model::Spike& spike) const;
    Status check_wanted_wire(const hooks::SpikeMeta* meta, const model::Spike& spike) const;

    Node& node_;
    Corms& corms_;
    Spikes& spikes_;
    Handover& handover_;
    Async<void> prepare_in_time(hooks::DomainFacts facts, bool incoming);
    asio::awaitable<void> run_preparation(hooks::DomainFacts facts, bool incoming, std::shared_ptr<Preparation> run);
    asio::awaitable<void> release(Spikes::Wiring wiring, bool over);
    asio::awaitable<void> end_if_over(std::string uuid);
    bool is_incoming(const std::string& uuid) const;
    bool comes_by_grant(const std::string& uuid) const;

    std::map<std::string, int64_t> incoming_;  // domains between `migrate` and their first run here; monotonic, ns
    std::map<std::string, std::shared_ptr<Preparation>> preparing_;  // by domain UUID
};

}  // namespace banana::controller
