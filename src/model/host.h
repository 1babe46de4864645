// Host and wire format: where things are, and how two places are joined.
//
// Concepts: a site is a trust and latency domain. `auto` chooses by place: same host native, same site VXLAN, other
// site DTLS. VXLAN is neither encrypted nor authenticated, so `auto` never chooses it across sites. A host can build
// DTLS wires while its tunnel process runs; where it does not, `tunnel.problem` says why.
// Threading: values and pure functions.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/json.h"
#include "base/result.h"

namespace banana::model {

enum class Format { native, vxlan, dtls };
const char* format_name(Format format);
Result<Format> parse_format(std::string_view name);

// What a user asks for: a format, or `auto` (no value).
using Preference = std::string;  // "auto", "native", "vxlan", "dtls"
Result<Preference> parse_preference(std::string_view name);

inline constexpr int64_t tunnel_lanes_max = 32;  // descriptors of all lanes go in one message (tunnel/control.h)

// How a host's tunnel process is reached.
struct TunnelEnd {
    uint16_t port = 0;    // UDP, at the underlay address; 0: there is none
    uint32_t lanes = 0;   // sessions side by side, each a thread
    std::string problem;  // why there are no DTLS wires; empty while there can be
    bool operator==(const TunnelEnd&) const = default;
};

struct Host {
    std::string name;
    std::string site;
    IpAddress underlay;
    uint32_t underlay_mtu = 0;    // bytes; 0: not known
    std::vector<Format> formats;  // what its bananad can build
    TunnelEnd tunnel = {};
    Json json() const;
    static Result<Host> from_json(const Json& json);
};

struct Choice {
    Format format = Format::native;
    std::string why;  // for people: "same site (default)"
};

// The format of a wire between a Spike on `spike_host` and a Corm on `corm_host`. Refused, with a reason that names
// what would do, when the preference, the Corm's policy (`allowed`) and the two hosts' abilities leave nothing.
Result<Choice> choose_format(const Preference& preference, const std::vector<Format>& allowed, const Host& spike_host,
                             const Host& corm_host);

std::string format_list(const std::vector<Format>& formats);  // "native, vxlan"
Json formats_json(const std::vector<Format>& formats);
Result<std::vector<Format>> formats_from_json(const Json& array);

}  // namespace banana::model
