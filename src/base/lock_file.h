// One process at a time: a lock beside a socket or a file.
#pragma once

#include <string>

#include "base/fd.h"
#include "base/result.h"

namespace banana {

// Locks <path>.lock, which is made if it is not there and stays. Held as long as the descriptor is open; the kernel
// drops it with the process, so it cannot go stale. Errc::exists: another process has it.
Result<Fd> lock_beside(const std::string& path);

}  // namespace banana
