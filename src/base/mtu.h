// What a guest's MTU may be, for those who ask for one and those who check it.
#pragma once

#include <cstdint>

namespace banana {

inline constexpr int64_t guest_mtu_min = 1280;   // IPv6's minimum, RFC 8200 section 5
inline constexpr int64_t guest_mtu_max = 65000;  // with a wire's headers it fits an IP packet

}  // namespace banana
