// Tunnel: all lanes of this host, as the control thread sees them.
//
// Concepts: what is asked for (peers, wires) is kept here as well, so that lists need no lane. A wire is in as many
// lanes as both hosts have; it brings a tap queue for each. Threading: the control thread; lanes have their own.
// Errors: Result; a failed request changes nothing.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/json.h"
#include "tunnel/lane.h"

namespace banana::tunnel {

class Tunnel {
public:
    using OnChange = std::function<void(const std::string& peer)>;

    Tunnel(std::shared_ptr<const Context> context, CipherPreference cipher, OnChange on_change);
    ~Tunnel();

    Json hello() const;
    Result<Json> configure(const Json& params, std::vector<Fd> sockets);
    Result<Json> set_peers(const Json& params);
    Result<Json> add_wire(const Json& params, std::vector<Fd> queues);
    Result<Json> remove_wire(const Json& params);
    Result<Json> list_wires(const Json& params) const;
    Result<Json> show_wire(const Json& params);
    Result<Json> status(const Json& params);
    Json peer_event(const std::string& name);  // null: no peer of that name
    Result<Json> rekey(const Json& params);

private:
    struct Peer {
        Endpoint address;
        size_t lanes = 1;
        bool operator==(const Peer&) const = default;
    };
    struct Wire {
        std::string device, peer;
        uint32_t mtu = 0;
        size_t queues = 0;  // of its tap: one a lane
    };
    Json peer_json(const std::string& name, const Peer& peer);
    Json lane_json(size_t number);

    std::shared_ptr<const Context> context_;
    CipherPreference cipher_;
    OnChange on_change_;
    UdpCapabilities udp_;
    Json configured_;  // null: not yet
    std::vector<std::unique_ptr<Lane>> lanes_;
    std::map<std::string, Peer> peers_, more_peers_;  // more: what came so far of a list in several messages
    int64_t more_parts_ = 0;                          // of these messages
    std::map<uint32_t, Wire> wires_;
};

}  // namespace banana::tunnel
