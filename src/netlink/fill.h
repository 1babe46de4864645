// What several builders put into a link message; internal to this folder.
#pragma once

#include <string>

#include "netlink/message.h"
#include "netlink/request.h"

namespace banana::netlink {

// The fixed header and, when the index is unknown, the name.
void fill_link(Message& message, const LinkRef& which, bool up, bool change_up);
void fill_alias(Message& message, const std::string& alias);

}  // namespace banana::netlink
