#include "libvirt-hooks/xml_doc.h"

#include <fmt/core.h>
#include <libxml/parser.h>
#include <libxml/parserInternals.h>

namespace banana::hooks::xml {

namespace {

// NONET bars fetching; neither NOENT nor DTDLOAD nor XINCLUDE nor HUGE is given. NOERROR keeps libxml2 off stderr.
constexpr int parse_options = XML_PARSE_NONET | XML_PARSE_NOERROR | XML_PARSE_NOWARNING | XML_PARSE_BIG_LINES;

struct FreeContext {
    void operator()(xmlParserCtxt* context) const { xmlFreeParserCtxt(context); }
};

// Called at `<!DOCTYPE name`, before the internal subset is read.
void refuse_doctype(void* context, const xmlChar*, const xmlChar*, const xmlChar*) {
    auto* parser = static_cast<xmlParserCtxt*>(context);
    *static_cast<bool*>(parser->_private) = true;
    xmlStopParser(parser);
}

const xmlChar* as_xml(const char* text) { return reinterpret_cast<const xmlChar*>(text); }

std::string take(xmlChar* text) {
    if (text == nullptr) return {};
    std::string out(reinterpret_cast<const char*>(text));
    xmlFree(text);
    return out;
}

}  // namespace

Result<Document> Document::parse(std::string_view text, const std::string& what, size_t limit) {
    if (text.size() > limit) return Error(Errc::invalid, fmt::format("read {}: larger than {} bytes", what, limit));
    if (text.empty()) return Error(Errc::invalid, fmt::format("read {}: empty", what));
    const std::unique_ptr<xmlParserCtxt, FreeContext> parser(xmlNewParserCtxt());
    if (!parser) return Error(Errc::failed, fmt::format("read {}: out of memory", what));
    bool doctype = false;
    parser->_private = &doctype;
    parser->sax->internalSubset = refuse_doctype;
    Document doc(
        xmlCtxtReadMemory(parser.get(), text.data(), static_cast<int>(text.size()), nullptr, nullptr, parse_options));
    if (doctype) return Error(Errc::invalid, fmt::format("read {}: it has a DOCTYPE, which is not accepted", what));
    if (!doc.doc_ || doc.root() == nullptr) {
        const xmlError* why = xmlCtxtGetLastError(parser.get());
        return Error(Errc::invalid, fmt::format("read {}: line {}: not well-formed XML (libxml2 error {})", what,
                                                why ? why->line : 1, why ? why->code : 0));
    }
    return doc;
}

std::string local_name(const xmlNode* node) { return reinterpret_cast<const char*>(node->name); }

std::string space_of(const xmlNode* node) {
    if (node->ns == nullptr || node->ns->href == nullptr) return {};
    return reinterpret_cast<const char*>(node->ns->href);
}

int line_of(const xmlNode* node) { return static_cast<int>(xmlGetLineNo(node)); }

std::string content(const xmlNode* node) { return node == nullptr ? std::string() : take(xmlNodeGetContent(node)); }

std::vector<xmlNode*> children(const xmlNode* parent) {
    std::vector<xmlNode*> out;
    if (parent == nullptr) return out;
    for (xmlNode* node = parent->children; node != nullptr; node = node->next)
        if (node->type == XML_ELEMENT_NODE) out.push_back(node);
    return out;
}

std::vector<xmlNode*> children(const xmlNode* parent, std::string_view name) {
    std::vector<xmlNode*> out;
    for (xmlNode* node : children(parent))
        if (node->ns == nullptr && local_name(node) == name) out.push_back(node);
    return out;
}

xmlNode* child(const xmlNode* parent, std::string_view name) {
    const auto found = children(parent, name);
    return found.empty() ? nullptr : found.front();
}

std::optional<std::string> attribute(const xmlNode* node, const char* name) {
    if (node == nullptr || xmlHasNsProp(node, as_xml(name), nullptr) == nullptr) return std::nullopt;
    return take(xmlGetNoNsProp(node, as_xml(name)));
}

std::string attribute_or_empty(const xmlNode* node, const char* name) { return attribute(node, name).value_or(""); }

std::string lower(std::string text) {
    for (char& c : text)
        if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    return text;
}

}  // namespace banana::hooks::xml
