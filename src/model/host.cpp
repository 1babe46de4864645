#include "model/host.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>

#include "model/names.h"

namespace banana::model {

namespace {

constexpr std::array<Format, 3> all_formats{Format::native, Format::vxlan, Format::dtls};

bool holds(const std::vector<Format>& list, Format format) {
    return std::find(list.begin(), list.end(), format) != list.end();
}

Choice by_place(const Host& spike_host, const Host& corm_host) {
    if (spike_host.name == corm_host.name) return {Format::native, "auto: same host"};
    if (spike_host.site == corm_host.site) return {Format::vxlan, fmt::format("auto: same site ({})", corm_host.site)};
    return {Format::dtls, fmt::format("auto: other site ({}, the Corm's is {})", spike_host.site, corm_host.site)};
}

Result<TunnelEnd> tunnel_from_json(const Json& json) {
    TunnelEnd end;
    if (json.is_null()) {
        end.problem = "its bananad is older than tunnels";
        return end;
    }
    TRY_SET(const int64_t port, json.integer("port", 0, UINT16_MAX));
    end.port = static_cast<uint16_t>(port);
    TRY_SET(const int64_t lanes, json.integer("lanes", port == 0 ? 0 : 1, tunnel_lanes_max));
    end.lanes = static_cast<uint32_t>(lanes);
    end.problem = printable(json.get("problem").as_string());
    return end;
}

}  // namespace

const char* format_name(Format format) {
    switch (format) {
        case Format::native: return "native";
        case Format::vxlan: return "vxlan";
        case Format::dtls: return "dtls";
    }
    return "?";
}

Result<Format> parse_format(std::string_view name) {
    for (Format f : all_formats)
        if (name == format_name(f)) return f;
    return Error(Errc::invalid,
                 fmt::format("'{}' is no wire format; there are native, vxlan, dtls", printable(name, 40)));
}

Result<Preference> parse_preference(std::string_view name) {
    if (name.empty() || name == "auto") return Preference("auto");
    TRY_SET(const Format format, parse_format(name));
    return Preference(format_name(format));
}

Json Host::json() const {
    const Json tunnel_json =
        Json::object({{"port", int{tunnel.port}}, {"lanes", tunnel.lanes}, {"problem", tunnel.problem}});
    return Json::object({{"name", name},
                         {"site", site},
                         {"underlay", underlay.text()},
                         {"underlay_mtu", underlay_mtu},
                         {"formats", formats_json(formats)},
                         {"tunnel", tunnel_json}});
}

Result<Host> Host::from_json(const Json& json) {
    Host host;
    TRY_SET(host.name, json.string("name"));
    TRY(check_host_name(host.name));
    TRY_SET(host.site, json.string("site"));
    TRY_SET(const std::string underlay, json.string("underlay"));
    TRY_SET(host.underlay, IpAddress::parse(underlay));
    if (json.has("underlay_mtu")) {
        TRY_SET(const int64_t mtu, json.integer("underlay_mtu", 0, UINT32_MAX));
        host.underlay_mtu = static_cast<uint32_t>(mtu);
    }
    TRY_SET(host.formats, formats_from_json(json.get("formats")));
    TRY_SET(host.tunnel, tunnel_from_json(json.get("tunnel")));
    // A tunnel that cannot be reached is none, whatever else the peer says.
    if (host.tunnel.port == 0) std::erase(host.formats, Format::dtls);
    return host;
}

Result<Choice> choose_format(const Preference& preference, const std::vector<Format>& allowed, const Host& spike_host,
                             const Host& corm_host) {
    const bool same_host = spike_host.name == corm_host.name;
    Choice choice = by_place(spike_host, corm_host);
    if (preference != "auto") {
        TRY_SET(const Format wanted, parse_format(preference));
        choice = {wanted, "asked for"};
        // A preference for a tunnel says how to cross the underlay; on one host there is none to cross.
        if (same_host && wanted != Format::native)
            choice = {Format::native, "same host; " + preference + " when apart"};
        if (!same_host && wanted == Format::native)
            return Error(Errc::refused,
                         fmt::format("a native wire joins a Spike and a Corm on one host; the Spike is on "
                                     "{}, the Corm on {}",
                                     spike_host.name, corm_host.name));
    }
    if (!holds(allowed, choice.format))
        return Error(Errc::refused, fmt::format("wire format {} ({}) is not among those that the Corm allows: {}",
                                                format_name(choice.format), choice.why, format_list(allowed)));
    for (const Host* host : {&spike_host, &corm_host}) {
        if (holds(host->formats, choice.format)) continue;
        if (choice.format == Format::dtls)
            return Error(Errc::unsupported,
                         fmt::format("wire format dtls ({}): host {} has no tunnel: {}", choice.why, host->name,
                                     host->tunnel.problem.empty() ? "it builds none" : host->tunnel.problem));
        return Error(Errc::unsupported,
                     fmt::format("wire format {} ({}) cannot be built on {}; it can build: {}",
                                 format_name(choice.format), choice.why, host->name, format_list(host->formats)));
    }
    return choice;
}

std::string format_list(const std::vector<Format>& formats) {
    std::string out;
    for (Format f : formats) out += (out.empty() ? "" : ", ") + std::string(format_name(f));
    return out.empty() ? "none" : out;
}

Json formats_json(const std::vector<Format>& formats) {
    Json out = Json::array();
    for (Format f : formats) out.push(format_name(f));
    return out;
}

Result<std::vector<Format>> formats_from_json(const Json& array) {
    std::vector<Format> out;
    for (size_t i = 0; i < array.size(); ++i) {
        // A younger peer may know formats that we do not: they are of no use to us, and no error.
        const auto format = parse_format(array.at(i).as_string());
        if (format && !holds(out, *format)) out.push_back(*format);
    }
    return out;
}

}  // namespace banana::model
