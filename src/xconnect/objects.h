// The pinned objects of a cross-connect: opened if an earlier process left them, else made. Internal to xconnect/.
//
// Layout of the directory: ports, passed, counters, events, abi (maps); ingress, egress (programs).
// Threading: any one thread at a time. Errors: see crossconnect.h.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "base/fd.h"
#include "base/result.h"
#include "xconnect/abi.h"

namespace banana::xconnect {

struct Program {
    Fd fd;
    uint32_t id = 0;
};

struct Objects {
    Fd ports, passed, counters, events;
    uint32_t slots = 0;               // that `passed` has, with slot 0
    std::array<Program, 2> programs;  // by direction
};

Result<Objects> open_objects(const std::string& bpf_dir, uint32_t capacity);
Status unpin_objects(const std::string& bpf_dir);

// The kernel's name of a program; empty when there is no such program (any more).
std::string program_name(uint32_t id);

// libbpf's warnings since the last call, in one line: the cause behind an errno. Also keeps libbpf off stderr.
std::string take_libbpf_warnings();

// `what: strerror(err)`, then libbpf's own words if it had any.
Error bpf_error(int err, const std::string& what);

}  // namespace banana::xconnect
