#include "libvirt-hooks/domain_xml.h"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>

#include "base/bytes.h"
#include "libvirt-hooks/xml_doc.h"

namespace banana::hooks {

namespace {

constexpr std::string_view user_prefix = "ua-";
constexpr std::string_view libvirt_prefix = "net";

int64_t to_number(const std::string& text, int64_t fallback) {
    int64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    return error == std::errc() && end == text.data() + text.size() ? value : fallback;
}

// --- Interfaces ---

Interface read_interface(const xmlNode* node) {
    Interface out;
    out.line = xml::line_of(node);
    out.type = xml::attribute_or_empty(node, "type");
    // What libvirt has not checked is not passed on: an address that is none counts as not chosen yet.
    if (auto mac = Mac::parse(xml::attribute_or_empty(xml::child(node, "mac"), "address"))) out.mac = mac->text();
    const xmlNode* source = xml::child(node, "source");
    out.network = xml::attribute_or_empty(source, "network");
    out.port = xml::lower(xml::attribute_or_empty(source, "portid"));
    out.dev = xml::attribute_or_empty(source, "dev");
    out.mode = xml::attribute_or_empty(source, "mode");
    out.bridge = xml::attribute_or_empty(source, "bridge");
    out.target = xml::attribute_or_empty(xml::child(node, "target"), "dev");
    out.model = xml::attribute_or_empty(xml::child(node, "model"), "type");
    out.mtu = std::max<int64_t>(0, to_number(xml::attribute_or_empty(xml::child(node, "mtu"), "size"), 0));
    const xmlNode* bandwidth = xml::child(node, "bandwidth");
    out.bandwidth_inbound = xml::child(bandwidth, "inbound") != nullptr;
    out.bandwidth_outbound = xml::child(bandwidth, "outbound") != nullptr;
    out.alias = xml::attribute_or_empty(xml::child(node, "alias"), "name");
    return out;
}

// libvirt's rule (qemuAssignDeviceNetAlias): one more than the highest netN so far. A hostdev interface counts among
// the host devices instead.
void predict_aliases(std::vector<Interface>& interfaces) {
    int64_t next = 0;
    int64_t next_hostdev = 0;
    for (const Interface& interface : interfaces)
        if (interface.alias.starts_with(libvirt_prefix))
            next = std::max(next, 1 + to_number(interface.alias.substr(libvirt_prefix.size()), -1));
    for (Interface& interface : interfaces) {
        if (!interface.alias.empty()) continue;
        interface.alias_predicted = true;
        interface.alias = interface.type == "hostdev" ? fmt::format("hostdev{}", next_hostdev++)
                                                      : fmt::format("{}{}", libvirt_prefix, next++);
    }
}

// --- The metadata's entries and their interfaces ---

int find_target(const std::vector<Interface>& interfaces, const SpikeMeta& spike, bool by_mac) {
    const auto find = [&](auto matches) {
        const auto found = std::find_if(interfaces.begin(), interfaces.end(), matches);
        return found == interfaces.end() ? -1 : static_cast<int>(found - interfaces.begin());
    };
    if (by_mac) return spike.mac.empty() ? -1 : find([&](const Interface& i) { return i.mac == spike.mac; });
    int found = find([&](const Interface& i) { return i.name == spike.interface; });
    if (found < 0) found = find([&](const Interface& i) { return i.alias == spike.interface; });
    if (found < 0)
        found = find([&](const Interface& i) { return i.alias == std::string(user_prefix) + spike.interface; });
    return found;
}

std::string free_name(const std::vector<Interface>& interfaces, const Interface& interface) {
    const auto taken = [&](const std::string& name) {
        return std::any_of(interfaces.begin(), interfaces.end(), [&](const auto& other) { return other.name == name; });
    };
    if (interface.alias.starts_with(user_prefix) && interface.alias.size() > user_prefix.size())
        if (std::string shorter = interface.alias.substr(user_prefix.size()); !taken(shorter)) return shorter;
    std::string name = interface.alias;
    for (int number = 2; taken(name); ++number) name = fmt::format("{}-{}", interface.alias, number);
    return name;
}

// A clone's entries, with another domain's uuid, are not about its interfaces.
void give_names(DomainFacts& domain) {
    for (const SpikeMeta& spike : domain.spikes) {
        const int noted = spike.uuid == domain.uuid ? find_target(domain.interfaces, spike, true) : -1;
        if (noted >= 0) domain.interfaces[static_cast<size_t>(noted)].name = spike.interface;
    }
    for (const bool users : {true, false})
        for (Interface& interface : domain.interfaces)
            if (interface.name.empty() && interface.alias.starts_with(user_prefix) == users)
                interface.name = free_name(domain.interfaces, interface);
}

// An entry that bananad wrote (it alone writes the uuid) outlives its interface, when that is unplugged, was plugged
// into the running domain only, or goes to another network: stale then, but nobody's mistake. It gets no target.
void find_targets(DomainFacts& domain) {
    std::vector<bool> taken(domain.interfaces.size());
    for (const bool by_mac : {true, false})
        for (SpikeMeta& spike : domain.spikes) {
            if (!by_mac && spike.target >= 0) continue;
            spike.target = find_target(domain.interfaces, spike, by_mac);
            if (spike.target < 0) continue;
            const auto at = static_cast<size_t>(spike.target);
            const bool stale = taken[at] || !is_banana(domain.interfaces[at]);
            if (stale && !spike.uuid.empty()) spike.target = -1;
            taken[at] = true;
        }
}

std::string where_from(const Interface& interface) {
    if (!interface.network.empty()) return fmt::format("network '{}'", printable(interface.network, 60));
    if (!interface.dev.empty()) return fmt::format("device '{}'", printable(interface.dev, 60));
    if (!interface.bridge.empty()) return fmt::format("bridge '{}'", printable(interface.bridge, 60));
    return fmt::format("type '{}'", printable(interface.type, 60));
}

Status resolve(DomainFacts& domain) {
    Status first;
    find_targets(domain);
    for (size_t i = 0; i < domain.spikes.size(); i++) {
        const SpikeMeta& spike = domain.spikes[i];
        const auto wrong = [&](const std::string& why) {
            if (first)
                first = Error(Errc::invalid, fmt::format("line {}: <banana:spike interface='{}'>: {}", spike.line,
                                                         spike.interface, why));
        };
        if (spike.target < 0) {
            if (!spike.uuid.empty()) continue;
            std::vector<std::string> names;
            for (const Interface& interface : domain.interfaces) names.push_back(printable(interface.name, 60));
            wrong(names.empty() ? "the domain has no interfaces"
                                : fmt::format("the domain has no such interface; it has {}", fmt::join(names, ", ")));
            continue;
        }
        const Interface& target = domain.interfaces[static_cast<size_t>(spike.target)];
        if (!is_banana(target))
            wrong(fmt::format("not an interface of Banana's: it is on {}, not on a network {}NAME", where_from(target),
                              network_prefix));
        for (size_t j = 0; j < i; j++)
            if (domain.spikes[j].target == spike.target)
                wrong(fmt::format("a second entry for interface {}; the first is in line {}",
                                  printable(target.name, 60), domain.spikes[j].line));
    }
    return first;
}

}  // namespace

std::string corm_of(const Interface& interface) {
    if (interface.network.starts_with(network_prefix)) return interface.network.substr(network_prefix.size());
    if (!interface.network.empty() || interface.type != "bridge") return "";
    return interface.bridge.starts_with(anchor_prefix) ? interface.bridge.substr(anchor_prefix.size()) : "";
}

bool is_banana(const Interface& interface) {
    if (!corm_of(interface).empty()) return true;
    // The kernel itself has devices of that prefix: bnep0, a Bluetooth network.
    return interface.type == "direct" && interface.dev.starts_with(device_prefix) &&
           parse_hex32(std::string_view(interface.dev).substr(device_prefix.size())).has_value();
}

bool DomainFacts::has_banana() const {
    return std::any_of(interfaces.begin(), interfaces.end(), [](const Interface& i) { return is_banana(i); });
}

const Interface* DomainFacts::by_mac(std::string_view mac) const {
    for (const Interface& interface : interfaces)
        if (!mac.empty() && interface.mac == mac) return &interface;
    return nullptr;
}

const Interface* DomainFacts::by_name(std::string_view text) const {
    for (const Interface& interface : interfaces)
        if (interface.name == text) return &interface;
    for (const Interface& interface : interfaces)
        if (interface.alias == text) return &interface;
    return nullptr;
}

const SpikeMeta* DomainFacts::meta_of(const Interface& interface) const {
    for (const SpikeMeta& spike : spikes)
        if (spike.target >= 0 && static_cast<size_t>(spike.target) < interfaces.size() &&
            interfaces[static_cast<size_t>(spike.target)].name == interface.name)
            return &spike;
    return nullptr;
}

Result<DomainFacts> parse_domain(std::string_view text) {
    TRY_SET(const auto doc, xml::Document::parse(text, "domain XML"));
    const xmlNode* root = doc.root();
    if (root->ns != nullptr || xml::local_name(root) != "domain")
        return Error(Errc::invalid, "read domain XML: line 1: its root element is not <domain>");
    DomainFacts out;
    out.uuid = xml::lower(xml::content(xml::child(root, "uuid")));
    out.name = xml::content(xml::child(root, "name"));
    if (out.uuid.empty() || out.name.empty())
        return Error(Errc::invalid, fmt::format("read domain XML: line {}: <domain> has no <{}>", xml::line_of(root),
                                                out.name.empty() ? "name" : "uuid"));
    for (const xmlNode* node : xml::children(xml::child(root, "devices"), "interface"))
        out.interfaces.push_back(read_interface(node));
    predict_aliases(out.interfaces);
    auto spikes = read_domain_metadata(xml::child(root, "metadata"));
    if (spikes) out.spikes = std::move(*spikes);
    give_names(out);
    const Status resolved = spikes ? resolve(out) : spikes.error();
    if (!resolved) out.problem = resolved.error().message();
    return out;
}

Status check(const DomainFacts& domain) {
    if (domain.problem.empty()) return {};
    return Error(Errc::invalid, fmt::format("metadata of domain {}: {}", printable(domain.name), domain.problem));
}

Json Interface::to_json() const {
    return Json::object({{"name", name},
                         {"alias", alias},
                         {"mac", mac},
                         {"type", type},
                         {"network", network},
                         {"port", port},
                         {"dev", dev},
                         {"mode", mode},
                         {"bridge", bridge},
                         {"target", target},
                         {"model", model},
                         {"mtu", mtu},
                         {"bandwidth_inbound", bandwidth_inbound},
                         {"bandwidth_outbound", bandwidth_outbound},
                         {"alias_predicted", alias_predicted},
                         {"line", line}});
}

Result<Interface> Interface::from_json(const Json& json) {
    Interface out;
    TRY_SET(out.name, json.string("name"));
    TRY_SET(out.alias, json.string("alias"));
    TRY_SET(out.mac, json.string("mac"));
    TRY_SET(out.type, json.string("type"));
    TRY_SET(out.network, json.string("network"));
    TRY_SET(out.port, json.string("port"));
    TRY_SET(out.dev, json.string("dev"));
    TRY_SET(out.mode, json.string("mode"));
    TRY_SET(out.bridge, json.string("bridge"));
    TRY_SET(out.target, json.string("target"));
    TRY_SET(out.model, json.string("model"));
    TRY_SET(out.mtu, json.integer("mtu", 0));
    TRY_SET(out.bandwidth_inbound, json.boolean("bandwidth_inbound"));
    TRY_SET(out.bandwidth_outbound, json.boolean("bandwidth_outbound"));
    TRY_SET(out.alias_predicted, json.boolean("alias_predicted"));
    TRY_SET(const int64_t line, json.integer("line", 0, INT32_MAX));
    out.line = static_cast<int>(line);
    return out;
}

Json DomainFacts::to_json() const {
    Json interface_list = Json::array();
    for (const Interface& interface : interfaces) interface_list.push(interface.to_json());
    Json spike_list = Json::array();
    for (const SpikeMeta& spike : spikes) spike_list.push(spike.to_json());
    return Json::object(
        {{"uuid", uuid}, {"name", name}, {"interfaces", interface_list}, {"spikes", spike_list}, {"problem", problem}});
}

Result<DomainFacts> DomainFacts::from_json(const Json& json) {
    DomainFacts out;
    TRY_SET(out.uuid, json.string("uuid"));
    TRY_SET(out.name, json.string("name"));
    TRY_SET(out.problem, json.string("problem"));
    TRY_SET(const Json interface_list, json.array_at("interfaces"));
    for (size_t i = 0; i < interface_list.size(); i++) {
        TRY_SET(auto interface, Interface::from_json(interface_list.at(i)));
        out.interfaces.push_back(std::move(interface));
    }
    TRY_SET(const Json spike_list, json.array_at("spikes"));
    for (size_t i = 0; i < spike_list.size(); i++) {
        TRY_SET(auto spike, SpikeMeta::from_json(spike_list.at(i)));
        if (spike.target >= static_cast<int>(out.interfaces.size()))
            return Error(Errc::invalid, "member 'target' is past the last interface");
        out.spikes.push_back(std::move(spike));
    }
    return out;
}

}  // namespace banana::hooks
