// One run of a libvirt hook, from libvirt's arguments and stdin to an exit status and a message.
//
// Concepts: libvirt execs `banana-hook qemu|network OBJECT OPERATION SUBOPERATION EXTRA` with XML on stdin, waits
// without a time-out of its own, and shows stderr to the user when the status is not 0. Per operation the answer is one
// of:
//   ignored    not ours to see (attach, started networks, ...): 0 without reading stdin
//   may refuse migrate, restore, prepare, start, port-created: bananad is asked, and its error refuses the operation
//   told       started, stopped, release, reconnect, port-deleted: bananad is told; the status is 0 whatever happens,
//              since a status other than 0 would kill a running guest (reconnect, started) or helps nobody
// What is not known to be Banana's is never refused: where stdin cannot be read as XML, is too large or does not end,
// it is refused only if what was read has one of our prefixes. For a domain or network that is not ours the status is 0
// without asking bananad.
// One deadline holds for everything, stdin included. Nothing is written to stdout, which would replace the XML for
// `migrate` and `restore`; the XML itself (it may hold passwords) never appears in a message. No child is made, and
// libvirt is not called: that can deadlock its daemon.
// On `migrate` the domain is the incoming guest; `prepare` follows on the same host.
// Threading: one thread. Errors: in Outcome.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "base/result.h"

namespace banana::hooks {

inline constexpr const char* default_socket = "/run/banana/control.sock";
// What bananad is only told is in its socket when this is over: libvirt waits no longer for a daemon that hangs.
inline constexpr std::chrono::milliseconds told_deadline{1500};
inline constexpr std::chrono::milliseconds default_deadline{7500};

struct Call {
    std::string driver{};  // "qemu", "network"
    std::string object{}, operation{}, suboperation{}, extra{};
};
// From the arguments after the program's name; absent ones at the end are "-".
Result<Call> parse_arguments(const std::vector<std::string>& arguments);

// Whether the status of this operation can be other than 0.
bool may_refuse(const Call& call);

struct Environment {
    int input = 0;
    std::string socket = default_socket;
    std::chrono::milliseconds deadline = default_deadline;
};

struct Outcome {
    int status = 0;
    std::string message{};  // for stderr; "": nothing to say
};

Outcome run(const Call& call, const Environment& environment);

}  // namespace banana::hooks
