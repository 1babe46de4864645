// Engine: makes the kernel be as plans say, and is the only one that does.
//
// Concepts: realise() observes what a plan names, diffs (diff.h) and applies the steps in order; when one fails, those
// done are undone in reverse and the error tells which failed. realise() of a fulfilled plan does nothing. Entries
// alone (flip, fence, hold) go the same way, but cost no netlink request as long as the devices' indexes are known:
// they are kept, and dropped when the kernel tells that a link is gone (link_gone()). What is lost when: nothing on
// open; the maps, programs and filters outlive the process. Threading: one thread, in the host's network namespace.
// netlink waits for the kernel's RTNL lock. Errors: "<step>: <cause>".
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <unordered_map>

#include "netlink/rtsocket.h"
#include "wiring/diff.h"
#include "wiring/vxlan_filter.h"
#include "xconnect/crossconnect.h"

namespace banana::wiring {

struct EngineOptions {
    std::string bpf_dir;
    uint16_t vxlan_port = 4789;
    xconnect::Options xconnect;
};

class Engine {
public:
    static Result<Engine> open(const EngineOptions& options);

    // Who carries DTLS wires; outlives the engine. Without one, plans with such wires cannot be realised.
    void set_tunnel(TunnelSink* tunnel) { tunnel_ = tunnel; }

    Status realise(const Plan& plan);
    // Plans that know nothing of each other, as one: many cost less together. When that fails, each by itself.
    std::vector<Status> realise_each(std::span<const Plan> plans);
    // The steps that realise() would take now.
    Result<std::vector<Step>> difference(const Plan& plan);
    // Reconcile: after realise(plan of everything), removes Banana's own devices that no plan wants, entries of devices
    // that are gone, and filters of wires that are gone.
    // Returns what was removed, for the log.
    Result<std::vector<std::string>> sweep(const Plan& everything);

    bool has_vni(uint32_t vni) const;  // a wire of this host has it
    // Takes the program off a device that is no longer a port, so that its frames go their own way again.
    Status let_go(const std::string& device);
    bool remembers(const std::string& device) const { return indexes_.contains(device); }
    Result<uint32_t> ifindex(const std::string& device);  // from memory, else from the kernel
    void link_gone(uint32_t index);                       // the kernel says so: forgets all of it
    void forget_names();                                  // events were lost

    // Ports of wires join a tc block, as that is done at once. Those that stay get a program of their own by and by:
    // one a call, and none while plans are being realised (quiet_ns). False: there is nothing to do now.
    static constexpr int64_t quiet_ns = 2'000'000'000;
    Result<bool> settle_port(int64_t now);
    size_t unsettled() const { return to_settle_.size(); }

    // Whether this process' program, of whatever means, is at the port.
    Result<bool> attached(xconnect::PortKey port);
    Result<xconnect::Counters> counters(const std::string& device, Direction direction);
    netlink::Socket& socket() { return socket_; }
    xconnect::CrossConnect& crossconnect() { return crossconnect_; }
    VxlanFilter& filter() { return filter_; }

private:
    Engine(netlink::Socket socket, xconnect::CrossConnect crossconnect, VxlanFilter filter, bool shares_blocks)
        : socket_(std::move(socket)),
          crossconnect_(std::move(crossconnect)),
          filter_(std::move(filter)),
          shares_blocks_(shares_blocks) {}

    Result<Observed> observe(const Plan& plan);
    Status observe_links(const std::vector<std::string>& names, Observed& observed);
    using Undo = std::function<Status()>;
    struct Making {
        const MakeLink* step;
        netlink::Requests rest;  // for when it is there
        uint32_t index;
    };
    size_t buildable(std::span<const Step> steps) const;
    Result<Undo> build(std::span<const Step> steps);
    Status build(std::span<const Step> steps, std::vector<Undo>& done);
    Status make(std::vector<Making>& makings, std::vector<Undo>& done);
    Status attach(std::span<const xconnect::PortKey> ports, std::span<const PortWant* const> wants);
    Status unmake(const std::string& name);
    Result<bool> refresh(xconnect::PortKey port);
    Undo undo_of(const AttachPort& step, xconnect::PortKey key);
    Status detach(xconnect::PortKey port);
    void joined_block(xconnect::PortKey port);
    Result<Undo> apply(const Step& step);
    Result<Undo> apply(const AllowPeers& step);
    Result<Undo> apply(const ChangeLink& step);
    Result<Undo> apply(const DeleteLinks& step);
    Result<Undo> apply(const AttachPort& step);
    Result<Undo> apply(const SetEntry& step);
    Result<Undo> apply(const RemovePeers& step);
    Result<Undo> apply(const AddTunnelWire& step);
    Result<Undo> apply(const RemoveTunnelWires& step);

    netlink::Socket socket_;
    xconnect::CrossConnect crossconnect_;
    VxlanFilter filter_;
    bool shares_blocks_;         // false: open() was told how to attach
    std::set<VxlanPeer> peers_;  // what the filter holds
    void remember(const std::string& device, uint32_t index);
    void forget_name(const std::string& device);
    std::unordered_map<std::string, uint32_t> indexes_;
    std::unordered_multimap<uint32_t, std::string> names_;  // the same by index; a renamed link may have two
    TunnelSink* tunnel_ = nullptr;
    std::deque<xconnect::PortKey> to_settle_;
    std::set<xconnect::PortKey> looked_at_;  // for programs that an earlier process left there
    int64_t changed_ns_ = 0;                 // the last step
};

}  // namespace banana::wiring
