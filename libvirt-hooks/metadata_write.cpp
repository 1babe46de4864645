// The metadata's other directions: into XML for libvirt, into and out of JSON for the control socket.
#include <fmt/core.h>
#include <fmt/ranges.h>

#include "base/mtu.h"
#include "libvirt-hooks/metadata.h"

namespace banana::hooks {

namespace {

// For a value between apostrophes. A line break would become a blank when read again, hence the references.
std::string escape(std::string_view text) {
    std::string out;
    for (const char c : text) {
        switch (c) {
            case '&': out += "&amp;"; break;
            case '<': out += "&lt;"; break;
            case '>': out += "&gt;"; break;
            case '\'': out += "&apos;"; break;
            case '\n': out += "&#10;"; break;
            case '\t': out += "&#9;"; break;
            case '\r': out += "&#13;"; break;
            default: out += c;
        }
    }
    return out;
}

void add(std::string& to, const char* name, const std::string& value) {
    if (!value.empty()) to += fmt::format(" {}='{}'", name, escape(value));
}

}  // namespace

std::string format_domain_metadata(const std::vector<SpikeMeta>& spikes) {
    std::string out = "<domain>\n";
    for (const SpikeMeta& spike : spikes) {
        out += "  <spike";
        add(out, "interface", spike.interface);
        add(out, "wire", spike.wire);
        if (spike.allow_any_mac) add(out, "allow-any-mac", *spike.allow_any_mac ? "yes" : "no");
        add(out, "name", spike.name);
        add(out, "home", spike.home);
        add(out, "corm", spike.corm);
        if (spike.epoch) add(out, "epoch", std::to_string(*spike.epoch));
        add(out, "uuid", spike.uuid);
        add(out, "mac", spike.mac);
        out += "/>\n";
    }
    return out + "</domain>";
}

std::string format_network_metadata(const NetworkMeta& network) {
    std::string out = fmt::format("<{0}:network xmlns:{0}='{1}'", metadata_prefix, metadata_namespace);
    add(out, "name", network.name);
    add(out, "corm", network.corm);
    add(out, "host", network.host);
    if (network.mtu) add(out, "mtu", std::to_string(*network.mtu));
    add(out, "formats", fmt::format("{}", fmt::join(network.formats, " ")));
    return out + "/>";
}

Json SpikeMeta::to_json() const {
    Json out = Json::object({{"interface", interface},
                             {"wire", wire},
                             {"name", name},
                             {"home", home},
                             {"corm", corm},
                             {"uuid", uuid},
                             {"mac", mac},
                             {"line", line},
                             {"target", target}});
    if (allow_any_mac) out.set("allow_any_mac", *allow_any_mac);
    if (epoch) out.set("epoch", *epoch);
    return out;
}

Result<SpikeMeta> SpikeMeta::from_json(const Json& json) {
    SpikeMeta out;
    TRY_SET(out.interface, json.string("interface"));
    TRY_SET(out.wire, json.string("wire"));
    TRY_SET(out.name, json.string("name"));
    TRY_SET(out.home, json.string("home"));
    TRY_SET(out.corm, json.string("corm"));
    TRY_SET(out.uuid, json.string("uuid"));
    TRY_SET(out.mac, json.string("mac"));
    TRY_SET(const int64_t line, json.integer("line", 0, INT32_MAX));
    TRY_SET(const int64_t target, json.integer("target", -1, INT32_MAX));
    out.line = static_cast<int>(line);
    out.target = static_cast<int>(target);
    if (json.has("allow_any_mac")) {
        TRY_SET(out.allow_any_mac, json.boolean("allow_any_mac"));
    }
    if (json.has("epoch")) {
        TRY_SET(const int64_t epoch, json.integer("epoch", 0));
        out.epoch = static_cast<uint64_t>(epoch);
    }
    return out;
}

Json NetworkMeta::to_json() const {
    Json out = Json::object({{"name", name}, {"corm", corm}, {"host", host}, {"formats", Json::array(formats)}});
    if (mtu) out.set("mtu", *mtu);
    return out;
}

Result<NetworkMeta> NetworkMeta::from_json(const Json& json) {
    NetworkMeta out;
    TRY_SET(out.name, json.string("name"));
    TRY_SET(out.corm, json.string("corm"));
    TRY_SET(out.host, json.string("host"));
    TRY_SET(const Json list, json.array_at("formats"));
    for (size_t i = 0; i < list.size(); i++) out.formats.push_back(list.at(i).as_string());
    if (json.has("mtu")) {
        TRY_SET(const int64_t mtu, json.integer("mtu", guest_mtu_min, guest_mtu_max));
        out.mtu = mtu;
    }
    return out;
}

}  // namespace banana::hooks
