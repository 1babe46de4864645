// Putting the program at a port's hook, and taking it off: tcx by bpf(2), clsact by libbpf. Internal to xconnect/.
//
// tcx (Linux 6.6 and later): a list of programs a hook, run before any qdisc; ours goes first. Attached without a link
// object, so it stays until it is detached or the device goes, with no process and no pin behind it.
// clsact: a qdisc with two filter lists; ours is priority 1, handle 1 and is replaced in one netlink request. The
// `ingress` qdisc (libvirt's <bandwidth>) takes the same slot; the kernel then takes an egress filter without a word
// and runs it at ingress, which clsact_put finds out and refuses. Threading: any; the network namespace is the calling
// thread's. Errors: "operation port: cause"; not_found when the device is gone.
#pragma once

#include <cstdint>

#include "base/result.h"
#include "xconnect/crossconnect.h"

namespace banana::xconnect {

bool tcx_available();
bool is_ours(uint32_t program_id);

// The id of the program of ours (of any age) at the port's hook; 0: none, or no such device.
Result<uint32_t> tcx_find(PortKey port);
Result<uint32_t> clsact_find(PortKey port);

// Puts `program` at the hook; in the place of program `old`, if that is not 0, without a gap.
Status tcx_put(PortKey port, int program, uint32_t old);
Status clsact_put(PortKey port, int program, uint32_t program_id);

// Takes program `id` off; gone already is done.
Status tcx_remove(PortKey port, uint32_t id);
Status clsact_remove(PortKey port);
Status clsact_destroy(PortKey port);  // the qdisc itself

}  // namespace banana::xconnect
