#include "model/corm.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>

#include "model/names.h"

namespace banana::model {

namespace {
constexpr std::array<CormKind, 3> kinds{CormKind::uplink, CormKind::bridge, CormKind::etherstub};
}

const char* corm_kind_name(CormKind kind) {
    switch (kind) {
        case CormKind::uplink: return "uplink";
        case CormKind::bridge: return "bridge";
        case CormKind::etherstub: return "etherstub";
    }
    return "?";
}

std::string Corm::full_name() const { return corm_full_name(host, name); }
std::string Corm::bridge() const { return kind == CormKind::bridge ? device : corm_bridge_device(id); }

bool Corm::allows_host(const std::string& host_name) const {
    return hosts.empty() || host_name == host || std::find(hosts.begin(), hosts.end(), host_name) != hosts.end();
}

Json Corm::json() const {
    return Json::object({{"id", hex32(id)},
                         {"name", name},
                         {"host", host},
                         {"kind", corm_kind_name(kind)},
                         {"device", device},
                         {"mtu", mtu},
                         {"formats", formats_json(formats)},
                         {"hosts", Json::array(hosts)},
                         {"mac", mac.text()},
                         {"moved_addresses", moved_addresses}});
}

Result<Corm> Corm::from_json(const Json& json) {
    Corm corm;
    TRY_SET(const std::string id, json.string("id"));
    const auto number = parse_hex32(id);
    if (!number)
        return Error(Errc::invalid, fmt::format("Corm id '{}' is not eight hexadecimal digits", printable(id, 40)));
    corm.id = *number;
    TRY_SET(corm.name, json.string("name"));
    TRY(check_corm_name(corm.name));
    TRY_SET(corm.host, json.string("host"));
    TRY(check_host_name(corm.host));
    TRY_SET(const std::string kind, json.string("kind"));
    const auto* found = std::find_if(kinds.begin(), kinds.end(), [&](CormKind k) { return kind == corm_kind_name(k); });
    if (found == kinds.end()) return Error(Errc::invalid, fmt::format("'{}' is no kind of Corm", printable(kind, 40)));
    corm.kind = *found;
    corm.device = json.get("device").as_string();
    if (corm.kind != CormKind::etherstub) TRY(check_device_name(corm.device));
    TRY_SET(const int64_t mtu, json.integer("mtu"));
    TRY(check_mtu(mtu));
    corm.mtu = static_cast<uint32_t>(mtu);
    TRY_SET(corm.formats, formats_from_json(json.get("formats")));
    const Json hosts = json.get("hosts");
    for (size_t i = 0; i < hosts.size(); ++i) corm.hosts.push_back(hosts.at(i).as_string());
    if (json.has("mac")) {
        TRY_SET(corm.mac, Mac::parse(json.get("mac").as_string()));
    }
    corm.moved_addresses = json.get("moved_addresses").as_bool();
    return corm;
}

}  // namespace banana::model
