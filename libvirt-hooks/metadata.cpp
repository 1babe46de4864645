#include "libvirt-hooks/metadata.h"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <functional>
#include <map>
#include <sstream>

#include "base/bytes.h"
#include "base/mtu.h"
#include "libvirt-hooks/xml_doc.h"

namespace banana::hooks {

namespace {

constexpr size_t max_name = 255;  // characters of one value, as in the schema
constexpr std::array<std::string_view, 4> wires{"auto", "native", "vxlan", "dtls"};
constexpr std::array<std::string_view, 3> formats{"native", "vxlan", "dtls"};

// --- Values: each rule stands in xml-schemas/ under the same name. The answer is what is wrong, or "". ---

template <size_t N>
bool one_of(const std::array<std::string_view, N>& list, std::string_view text) {
    return std::find(list.begin(), list.end(), text) != list.end();
}

bool is_alnum(char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool is_digit(char c) { return c >= '0' && c <= '9'; }

size_t characters(std::string_view utf8) {
    return static_cast<size_t>(
        std::count_if(utf8.begin(), utf8.end(), [](char c) { return (static_cast<uint8_t>(c) & 0xc0) != 0x80; }));
}

// Hosts and Corms are named as in DNS (model/names.h has the same limits).
bool is_dns_like(std::string_view text, size_t max) {
    return !text.empty() && text.size() <= max && text[0] != '-' && std::all_of(text.begin(), text.end(), [](char c) {
        return is_digit(c) || (c >= 'a' && c <= 'z') || c == '-';
    });
}
bool is_host(std::string_view text) { return is_dns_like(text, 32); }
bool is_corm(std::string_view text) { return is_dns_like(text, 12); }

std::vector<std::string_view> split_path(std::string_view text) {
    std::vector<std::string_view> out;
    for (size_t start = 0;;) {
        const size_t slash = text.find('/', start);
        out.push_back(text.substr(start, slash == std::string_view::npos ? slash : slash - start));
        if (slash == std::string_view::npos) return out;
        start = slash + 1;
    }
}

// A domain's name may hold blanks and any letters: only '/' and control characters cannot stand in a segment.
bool is_segment(std::string_view text) {
    return !text.empty() &&
           std::all_of(text.begin(), text.end(), [](char c) { return static_cast<uint8_t>(c) >= 0x20 && c != 0x7f; });
}

std::string wrong_interface(const std::string& text) {
    const bool ok = !text.empty() && text.size() <= max_name && std::all_of(text.begin(), text.end(), [](char c) {
        return is_alnum(c) || c == '.' || c == '_' || c == '-';
    });
    return ok ? "" : "an interface's alias has letters, digits, '.', '_' and '-' only";
}
std::string wrong_wire(const std::string& text) {
    return one_of(wires, text) ? "" : fmt::format("must be {}", fmt::join(wires, ", "));
}
std::string wrong_yes_no(const std::string& text) { return text == "yes" || text == "no" ? "" : "must be yes or no"; }
std::string wrong_host(const std::string& text) {
    return is_host(text) ? "" : "must be 1 to 32 of a-z, 0-9 and '-', and not begin with '-'";
}
std::string wrong_corm(const std::string& text) {
    return is_corm(text) ? "" : "must be 1 to 12 of a-z, 0-9 and '-', and not begin with '-'";
}
std::string wrong_spike_name(const std::string& text) {
    const auto path = split_path(text);
    const bool ok = path.size() == 3 && characters(text) <= max_name && is_host(path[0]) && is_segment(path[1]) &&
                    is_segment(path[2]);
    return ok ? "" : "must be HOME/DOMAIN/INTERFACE";
}
std::string wrong_corm_name(const std::string& text) {
    const auto path = split_path(text);
    return path.size() == 2 && is_host(path[0]) && is_corm(path[1]) ? "" : "must be HOST/CORM";
}
std::string wrong_epoch(const std::string& text) {
    const bool ok = !text.empty() && text.size() <= 18 && std::all_of(text.begin(), text.end(), is_digit) &&
                    (text == "0" || text[0] != '0');
    return ok ? "" : "must be a number of at most 18 digits";
}
std::string wrong_uuid(const std::string& text) {
    bool ok = text.size() == 36;
    for (size_t i = 0; ok && i < text.size(); i++) {
        const bool dash = i == 8 || i == 13 || i == 18 || i == 23;
        ok = dash ? text[i] == '-' : std::isxdigit(static_cast<uint8_t>(text[i])) != 0;
    }
    return ok ? "" : "must be a UUID";
}
std::string wrong_mac(const std::string& text) {
    return text.size() == 17 && Mac::parse(text) ? "" : "must be a MAC address";
}
std::string wrong_mtu(const std::string& text) {
    int64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    const bool ok = error == std::errc() && end == text.data() + text.size() && is_digit(text[0]) && text[0] != '0' &&
                    value >= guest_mtu_min && value <= guest_mtu_max;
    return ok ? "" : fmt::format("must be {} to {}", guest_mtu_min, guest_mtu_max);
}
std::vector<std::string> words(const std::string& text) {
    std::istringstream in(text);
    return {std::istream_iterator<std::string>(in), {}};
}
std::string wrong_formats(const std::string& text) {
    const auto list = words(text);
    const bool ok = !list.empty() && std::all_of(list.begin(), list.end(), [](auto& f) { return one_of(formats, f); });
    return ok ? "" : fmt::format("must list some of {}", fmt::join(formats, ", "));
}

struct Rule {
    bool required;
    std::function<std::string(const std::string&)> wrong;
};
using Rules = std::map<std::string, Rule>;
using Values = std::map<std::string, std::string>;

const Rules& spike_rules() {
    static const Rules rules{
        {"interface", {true, wrong_interface}}, {"wire", {false, wrong_wire}}, {"allow-any-mac", {false, wrong_yes_no}},
        {"name", {false, wrong_spike_name}},    {"home", {false, wrong_host}}, {"corm", {false, wrong_corm_name}},
        {"epoch", {false, wrong_epoch}},        {"uuid", {false, wrong_uuid}}, {"mac", {false, wrong_mac}}};
    return rules;
}
const Rules& network_rules() {
    static const Rules rules{{"name", {true, wrong_corm_name}},
                             {"corm", {true, wrong_corm}},
                             {"host", {true, wrong_host}},
                             {"mtu", {false, wrong_mtu}},
                             {"formats", {false, wrong_formats}}};
    return rules;
}

// --- Elements ---

// "line 3: <banana:spike interface='net0'>"; an element that is not ours shows no prefix.
std::string place(const xmlNode* node) {
    const bool ours = xml::space_of(node) == metadata_namespace;
    std::string out =
        fmt::format("line {}: <{}{}", xml::line_of(node), ours ? "banana:" : "", printable(xml::local_name(node), 60));
    if (const auto name = xml::attribute(node, "interface"))
        out += fmt::format(" interface='{}'", printable(*name, 60));
    return out + ">";
}

Error wrong(const xmlNode* node, const std::string& why) { return {Errc::invalid, place(node) + ": " + why}; }

Result<Values> read_attributes(const xmlNode* node, const Rules& rules) {
    Values out;
    for (const xmlAttr* attribute = node->properties; attribute != nullptr; attribute = attribute->next) {
        const std::string name = reinterpret_cast<const char*>(attribute->name);
        const auto rule = attribute->ns == nullptr ? rules.find(name) : rules.end();
        if (rule == rules.end()) return wrong(node, fmt::format("unknown attribute '{}'", printable(name, 60)));
        const std::string value = xml::attribute_or_empty(node, name.c_str());
        if (const std::string why = rule->second.wrong(value); !why.empty())
            return wrong(node, fmt::format("{}='{}': {}", name, printable(value, 80), why));
        out.emplace(name, value);
    }
    for (const auto& [name, rule] : rules)
        if (rule.required && !out.contains(name)) return wrong(node, fmt::format("attribute '{}' is missing", name));
    return out;
}

// Nothing but blanks, comments and elements.
Status no_text(const xmlNode* node) {
    for (const xmlNode* child = node->children; child != nullptr; child = child->next) {
        if (child->type == XML_ELEMENT_NODE || child->type == XML_COMMENT_NODE || child->type == XML_PI_NODE) continue;
        if (child->type == XML_TEXT_NODE && xmlIsBlankNode(child) != 0) continue;
        return wrong(node, "text is not allowed here");
    }
    return {};
}

int64_t number(const Values& values, const char* key) { return std::strtoll(values.at(key).c_str(), nullptr, 10); }

Result<SpikeMeta> read_spike(const xmlNode* node) {
    TRY_SET(Values values, read_attributes(node, spike_rules()));
    TRY(no_text(node));
    if (!xml::children(node).empty()) return wrong(node, "elements are not allowed in it");
    SpikeMeta out{.interface = values["interface"],
                  .wire = values["wire"],
                  .allow_any_mac = {},
                  .name = values["name"],
                  .home = values["home"],
                  .corm = values["corm"],
                  .epoch = {},
                  .uuid = xml::lower(values["uuid"]),
                  .mac = xml::lower(values["mac"]),
                  .line = xml::line_of(node)};
    if (values.contains("allow-any-mac")) out.allow_any_mac = values["allow-any-mac"] == "yes";
    if (values.contains("epoch")) out.epoch = static_cast<uint64_t>(number(values, "epoch"));
    return out;
}

// `space`: the namespace that our elements are in.
Result<std::vector<SpikeMeta>> read_domain_element(const xmlNode* element, const std::string& space) {
    std::vector<SpikeMeta> out;
    if (xml::local_name(element) != "domain") return wrong(element, "unknown element; a domain has <banana:domain>");
    TRY(read_attributes(element, {}));
    TRY(no_text(element));
    for (const xmlNode* node : xml::children(element)) {
        if (xml::space_of(node) != space || xml::local_name(node) != "spike")
            return wrong(node, "unknown element in <banana:domain>; it has <banana:spike> only");
        TRY_SET(auto spike, read_spike(node));
        for (const auto& other : out)
            if (other.interface == spike.interface)
                return wrong(node,
                             fmt::format("a second entry for this interface; the first is in line {}", other.line));
        out.push_back(std::move(spike));
    }
    return out;
}

Result<NetworkMeta> read_network_element(const xmlNode* element) {
    if (xml::local_name(element) != "network") return wrong(element, "unknown element; a network has <banana:network>");
    TRY_SET(Values values, read_attributes(element, network_rules()));
    TRY(no_text(element));
    if (!xml::children(element).empty()) return wrong(element, "elements are not allowed in it");
    NetworkMeta out{.name = values["name"],
                    .corm = values["corm"],
                    .host = values["host"],
                    .mtu = {},
                    .formats = words(values["formats"])};
    if (values.contains("mtu")) out.mtu = number(values, "mtu");
    if (out.name != out.host + "/" + out.corm)
        return wrong(element, fmt::format("name='{}' is not host/corm, '{}/{}'", out.name, out.host, out.corm));
    return out;
}

// Our one element below <metadata>; null: there is none. A namespace that resembles ours is a slip of the pen, and what
// it was to say would be passed over in silence.
Result<const xmlNode*> find_ours(const xmlNode* metadata) {
    const xmlNode* found = nullptr;
    for (const xmlNode* node : xml::children(metadata)) {
        const std::string space = xml::space_of(node);
        if (space != metadata_namespace && xml::lower(space).starts_with("urn:banana"))
            return wrong(node, fmt::format("namespace '{}' is not known; Banana's is '{}'", printable(space, 60),
                                           metadata_namespace));
        if (space != metadata_namespace) continue;
        if (found != nullptr) return wrong(node, "a second element of urn:banana:1 in <metadata>");
        found = node;
    }
    return found;
}

}  // namespace

Result<std::vector<SpikeMeta>> parse_domain_metadata(std::string_view text) {
    TRY_SET(const auto doc, xml::Document::parse(text, "metadata"));
    const std::string space = xml::space_of(doc.root());
    if (!space.empty() && space != metadata_namespace)
        return wrong(doc.root(), fmt::format("not in namespace {}", metadata_namespace));
    return read_domain_element(doc.root(), space);
}

Result<NetworkMeta> parse_network_metadata(std::string_view text) {
    TRY_SET(const auto doc, xml::Document::parse(text, "metadata"));
    if (xml::space_of(doc.root()) != metadata_namespace)
        return wrong(doc.root(), fmt::format("not in namespace {}", metadata_namespace));
    return read_network_element(doc.root());
}

Result<std::vector<SpikeMeta>> read_domain_metadata(const xmlNode* metadata) {
    TRY_SET(const xmlNode* element, find_ours(metadata));
    if (element == nullptr) return std::vector<SpikeMeta>{};
    return read_domain_element(element, metadata_namespace);
}

Result<std::optional<NetworkMeta>> read_network_metadata(const xmlNode* metadata) {
    TRY_SET(const xmlNode* element, find_ours(metadata));
    if (element == nullptr) return std::optional<NetworkMeta>{};
    TRY_SET(const NetworkMeta meta, read_network_element(element));
    return std::optional(meta);
}

}  // namespace banana::hooks
