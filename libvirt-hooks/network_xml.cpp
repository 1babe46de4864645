#include "libvirt-hooks/network_xml.h"

#include <fmt/core.h>

#include <cstdlib>

#include "base/bytes.h"
#include "libvirt-hooks/domain_xml.h"
#include "libvirt-hooks/xml_doc.h"

namespace banana::hooks {

namespace {

Result<NetworkFacts> read_network(const xmlNode* node) {
    NetworkFacts out;
    out.name = xml::content(xml::child(node, "name"));
    out.uuid = xml::content(xml::child(node, "uuid"));
    if (out.name.empty())
        return Error(Errc::invalid,
                     fmt::format("read network XML: line {}: <network> has no <name>", xml::line_of(node)));
    out.bridge = xml::attribute_or_empty(xml::child(node, "bridge"), "name");
    out.mtu = std::atoll(xml::attribute_or_empty(xml::child(node, "mtu"), "size").c_str());
    if (out.mtu < 0) out.mtu = 0;
    auto meta = read_network_metadata(xml::child(node, "metadata"));
    if (meta)
        out.meta = *meta;
    else
        out.problem = meta.error().message();
    return out;
}

}  // namespace

bool is_banana(const NetworkFacts& network) { return network.name.starts_with(network_prefix); }

Result<NetworkFacts> parse_network(std::string_view text) {
    TRY_SET(const auto doc, xml::Document::parse(text, "network XML"));
    if (doc.root()->ns != nullptr || xml::local_name(doc.root()) != "network")
        return Error(Errc::invalid, "read network XML: line 1: its root element is not <network>");
    return read_network(doc.root());
}

Result<NetworkPortFacts> parse_network_port(std::string_view text) {
    TRY_SET(const auto doc, xml::Document::parse(text, "network hook's XML"));
    const xmlNode* network = xml::child(doc.root(), "network");
    if (doc.root()->ns != nullptr || xml::local_name(doc.root()) != "hookData" || network == nullptr)
        return Error(Errc::invalid, "read network hook's XML: line 1: no <hookData> with a <network>");
    NetworkPortFacts out;
    TRY_SET(out.network, read_network(network));
    const xmlNode* port = xml::child(doc.root(), "networkport");
    out.port_uuid = xml::content(xml::child(port, "uuid"));
    const xmlNode* owner = xml::child(port, "owner");
    out.owner_name = xml::content(xml::child(owner, "name"));
    out.owner_uuid = xml::content(xml::child(owner, "uuid"));
    if (auto mac = Mac::parse(xml::attribute_or_empty(xml::child(port, "mac"), "address"))) out.mac = mac->text();
    const xmlNode* plug = xml::child(port, "plug");
    out.plug_type = xml::attribute_or_empty(plug, "type");
    out.plug_bridge = xml::attribute_or_empty(plug, "bridge");
    out.plug_dev = xml::attribute_or_empty(plug, "dev");
    const xmlNode* bandwidth = xml::child(port, "bandwidth");
    out.bandwidth_inbound = xml::child(bandwidth, "inbound") != nullptr;
    out.bandwidth_outbound = xml::child(bandwidth, "outbound") != nullptr;
    return out;
}

Status check(const NetworkFacts& network) {
    if (network.problem.empty()) return {};
    return Error(Errc::invalid, fmt::format("metadata of network {}: {}", printable(network.name), network.problem));
}

Json NetworkFacts::to_json() const {
    Json out = Json::object({{"name", name}, {"uuid", uuid}, {"bridge", bridge}, {"mtu", mtu}, {"problem", problem}});
    if (meta) out.set("meta", meta->to_json());
    return out;
}

Result<NetworkFacts> NetworkFacts::from_json(const Json& json) {
    NetworkFacts out;
    TRY_SET(out.name, json.string("name"));
    TRY_SET(out.uuid, json.string("uuid"));
    TRY_SET(out.bridge, json.string("bridge"));
    TRY_SET(out.mtu, json.integer("mtu", 0));
    TRY_SET(out.problem, json.string("problem"));
    if (json.has("meta")) {
        TRY_SET(const auto meta, NetworkMeta::from_json(json.get("meta")));
        out.meta = meta;
    }
    return out;
}

Json NetworkPortFacts::to_json() const {
    return Json::object({{"network", network.to_json()},
                         {"port_uuid", port_uuid},
                         {"owner_name", owner_name},
                         {"owner_uuid", owner_uuid},
                         {"mac", mac},
                         {"plug_type", plug_type},
                         {"plug_bridge", plug_bridge},
                         {"plug_dev", plug_dev},
                         {"bandwidth_inbound", bandwidth_inbound},
                         {"bandwidth_outbound", bandwidth_outbound}});
}

Result<NetworkPortFacts> NetworkPortFacts::from_json(const Json& json) {
    NetworkPortFacts out;
    TRY_SET(out.network, NetworkFacts::from_json(json.get("network")));
    TRY_SET(out.port_uuid, json.string("port_uuid"));
    TRY_SET(out.owner_name, json.string("owner_name"));
    TRY_SET(out.owner_uuid, json.string("owner_uuid"));
    TRY_SET(out.mac, json.string("mac"));
    TRY_SET(out.plug_type, json.string("plug_type"));
    TRY_SET(out.plug_bridge, json.string("plug_bridge"));
    TRY_SET(out.plug_dev, json.string("plug_dev"));
    TRY_SET(out.bandwidth_inbound, json.boolean("bandwidth_inbound"));
    TRY_SET(out.bandwidth_outbound, json.boolean("bandwidth_outbound"));
    return out;
}

}  // namespace banana::hooks
