// A bounded reader of XML from outside, on libxml2: no network, no DTD, no entities but XML's own five.
//
// Concepts: a DOCTYPE ends the parsing before its contents are looked at, so entity bombs and external files cannot be
// asked for. Size is bounded here, depth by libxml2 (256 levels). Nodes are borrowed from their Document.
// Errors name the line and what is wrong in general, never a piece of the input: a hook's stdin may hold passwords.
// Threading: a Document belongs to one thread.
#pragma once

#include <libxml/tree.h>

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace banana::hooks::xml {

inline constexpr size_t max_bytes = 4 << 20;

class Document {
public:
    // `what` stands in errors: "domain XML".
    static Result<Document> parse(std::string_view text, const std::string& what, size_t limit = max_bytes);
    xmlNode* root() const { return xmlDocGetRootElement(doc_.get()); }

private:
    explicit Document(xmlDoc* doc) : doc_(doc) {}
    struct Free {
        void operator()(xmlDoc* doc) const { xmlFreeDoc(doc); }
    };
    std::unique_ptr<xmlDoc, Free> doc_;
};

std::string local_name(const xmlNode* node);
std::string space_of(const xmlNode* node);  // the namespace's URI, "" when in none
int line_of(const xmlNode* node);
std::string content(const xmlNode* node);  // of this element and all below it; "" for null

// Elements directly below `parent` (null: none). The first form takes those in no namespace only.
std::vector<xmlNode*> children(const xmlNode* parent, std::string_view name);
std::vector<xmlNode*> children(const xmlNode* parent);
xmlNode* child(const xmlNode* parent, std::string_view name);  // the first, or null

// An attribute in no namespace; of a null node: absent.
std::optional<std::string> attribute(const xmlNode* node, const char* name);
std::string attribute_or_empty(const xmlNode* node, const char* name);

std::string lower(std::string text);  // ASCII's letters, as of UUIDs and MAC addresses

}  // namespace banana::hooks::xml
