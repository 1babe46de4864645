// What a guest's MTU may be, for those who ask for one and those who check it; and the header that it leaves out.
#pragma once

#include <cstddef>
#include <cstdint>

namespace banana {

inline constexpr int64_t guest_mtu_min = 1280;   // IPv6's minimum, RFC 8200 section 5
inline constexpr int64_t guest_mtu_max = 65000;  // with a wire's headers it fits an IP packet
inline constexpr size_t ethernet_bytes = 14;

}  // namespace banana
