// Three blocks: ingress programs, egress programs, and an empty one: a clsact qdisc has two sides, and one without a
// number gets a list of its own. Numbers are any 32 bits but 0; people choose small ones, so ours spell "bn".
#include "wiring/blocks.h"

#include <fmt/core.h>

#include <algorithm>
#include <cerrno>

#include "netlink/tc.h"

namespace banana::wiring {

using xconnect::CrossConnect;
using xconnect::Direction;
using xconnect::PortKey;

namespace {

constexpr uint32_t ingress_block = 0x626e0001, egress_block = 0x626e0002, empty_block = 0x626e0003;

netlink::Blocks blocks_for(Direction direction) {
    if (direction == Direction::ingress) return {ingress_block, 0};
    return {empty_block, egress_block};
}

uint32_t block_of(Direction direction) { return direction == Direction::ingress ? ingress_block : egress_block; }

netlink::Request put(const CrossConnect& crossconnect, Direction direction, bool replace) {
    return netlink::put_program(block_of(direction), crossconnect.program(direction).fd,
                                direction == Direction::ingress ? "bn_xc_ingress" : "bn_xc_egress", replace);
}

Status refresh(netlink::Socket& socket, const CrossConnect& crossconnect, Direction direction) {
    TRY_SET(const auto filters, netlink::filters_of(socket, block_of(direction)));
    // What somebody put behind ours never sees a frame.
    const auto first = std::find_if(filters.begin(), filters.end(), [](const auto& filter) { return filter.first; });
    if (!filters.empty() && (first == filters.end() || !CrossConnect::is_program_of_ours(first->program_id)))
        return Error(Errc::busy,
                     fmt::format("use tc block {}: a filter stands there that is not Banana's", block_of(direction)));
    if (!filters.empty() && first->program_id == crossconnect.program(direction).id) return {};
    netlink::Request request = put(crossconnect, direction, true);
    // EINVAL: no device is in the block, so there is none. With a filter on it there is.
    return socket.request(filters.empty() ? std::move(request).accept(EINVAL) : std::move(request));
}

}  // namespace

Status refresh_blocks(netlink::Socket& socket, const CrossConnect& crossconnect) {
    TRY(refresh(socket, crossconnect, Direction::ingress));
    return refresh(socket, crossconnect, Direction::egress);
}

Result<bool> join_block(netlink::Socket& socket, const CrossConnect& crossconnect, PortKey port) {
    const auto lacking = [](const Error& error) {  // ENOENT: the kernel knows no qdisc or filter of that kind
        return error.code() == Errc::not_found || error.code() == Errc::unsupported;
    };
    const Status joined = socket.request(netlink::join_blocks(port.ifindex, blocks_for(port.direction)));
    if (!joined && joined.error().code() == Errc::exists) {
        TRY_SET(const bool ours, in_block(socket, port));
        if (!ours) return false;
    } else if (!joined) {
        return lacking(joined.error()) ? Result<bool>(false) : joined.error();
    }
    const Status put_on = socket.request(put(crossconnect, port.direction, false).accept(EEXIST));
    if (put_on) return true;
    TRY(socket.request(netlink::leave_blocks(port.ifindex)));
    return lacking(put_on.error()) ? Result<bool>(false) : put_on.error();
}

Result<bool> in_block(netlink::Socket& socket, PortKey port) {
    TRY_SET(const auto blocks, netlink::blocks_of(socket, port.ifindex));
    return blocks == blocks_for(port.direction);
}

Status leave_block(netlink::Socket& socket, PortKey port) {
    TRY_SET(const bool joined, in_block(socket, port));
    return joined ? socket.request(netlink::leave_blocks(port.ifindex)) : Status();
}

}  // namespace banana::wiring
