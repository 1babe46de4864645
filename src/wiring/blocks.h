// Blocks: the cross-connect's programs on many devices at once, by tc blocks (netlink/tc.h) that those share.
//
// Concepts: the devices whose hooks nobody else uses - wires, Corm ports, adopted netdevs - join one of our blocks, in
// one netlink request, and the program is on the block. Changing it for a younger one is one step for all of them. A
// block goes with its last device, so each that joins makes sure of the filter.
// Fail-closed: a device of ours joins while it is down; the program drops what comes from a port that it does not know.
// Threading: as the Socket. Errors: busy: a filter that is not ours stands on a block of our number.
#pragma once

#include "netlink/rtsocket.h"
#include "xconnect/crossconnect.h"

namespace banana::wiring {

// At a start: our blocks, if there are any, run this CrossConnect's programs from here on.
Status refresh_blocks(netlink::Socket& socket, const xconnect::CrossConnect& crossconnect);

// In it already: done. False, with nothing done: the device has an `ingress` or `clsact` qdisc of somebody's, or the
// kernel lacks that, or BPF filters; then there is CrossConnect::attach().
Result<bool> join_block(netlink::Socket& socket, const xconnect::CrossConnect& crossconnect, xconnect::PortKey port);
// Whether the port's program is that of our block.
Result<bool> in_block(netlink::Socket& socket, xconnect::PortKey port);
Status leave_block(netlink::Socket& socket, xconnect::PortKey port);  // not in it: done already

}  // namespace banana::wiring
