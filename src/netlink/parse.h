// What both the dumps and the monitor read; internal to this folder (links: parse_link() of link.h).
#pragma once

#include <optional>

#include "netlink/address.h"

namespace banana::netlink {

// An RTM_NEWADDR or RTM_DELADDR message, unless it is malformed.
std::optional<Address> parse_address(const nlmsghdr& header);

}  // namespace banana::netlink
