// Banana's own metadata, namespace urn:banana:1: what stands in a domain's and in a network's <metadata>.
//
//   <banana:domain xmlns:banana='urn:banana:1'>          in a domain: a user's wishes, and bananad's hints
//     <banana:spike interface='net0' wire='dtls' allow-any-mac='yes'
//                   name='hv1/vm1/net0' home='hv1' corm='hv1/lab' epoch='7' uuid='…' mac='…'/>
//   </banana:domain>
//   <banana:network xmlns:banana='urn:banana:1' name='hv1/lab' corm='lab' host='hv1' mtu='1500' formats='native
//   vxlan'/>
//
// Concepts: `interface`, `wire` and `allow-any-mac` are the user's; the others are written by bananad once the guest
// runs, and tell a destination what it needs. They are hints: nothing in metadata grants a right. `uuid` is that of the
// domain they were written for: a clone is known by its being another's. `mac` finds the interface again when libvirt
// has numbered its aliases anew, as it does on a migration's destination.
// The same rules stand as RELAX NG in xml-schemas/; the examples there hold the two together.
// Threading: pure functions on values. Errors: Errc::invalid with element and line: "line 3: <banana:spike ...>: ...".
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"

struct _xmlNode;

namespace banana::hooks {

inline constexpr const char* metadata_namespace = "urn:banana:1";
inline constexpr const char* metadata_prefix = "banana";  // the `key` of virDomainSetMetadata()

struct SpikeMeta {
    std::string interface {};  // an interface's alias, with or without its "ua-"
    std::string wire{};        // "auto", "native", "vxlan", "dtls"; "": not said
    std::optional<bool> allow_any_mac{};
    std::string name{}, home{}, corm{};  // "hv1/vm1/net0", "hv1", "hv1/lab"; "": not said
    std::optional<uint64_t> epoch{};
    std::string uuid{}, mac{};  // lower-case; "": not said
    int line = 0;
    int target = -1;  // index into DomainFacts::interfaces; -1: there is no such interface

    bool operator==(const SpikeMeta&) const = default;
    Json to_json() const;
    static Result<SpikeMeta> from_json(const Json& json);
};

struct NetworkMeta {
    std::string name{}, corm{}, host{};  // "hv1/lab", "lab", "hv1"
    std::optional<int64_t> mtu{};
    std::vector<std::string> formats{};  // empty: not said, all

    bool operator==(const NetworkMeta&) const = default;
    Json to_json() const;
    static Result<NetworkMeta> from_json(const Json& json);
};

// The element by itself as text: <banana:domain …>, or the same without any namespace, as virDomainGetMetadata() gives.
Result<std::vector<SpikeMeta>> parse_domain_metadata(std::string_view xml);
Result<NetworkMeta> parse_network_metadata(std::string_view xml);

// From the <metadata> element of a domain or network (null: none). Absent: no spikes; nullopt.
Result<std::vector<SpikeMeta>> read_domain_metadata(const _xmlNode* metadata);
Result<std::optional<NetworkMeta>> read_network_metadata(const _xmlNode* metadata);

// Text for virDomainSetMetadata(dom, VIR_DOMAIN_METADATA_ELEMENT, text, metadata_prefix, metadata_namespace, flags):
// without prefix or namespace, as libvirt adds both, to each element, and refuses text that has them already.
std::string format_domain_metadata(const std::vector<SpikeMeta>& spikes);
// Text for a place inside a network's <metadata>: with prefix and namespace, as virNetworkDefineXML() needs it.
std::string format_network_metadata(const NetworkMeta& network);

}  // namespace banana::hooks
