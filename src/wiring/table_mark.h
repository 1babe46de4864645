// By what an nftables table is known to be the one that was made, and whole: asked of the kernel at the cost of two
// small netlink requests, whatever the table holds. libnftables reads every element of every set first: 50 ms for 4000.
//
// Threading: one thread; the network namespace is that of the socket. Errors: "<what>: <strerror>".
#pragma once

#include <cstdint>
#include <string>

#include "base/fd.h"
#include "base/result.h"

namespace banana::wiring {

struct TableMark {
    uint64_t handle = 0;  // the kernel numbers tables as they are made, and gives no number twice; 0: no such table
    uint32_t rules = 0;   // of the chain
    bool operator==(const TableMark&) const = default;
};

Result<Fd> open_nfnetlink();
Result<TableMark> table_mark(const Fd& socket, const std::string& table, const std::string& chain);  // of family inet

}  // namespace banana::wiring
