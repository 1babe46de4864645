// Corm: what shares a physical NIC; a bridge on one host, with an uplink, adopted, or without (etherstub).
//
// Threading: values.
#pragma once

#include "model/host.h"

namespace banana::model {

enum class CormKind { uplink, bridge, etherstub };
const char* corm_kind_name(CormKind kind);

struct Corm {
    uint32_t id = 0;   // random; names the bridge
    std::string name;  // the short one
    std::string host;
    CormKind kind = CormKind::etherstub;
    std::string device;  // the uplink NIC, or the adopted bridge; empty for an etherstub
    uint32_t mtu = 1500;
    std::vector<Format> formats;     // allowed
    std::vector<std::string> hosts;  // whose Spikes may be wired; empty: the whole cluster
    Mac mac;                         // the uplink's, and so the bridge's; unset (zero) for the other kinds
    bool moved_addresses = false;    // the uplink's addresses went to the bridge, and go back with the Corm's end

    std::string full_name() const;
    std::string bridge() const;  // the device that Corm ports are ports of
    bool allows_host(const std::string& host_name) const;
    Json json() const;
    static Result<Corm> from_json(const Json& json);
};

}  // namespace banana::model
