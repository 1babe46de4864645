// The queues of a DTLS wire's tap, ready to be handed to banana-tunneld.
//
// Threading: any; works on the kernel at once. Errors: "open queue 1 of bnd0000002a: cause".
#pragma once

#include <string>
#include <vector>

#include "base/fd.h"
#include "base/result.h"

namespace banana::controller {

// Non-blocking, with vnet headers and every offload that the kernel has. The device must be there already.
Result<std::vector<Fd>> open_tap_queues(const std::string& device, size_t queues);

}  // namespace banana::controller
