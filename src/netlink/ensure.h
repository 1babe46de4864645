// ensure(): a link as its spec says, whether it has to be made or is there already.
//
// Concepts: what cannot change in a link's life (its kind, a VXLAN's VNI, addresses and port, a veth's peer, a
// macvtap's lower device and mode) must be as specified: a link of that name which differs there is somebody else's or
// stale, and is left alone: Errc::exists, naming the difference. What can change (MTU, MAC, txqueuelen, alias, master,
// up, IPv6) is set where it differs. A second call does nothing. What was made in part is deleted again on failure.
// Threading: uses the caller's Socket. differences() are pure.
#pragma once

#include <optional>
#include <string>

#include "base/result.h"
#include "netlink/create.h"
#include "netlink/link.h"

namespace banana::netlink {

Result<Link> ensure(Socket& socket, const VethSpec& spec);  // the Link of `spec.name`
Result<Link> ensure(Socket& socket, const BridgeSpec& spec);
Result<Link> ensure(Socket& socket, const VxlanSpec& spec);
Result<Link> ensure(Socket& socket, const MacvtapSpec& spec);
// A persistent tap; nothing keeps it open.
Result<Link> ensure(Socket& socket, const TapSpec& spec, const LinkOptions& options);

// Why `link` cannot be made into what the spec says: "its VNI is 5, not 7"; nothing when it can.
// A veth's peer is looked up by ensure(): it is not in one Link.
std::optional<std::string> difference(const Link& link, const VethSpec& spec);
std::optional<std::string> difference(const Link& link, const BridgeSpec& spec);
std::optional<std::string> difference(const Link& link, const VxlanSpec& spec);
std::optional<std::string> difference(const Link& link, const MacvtapSpec& spec);
std::optional<std::string> difference(const Link& link, const TapSpec& spec);

// The steps that give `link` the options it lacks; empty when it has them.
Requests corrections(const Link& link, const LinkOptions& options);

}  // namespace banana::netlink
