// What Banana needs to know of a libvirt network and of a port of it, read from XML: the network hook's <hookData>, or
// virNetworkGetXMLDesc().
//
// Concepts: a port is libvirt's record of one interface plugged into the network; its owner is the domain. Our networks
// are named banana-NAME and say in their metadata which Corm they stand for.
// Threading: pure functions on values. Errors: as domain_xml.h; wrong metadata lands in `problem` likewise.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "libvirt-hooks/metadata.h"

namespace banana::hooks {

struct NetworkFacts {
    std::string name{}, uuid{};
    std::string bridge{};  // <bridge name=>
    int64_t mtu = 0;
    std::optional<NetworkMeta> meta{};
    std::string problem{};

    bool operator==(const NetworkFacts&) const = default;
    Json to_json() const;
    static Result<NetworkFacts> from_json(const Json& json);
};
bool is_banana(const NetworkFacts& network);

struct NetworkPortFacts {
    NetworkFacts network{};
    std::string port_uuid{};
    std::string owner_name{}, owner_uuid{};  // the domain
    std::string mac{};                       // lower-case
    std::string plug_type{}, plug_bridge{}, plug_dev{};
    bool bandwidth_inbound = false, bandwidth_outbound = false;

    bool operator==(const NetworkPortFacts&) const = default;
    Json to_json() const;
    static Result<NetworkPortFacts> from_json(const Json& json);
};

Result<NetworkFacts> parse_network(std::string_view xml);
// Of port-created, port-deleted. Started, stopped and the like have no port: all but `network` is empty then.
Result<NetworkPortFacts> parse_network_port(std::string_view xml);
Status check(const NetworkFacts& network);

}  // namespace banana::hooks
