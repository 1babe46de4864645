// Numbers are any 32 bits but 0; people choose small ones, so ours spell "bn", "bi" and "be". A clsact qdisc has two
// sides, and one without a number gets a list of its own: the empty block stands there.
#include "wiring/blocks.h"

#include <fmt/core.h>

#include <algorithm>
#include <cerrno>
#include <optional>
#include <set>

#include "base/bytes.h"
#include "netlink/tc.h"

namespace banana::wiring {

using xconnect::CrossConnect;
using xconnect::Direction;
using xconnect::PortKey;

namespace {

constexpr uint32_t common_ingress = 0x626e0001, common_egress = 0x626e0002, empty_block = 0x626e0003;
// Of those that have a block for themselves, which one is chance: one that is in use works too, with a wait for each.
constexpr uint32_t own_ingress = 0x62690000, own_egress = 0x62650000, own_mask = 0xffff0000;
// From how many ports on a block of their own is worth that the kernel's list of blocks gets longer.
constexpr size_t many = 4;

std::optional<Direction> direction_of(uint32_t block) {
    if (block == common_ingress || (block & own_mask) == own_ingress) return Direction::ingress;
    if (block == common_egress || (block & own_mask) == own_egress) return Direction::egress;
    return std::nullopt;
}

uint32_t choose_block(Direction direction, size_t ports) {
    const bool in = direction == Direction::ingress;
    if (ports < many) return in ? common_ingress : common_egress;
    return (in ? own_ingress : own_egress) | (random_u32() & ~own_mask);
}

netlink::Blocks blocks_for(uint32_t block) {
    if (direction_of(block) == Direction::ingress) return {block, 0};
    return {empty_block, block};
}

netlink::Request put(const CrossConnect& crossconnect, uint32_t block, bool replace) {
    const auto direction = direction_of(block).value_or(Direction::ingress);
    return netlink::put_program(block, crossconnect.program(direction).fd,
                                direction == Direction::ingress ? "bn_xc_ingress" : "bn_xc_egress", replace);
}

bool is_lacking(const Error& error) {  // ENOENT: the kernel knows no qdisc or filter of that kind
    return error.code() == Errc::not_found || error.code() == Errc::unsupported;
}

Status refresh(netlink::Socket& socket, const CrossConnect& crossconnect, uint32_t block) {
    TRY_SET(const auto filters, netlink::filters_of(socket, block));
    // What somebody put behind ours never sees a frame.
    const auto first = std::find_if(filters.begin(), filters.end(), [](const auto& filter) { return filter.first; });
    if (!filters.empty() && (first == filters.end() || !CrossConnect::is_program_of_ours(first->program_id)))
        return Error(Errc::busy, fmt::format("use tc block {}: a filter stands there that is not Banana's", block));
    const auto direction = direction_of(block).value_or(Direction::ingress);
    if (!filters.empty() && first->program_id == crossconnect.program(direction).id) return {};
    return socket.request(put(crossconnect, block, true));
}

}  // namespace

Status refresh_blocks(netlink::Socket& socket, const CrossConnect& crossconnect) {
    TRY_SET(const auto all, netlink::all_blocks(socket));
    std::set<uint32_t> ours;
    for (const auto& blocks : all)
        for (const uint32_t block : {blocks.ingress, blocks.egress})
            if (direction_of(block)) ours.insert(block);
    for (const uint32_t block : ours) TRY(refresh(socket, crossconnect, block));
    return {};
}

Result<std::vector<bool>> join_blocks(netlink::Socket& socket, const CrossConnect& crossconnect,
                                      std::span<const PortKey> ports) {
    const auto in = static_cast<size_t>(std::count_if(
        ports.begin(), ports.end(), [](const PortKey& port) { return port.direction == Direction::ingress; }));
    const uint32_t chosen[] = {choose_block(Direction::ingress, in),
                               choose_block(Direction::egress, ports.size() - in)};
    const auto block_of = [&](const PortKey& port) { return chosen[port.direction == Direction::ingress ? 0 : 1]; };

    netlink::Requests joins;
    for (const auto& port : ports) joins.push_back(netlink::join_blocks(port.ifindex, blocks_for(block_of(port))));
    const auto joined = socket.batch(joins);
    Status all;
    std::vector<bool> is_in;
    for (const auto& join : joined) {
        is_in.push_back(join.ok());
        if (!join && join.error().code() != Errc::exists && !is_lacking(join.error()) && all) all = join;
    }
    netlink::Requests undo;
    const auto leave = [&](uint32_t block) {
        for (size_t i = 0; i < ports.size(); ++i) {
            if (!is_in[i] || block_of(ports[i]) != block) continue;
            undo.push_back(netlink::leave_blocks(ports[i].ifindex));
            is_in[i] = false;
        }
    };
    for (const uint32_t block : chosen) {
        const bool used = std::any_of(ports.begin(), ports.end(), [&](const PortKey& port) {
            return is_in[static_cast<size_t>(&port - ports.data())] && block_of(port) == block;
        });
        if (!used) continue;
        const Status put_on = socket.request(put(crossconnect, block, false).accept(EEXIST));
        if (put_on) continue;
        leave(block);
        if (!is_lacking(put_on.error()) && all) all = put_on;
    }
    if (!all)
        for (const uint32_t block : chosen) leave(block);
    (void)socket.batch(undo);
    if (!all) return all.error();
    return is_in;
}

Result<bool> in_block(netlink::Socket& socket, PortKey port) {
    TRY_SET(const auto blocks, netlink::blocks_of(socket, port.ifindex));
    if (!blocks) return false;
    const uint32_t block = port.direction == Direction::ingress ? blocks->ingress : blocks->egress;
    return direction_of(block) == port.direction && *blocks == blocks_for(block);
}

Status leave_block(netlink::Socket& socket, PortKey port) {
    TRY_SET(const bool joined, in_block(socket, port));
    return joined ? socket.request(netlink::leave_blocks(port.ifindex)) : Status();
}

}  // namespace banana::wiring
