// The monotonic clock, in nanoseconds. Leases, deadlines and gaps are measured by it; wall time is only ever shown.
#pragma once

#include <cstdint>

namespace banana {

int64_t monotonic_ns();  // CLOCK_MONOTONIC, the clock of BPF's bpf_ktime_get_ns()
int64_t wall_ns();       // CLOCK_REALTIME, for people and for grants' expiry texts

}  // namespace banana
