// What Banana needs to know of a libvirt domain, read from its XML: by the hook from stdin, by bananad from
// virDomainGetXMLDesc().
//
// Concepts:
//   alias  libvirt's name of a device. Of the user's choosing it begins with "ua-"; the others libvirt deals out as
//          net0, net1, ..., anew at each start and on each migration's destination. Where it has not done so yet, the
//          reader predicts them by libvirt's own rule (the next number after the highest in use, in document order).
//   name   ours, and no other interface's: the one that bananad has noted for that MAC in the domain's metadata; else
//          the alias without "ua-". Where both are in use, a user's alias goes before libvirt's, which is numbered
//          ("net0-2"): an interface keeps its name, whatever is plugged in beside it.
// A metadata entry belongs to the interface that has its MAC, if it states one that is there; else to that with its
// name, else to that with exactly its alias, else to that with its alias after "ua-".
// Two kinds of errors: XML that is no domain fails the reading; metadata that is wrong does not, for it must not keep
// bananad from a guest that runs. It is kept in `problem`, and check() makes it an error where a start can be refused.
// Threading: pure functions on values. Errors: Errc::invalid, with element and line, never with other pieces of the
// input (xml_doc.h).
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "libvirt-hooks/metadata.h"

namespace banana::hooks {

struct Interface {
    std::string name{}, alias{};
    std::string mac{};   // lower-case; "": libvirt has not chosen one yet
    std::string type{};  // "network", "bridge", "direct", "ethernet", ...; for a live one: what the network resolved to
    std::string network{}, port{};  // <source network= portid=>
    std::string dev{}, mode{};      // <source dev= mode=>
    std::string bridge{};           // <source bridge=>
    std::string target{};           // <target dev=>; "" before the tap is made
    std::string model{};            // "virtio"
    int64_t mtu = 0;                // <mtu size=>; 0: not said
    bool bandwidth_inbound = false, bandwidth_outbound = false;
    bool alias_predicted = false;
    int line = 0;

    bool operator==(const Interface&) const = default;
    Json to_json() const;
    static Result<Interface> from_json(const Json& json);
};

// On a Corm's network (banana-NAME) or its anchor (bn-NAME), or on an endpoint device of ours (macvtap on bne<id>).
// The anchor alone is what libvirt 9 leaves of a running guest's <source> when its link state is set; so it stands in
// what is migrated, saved and restored afterwards.
bool is_banana(const Interface& interface);
// The short name of the Corm whose network or anchor it is on; "": neither.
std::string corm_of(const Interface& interface);
inline constexpr std::string_view network_prefix = "banana-";
inline constexpr std::string_view anchor_prefix = "bn-";
inline constexpr std::string_view device_prefix = "bne";

struct DomainFacts {
    std::string uuid{}, name{};  // uuid lower-case
    std::vector<Interface> interfaces{};
    std::vector<SpikeMeta> spikes{};
    std::string problem{};  // the first thing wrong with the metadata; "": none

    bool has_banana() const;
    const Interface* by_mac(std::string_view mac) const;    // null: none
    const Interface* by_name(std::string_view name) const;  // by our name or by alias
    const SpikeMeta* meta_of(const Interface& interface) const;

    bool operator==(const DomainFacts&) const = default;
    Json to_json() const;
    static Result<DomainFacts> from_json(const Json& json);
};

Result<DomainFacts> parse_domain(std::string_view xml);
// The metadata's problem as an error.
Status check(const DomainFacts& domain);

}  // namespace banana::hooks
