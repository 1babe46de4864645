#include "controller/libvirt_network_xml.h"

#include <libxml/parser.h>
#include <libxml/tree.h>

#include <memory>
#include <set>

#include "controller/libvirt.h"

namespace banana::controller {

namespace {

constexpr size_t max_xml = 1 << 20;  // libvirt's own definitions are a few hundred bytes

struct XmlFree {
    void operator()(xmlDoc* document) const { xmlFreeDoc(document); }
    void operator()(xmlChar* text) const { xmlFree(text); }
};
using Document = std::unique_ptr<xmlDoc, XmlFree>;
using XmlText = std::unique_ptr<xmlChar, XmlFree>;

std::string string(const xmlChar* text) { return text ? reinterpret_cast<const char*>(text) : ""; }
const xmlChar* xml(const char* text) { return reinterpret_cast<const xmlChar*>(text); }

// Neither the network nor entities are touched: the text may come from a user's definition.
Result<Document> read(std::string_view text) {
    if (text.size() > max_xml) return Error(Errc::invalid, "network XML: larger than 1 MiB");
    const int options = XML_PARSE_NONET | XML_PARSE_NOERROR | XML_PARSE_NOWARNING;
    Document document(xmlReadMemory(text.data(), static_cast<int>(text.size()), "network", nullptr, options));
    const xmlNode* root = document ? xmlDocGetRootElement(document.get()) : nullptr;
    if (!root) return Error(Errc::invalid, "network XML: not well-formed");
    if (string(root->name) != "network") return Error(Errc::invalid, "network XML: the root is not <network>");
    return document;
}

xmlNode* child(const xmlNode* parent, const char* name) {
    for (xmlNode* node = parent->children; node; node = node->next) {
        if (node->type == XML_ELEMENT_NODE && !node->ns && string(node->name) == name) return node;
    }
    return nullptr;
}

std::string content(const xmlNode* node) { return node ? string(XmlText(xmlNodeGetContent(node)).get()) : ""; }

std::string attribute(xmlNode* node, const char* name) {
    return node ? string(XmlText(xmlGetNoNsProp(node, xml(name))).get()) : "";
}

std::string trimmed(const std::string& text) {
    const size_t first = text.find_first_not_of(" \t\r\n");
    if (first == std::string::npos) return "";
    return text.substr(first, text.find_last_not_of(" \t\r\n") - first + 1);
}

std::string full_name(const xmlNs* ns, const xmlChar* name) {
    return (ns ? "{" + string(ns->href) + "}" : "") + string(name);
}

// Depth is bounded by libxml2 (256 levels).
std::string one_form(const xmlNode* element) {
    std::set<std::string> attributes;
    for (xmlAttr* a = element->properties; a; a = a->next) {
        const XmlText value(xmlNodeListGetString(element->doc, a->children, 1));
        attributes.insert(" " + full_name(a->ns, a->name) + "='" + string(value.get()) + "'");
    }
    std::string text = "<" + full_name(element->ns, element->name);
    for (const std::string& a : attributes) text += a;
    text += ">";
    for (const xmlNode* node = element->children; node; node = node->next) {
        if (node->type == XML_ELEMENT_NODE) text += one_form(node);
        if (node->type == XML_TEXT_NODE || node->type == XML_CDATA_SECTION_NODE) text += trimmed(string(node->content));
    }
    return text + "</>";
}

std::string our_metadata(const xmlNode* metadata) {
    std::string text;
    for (const xmlNode* node = metadata ? metadata->children : nullptr; node; node = node->next) {
        if (node->type == XML_ELEMENT_NODE && node->ns && string(node->ns->href) == metadata_uri)
            text += one_form(node);
    }
    return text;
}

}  // namespace

bool NetworkDefinition::same(const NetworkDefinition& other) const {
    return name == other.name && forward == other.forward && bridge == other.bridge && mtu == other.mtu &&
           metadata == other.metadata;
}

Result<NetworkDefinition> parse_network_definition(std::string_view text) {
    TRY_SET(const Document document, read(text));
    const xmlNode* root = xmlDocGetRootElement(document.get());
    NetworkDefinition definition;
    definition.name = content(child(root, "name"));
    if (definition.name.empty()) return Error(Errc::invalid, "network XML: <name> is missing");
    definition.uuid = content(child(root, "uuid"));
    xmlNode* forward = child(root, "forward");
    definition.forward = attribute(forward, "mode");
    if (forward && definition.forward.empty()) definition.forward = "nat";  // libvirt's default
    definition.bridge = attribute(child(root, "bridge"), "name");
    definition.mtu = attribute(child(root, "mtu"), "size");
    definition.metadata = our_metadata(child(root, "metadata"));
    return definition;
}

Result<std::string> with_uuid(std::string_view text, const std::string& uuid) {
    TRY_SET(const Document document, read(text));
    xmlNode* root = xmlDocGetRootElement(document.get());
    if (xmlNode* old = child(root, "uuid")) {
        xmlUnlinkNode(old);
        xmlFreeNode(old);
    }
    if (!xmlNewTextChild(root, nullptr, xml("uuid"), xml(uuid.c_str()))) return Error("network XML: out of memory");
    xmlChar* dumped = nullptr;
    int size = 0;
    xmlDocDumpMemory(document.get(), &dumped, &size);
    const XmlText owned(dumped);
    if (!dumped) return Error("network XML: out of memory");
    return std::string(reinterpret_cast<const char*>(dumped), static_cast<size_t>(size));
}

}  // namespace banana::controller
