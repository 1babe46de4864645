// Node: what every part of the daemon shares: this host, its kernel, its records, its peers, its libvirt.
//
// Concepts: a method is called on a host by name; on this host it goes to the same handler without a connection, so
// that a Corm here and a Corm elsewhere are one code path.
// Threading: the io_context's single thread.
#pragma once

#include <asio/io_context.hpp>
#include <chrono>

#include "controller/config.h"
#include "controller/keylock.h"
#include "controller/libvirt.h"
#include "controller/plan_queue.h"
#include "controller/prober.h"
#include "controller/tunnel.h"
#include "model/host.h"
#include "netlink/link.h"
#include "peer/peers.h"
#include "peer/spawn.h"
#include "registry/store.h"
#include "wiring/engine.h"

namespace banana::controller {

template <class T>
using Async = asio::awaitable<Result<T>>;

class Node {
public:
    Node(asio::io_context& io_context, Config configuration, wiring::Engine engine_, registry::Store store_);

    model::Host self() const;
    Result<model::Host> host(const std::string& name) const;  // unreachable: a peer that is not up
    Result<netlink::Link> underlay_device();                  // not_found: the address is on none
    Json peer_status() const;                                 // peers.status(), each with `tunnel` {state, reason}
    void refresh_underlay();  // looks at the underlay's device again, and tells the peers what is new
    void tell_abilities();    // to the peers, if they are new
    void peer_changed(const std::string& name);
    bool records_ignored = false;  // some could not be read: what they stand for must not be swept away
    // Then nobody is told either that there is nothing: they would do away with their side.
    Error unreadable(const std::string& what) const {
        return {Errc::busy, "host " + config.host + " has records that it cannot read: " + printable(what, 80) +
                                " may be among them (see its log)"};
    }

    wiring::Site site() const { return {config.host, config.underlay, config.vxlan_port}; }

    // The reply of `host`'s handler; the error names the host when it cannot be reached.
    Async<Json> call(std::string host, std::string method, Json params);
    Async<Json> call(std::string host, std::string method, Json params, milliseconds timeout);
    void spawn(asio::awaitable<void> coroutine, const char* what);
    asio::awaitable<void> sleep(milliseconds duration);

    asio::io_context& io;
    Config config;
    wiring::Engine engine;
    PlanQueue plans;  // to the engine
    registry::Store store;
    rpc::Dispatcher dispatcher;  // what peers, and this host itself, may call
    rpc::Dispatcher control;     // what root on this host may call: the CLI, the hooks
    KeyLock locks;
    AsyncProber prober;
    Tunnel tunnel;
    peer::Peers peers;
    Libvirt libvirt;
    int64_t started_ns;  // monotonic

private:
    uint32_t find_underlay_mtu();
    std::string told_abilities_;
    uint32_t underlay_mtu_ = 0;  // bytes; 0: the underlay address is on no device (yet)
};

// Whether a device can be that of a Spike with this MAC: libvirt gives a tap the guest's, with another first byte. The
// names of taps start again at vnet0 with each boot; other devices are not named by libvirt.
bool is_device_of(const netlink::Link& link, const Mac& mac);

// The host that asks: this one for the control socket and for calls by call() on itself.
std::string caller(const Node& node, const rpc::Context& context);

}  // namespace banana::controller
