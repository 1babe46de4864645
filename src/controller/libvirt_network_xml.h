// What of a <network> makes it the network that we want, read from its XML, so that two definitions can be compared.
//
// Concepts: libvirt writes XML anew (order, quotes, defaults, a uuid), so texts cannot be compared. Our metadata is
// brought to one form: names with their namespace, attributes sorted, blanks between elements dropped. Threading: pure
// functions; LibvirtEvents::start_loop() or xmlInitParser() first. Errors: Errc::invalid, what is wrong.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"

namespace banana::controller {

struct NetworkDefinition {
    std::string name;
    std::string uuid;
    std::string forward;  // the mode; "" for an isolated network
    std::string bridge;
    std::string mtu;       // "" when none is set
    std::string metadata;  // ours, in one form; "" when there is none: the network is not ours

    bool ours() const { return !metadata.empty(); }
    // The same network with the same effect; uuid does not count.
    bool same(const NetworkDefinition& other) const;
};

Result<NetworkDefinition> parse_network_definition(std::string_view xml);
// `xml` with its <uuid> set or replaced: what libvirt needs to redefine a network.
Result<std::string> with_uuid(std::string_view xml, const std::string& uuid);

}  // namespace banana::controller
