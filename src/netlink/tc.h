// tc: qdiscs, and blocks: filter lists that many devices share.
//
// Concepts: a block has a number, in one network namespace. It comes to be with the first device that joins it (by an
// `ingress` or `clsact` qdisc that names it) and goes with the last; a filter on it runs for every frame of all its
// devices. A device has at most one such qdisc.
//
// What it costs. The kernel keeps one list of all blocks, of every namespace, and walks it for each new one: so few
// blocks, whatever the number of devices. And a filter may be used only when an RCU grace period has passed since the
// device's qdisc was made, for which the kernel waits, 40 to 280 us, with the RTNL lock held: a device that joins a
// block with a filter waits by itself, the devices of a block that gets its filter afterwards wait together.
// Threading: pure builders; the functions use the caller's Socket. Errors: see request.h. Linux 4.16.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "netlink/request.h"
#include "netlink/rtsocket.h"

namespace banana::netlink {

// What the device sends goes to its driver at once. While it is down: else the default qdisc comes with "up", which for
// fq_codel is 70 KB a device.
Request no_queue(uint32_t ifindex);

struct Blocks {
    uint32_t ingress = 0;  // 0: none, or (in an answer) a list of the device's own
    uint32_t egress = 0;
    bool operator==(const Blocks&) const = default;
};

// Ingress alone makes an `ingress` qdisc, egress takes a `clsact`. Errc::exists: the device has one of them.
Request join_blocks(uint32_t ifindex, const Blocks& blocks);
Request leave_blocks(uint32_t ifindex);  // deletes the qdisc, whatever lists it has; not there counts as done
// Nothing: the device has no such qdisc, or is not there.
Result<std::optional<Blocks>> blocks_of(Socket& socket, uint32_t ifindex);
// Of all devices that have such a qdisc.
Result<std::vector<Blocks>> all_blocks(Socket& socket);

// The one filter that we put on a block: a BPF program, in direct-action mode, for all protocols, first in line.
// Errc::exists, if not `replace`: it is there. A block that is not there: Errc::invalid, or whatever EINVAL is.
Request put_program(uint32_t block, int program, const std::string& name, bool replace);

struct BlockFilter {
    bool first = false;       // in the place of put_program()
    uint32_t program_id = 0;  // 0: no BPF filter
};
// A block that is not there has none.
Result<std::vector<BlockFilter>> filters_of(Socket& socket, uint32_t block);

}  // namespace banana::netlink
