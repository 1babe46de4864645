// Forwarding entries: a bridge's for its ports, and a VXLAN's own (which host has which MAC).
//
// Concepts: an entry belongs to a device. Without `own`, it is the entry of the bridge that the device is a port of;
// with it, the device's own table: a VXLAN's destinations, or the addresses that a NIC takes.
// Threading: pure builders; fdb() uses the caller's Socket. Errors: see request.h.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/bytes.h"
#include "netlink/request.h"
#include "netlink/rtsocket.h"

namespace banana::netlink {

struct FdbEntry {
    uint32_t index = 0;  // the device
    Mac mac = {};        // all zero in a VXLAN: everything else
    bool own = false;
    bool permanent = true;       // local to this host (bridge): frames to it are delivered here
    bool learned = false;        // as listed: may age out
    IpAddress destination = {};  // of a VXLAN
    uint32_t master = 0;         // as listed: the bridge
};

Request add_fdb(const FdbEntry& entry);     // replaces one of the same MAC
Request delete_fdb(const FdbEntry& entry);  // one that is gone already counts as deleted
// The entries of a port (or of a VXLAN), or of all ports of a bridge.
Result<std::vector<FdbEntry>> fdb(Socket& socket, uint32_t ifindex);
Result<std::vector<FdbEntry>> fdb_of_bridge(Socket& socket, uint32_t bridge);

}  // namespace banana::netlink
