// Blocks: the cross-connect's programs on many devices at once, by tc blocks (netlink/tc.h) that those share.
//
// Concepts: the devices whose hooks nobody else uses - wires, Corm ports, adopted netdevs - join one of our blocks, and
// the program is on the block. A few ports at a time join the common block of their direction, which has its program
// already; many at a time get a block of their own, whose program comes last, so that the kernel waits for its readers
// once for all of them. Changing a program for a younger one is one step for all of a block. A block goes with its last
// device, so whoever joins makes sure of the filter.
// Fail-closed: a device of ours joins while it is down; the program drops what comes from a port that it does not know.
// Threading: as the Socket. Errors: busy: a filter that is not ours stands on a block of our numbers.
#pragma once

#include <span>
#include <vector>

#include "netlink/rtsocket.h"
#include "xconnect/crossconnect.h"

namespace banana::wiring {

// At a start: our blocks, if there are any, run this CrossConnect's programs from here on.
Status refresh_blocks(netlink::Socket& socket, const xconnect::CrossConnect& crossconnect);

// For each port, whether it has joined a block of ours. False, with nothing done: the device has an `ingress` or
// `clsact` qdisc already, or the kernel lacks that, or BPF filters; then there is CrossConnect::attach(). After an
// error none has joined.
Result<std::vector<bool>> join_blocks(netlink::Socket& socket, const xconnect::CrossConnect& crossconnect,
                                      std::span<const xconnect::PortKey> ports);
// Whether the port's program is that of a block of ours.
Result<bool> in_block(netlink::Socket& socket, xconnect::PortKey port);
Status leave_block(netlink::Socket& socket, xconnect::PortKey port);  // not in it: done already

}  // namespace banana::wiring
