#include "model/names.h"

#include <fmt/core.h>

#include <algorithm>

#include "base/mtu.h"

namespace banana::model {

namespace {

bool lower_or_digit(char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); }
bool letter_or_digit(char c) { return lower_or_digit(c) || (c >= 'A' && c <= 'Z'); }

Status check_dns_like(std::string_view kind, std::string_view name, size_t max) {
    const bool good = !name.empty() && name.size() <= max && lower_or_digit(name.front()) &&
                      std::all_of(name.begin(), name.end(), [](char c) { return lower_or_digit(c) || c == '-'; });
    if (good) return {};
    return Error(Errc::invalid,
                 fmt::format("{} name '{}': it must be 1 to {} of a-z, 0-9 and '-', and not begin with '-'", kind,
                             printable(name, 40), max));
}

// An own suffix, of unique_spike_name(), may be added at the Spike's home, and another one at the Corm's host.
constexpr size_t suffix_room = 2 * std::string_view("~01234567-99").size();
constexpr size_t interface_part_max = 40;  // a UUID as an alias fits

bool plain(char c) { return c >= ' ' && c < 0x7f && c != '\\'; }

// Whole escapes only, at most `max` bytes.
std::string name_part(std::string_view text, size_t max) {
    constexpr std::string_view cut = "...";
    std::string out;
    size_t whole = 0;  // of what still leaves room for `cut`
    for (const char c : text) {
        out += plain(c) && c != '/' && c != '%' ? std::string(1, c) : fmt::format("%{:02X}", static_cast<uint8_t>(c));
        if (out.size() > max) return out.substr(0, whole).append(cut);
        if (out.size() + cut.size() <= max) whole = out.size();
    }
    return out;
}

std::string device(const char* prefix, uint32_t id) { return prefix + hex32(id); }

}  // namespace

Status check_host_name(std::string_view name) { return check_dns_like("host", name, 32); }
Status check_corm_name(std::string_view name) { return check_dns_like("Corm", name, corm_name_max); }

Status check_device_name(std::string_view name) {
    const bool good = !name.empty() && name.size() <= 15 && name != "." && name != ".." &&
                      std::all_of(name.begin(), name.end(),
                                  [](char c) { return c > ' ' && c < 0x7f && c != '/' && c != ':' && c != '%'; });
    if (good) return {};
    return Error(Errc::invalid, fmt::format("device name '{}': it must be 1 to 15 printable characters without blanks, "
                                            "'/', ':' and '%'",
                                            printable(name, 40)));
}

Status check_label(std::string_view name) {
    const bool good = !name.empty() && name.size() <= 64 && letter_or_digit(name.front()) &&
                      std::all_of(name.begin(), name.end(),
                                  [](char c) { return letter_or_digit(c) || c == '.' || c == '_' || c == '-'; });
    if (good) return {};
    return Error(Errc::invalid,
                 fmt::format("name '{}': it must be 1 to 64 letters, digits, '.', '_' and '-', and begin "
                             "with a letter or digit",
                             printable(name, 80)));
}

Status check_mtu(int64_t mtu) {
    if (mtu >= guest_mtu_min && mtu <= guest_mtu_max) return {};
    return Error(Errc::invalid, fmt::format("MTU {}: it must be {} to {}", mtu, guest_mtu_min, guest_mtu_max));
}

std::string corm_full_name(std::string_view host, std::string_view short_name) {
    return fmt::format("{}/{}", host, short_name);
}
std::string corm_short_name(std::string_view full_name) {
    const auto slash = full_name.find('/');
    return std::string(slash == std::string_view::npos ? full_name : full_name.substr(slash + 1));
}
std::string corm_host(std::string_view full_name) { return name_home(full_name); }

std::string spike_name(std::string_view home, std::string_view domain, std::string_view interface) {
    const size_t rest = spike_name_max - suffix_room - home.size() - interface_part_max - std::string_view("//").size();
    return fmt::format("{}/{}/{}", home, name_part(domain, rest), name_part(interface, interface_part_max));
}

Status check_spike_name(std::string_view name) {
    const size_t first = name.find('/'), second = name.find('/', first + 1), more = name.find('/', second + 1);
    const bool parts = first != std::string_view::npos && second != std::string_view::npos &&
                       more == std::string_view::npos && second > first + 1 && second + 1 < name.size();
    if (parts && name.size() <= spike_name_max && std::all_of(name.begin(), name.end(), plain) &&
        check_host_name(name.substr(0, first)))
        return {};
    return Error(Errc::invalid, fmt::format("Spike name '{}': it must be HOME/DOMAIN/INTERFACE, at most {} bytes of "
                                            "printable ASCII without '\\'",
                                            printable(name, 80), spike_name_max));
}

std::string unique_spike_name(const std::string& name, const std::string& key,
                              const std::function<bool(const std::string&)>& taken) {
    if (!taken(name)) return name;
    const std::string longer = name + "~" + key.substr(0, std::min<size_t>(8, key.find('/')));
    std::string unique = longer;
    for (int number = 2; taken(unique); ++number) unique = fmt::format("{}-{}", longer, number);
    return unique;
}

std::string netdev_spike_name(std::string_view home, std::string_view label) {
    return fmt::format("{}/dev/{}", home, label);
}
std::string name_home(std::string_view name) { return std::string(name.substr(0, name.find('/'))); }

std::string network_name(std::string_view corm_short) { return network_prefix + std::string(corm_short); }
std::string anchor_device(std::string_view corm_short) { return "bn-" + std::string(corm_short); }

std::string corm_bridge_device(uint32_t corm_id) { return device("bnb", corm_id); }
std::string port_device(uint32_t port_id) { return device("bnc", port_id); }
std::string wire_device(uint32_t connector) { return device("bnx", connector); }
std::string tunnel_device(uint32_t connector) { return device("bnd", connector); }
std::string lower_device(uint32_t spike_id) { return device(macvtap_prefix, spike_id); }
std::string lower_stub_device(uint32_t spike_id) { return device("bnf", spike_id); }
std::string headroom_device(uint32_t corm_id) { return device("bnh", corm_id); }
std::string stage_device(uint32_t number) { return device("bns", number); }
std::string stage_headroom_device(uint32_t number) { return device("bng", number); }

bool is_own_device(std::string_view name) {
    if (name.size() != 11 || !parse_hex32(name.substr(3))) return false;
    const auto prefix = name.substr(0, 3);
    // bnp: an earlier version's Corm ports were veth pairs.
    return prefix == "bnb" || prefix == "bnc" || prefix == "bnp" || prefix == "bnx" || prefix == "bnd" ||
           prefix == "bne" || prefix == "bnf" || prefix == "bnh" || prefix == "bns" || prefix == "bng";
}

std::optional<uint32_t> tunnel_connector(std::string_view device) {
    if (!device.starts_with("bnd")) return std::nullopt;
    return parse_hex32(device.substr(3));
}

std::string guest_key(std::string_view domain_uuid, const Mac& mac) {
    return fmt::format("{}/{}", domain_uuid, mac.text());
}
std::string netdev_key(std::string_view home, std::string_view label) { return fmt::format("{}/dev/{}", home, label); }

}  // namespace banana::model
