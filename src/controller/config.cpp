// Reading goes by sections: a Section wraps one TOML table, hands out its values key by key, and remembers which keys
// it was asked for. So the code that reads a key is also the declaration that the key exists; whatever is left is
// unknown. Errors are gathered with their place and sorted, so that what stands first in the file is told first.
#include "controller/config.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/un.h>

// toml++ 3.3 asserts (and with NDEBUG lets the compiler assume) that a key follows '[': a file with "[=" in it would
// abort us. The parser goes on to report that as an error by itself.
#undef NDEBUG
#define TOML_ASSERT(expression) static_cast<void>(0)
// Without exceptions, parse() returns its errors.
#define TOML_EXCEPTIONS 0
#define TOML_HEADER_ONLY 1
#define TOML_ENABLE_FORMATTERS 0
#include <toml++/toml.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <fstream>
#include <set>
#include <thread>
#include <tuple>

#include "base/fd.h"
#include "libvirt-hooks/hook.h"
#include "model/host.h"

namespace banana::controller {

static_assert(max_hook_timeout < hooks::default_deadline);

namespace {

constexpr size_t max_file_bytes = 1 << 20;
constexpr size_t max_name = 32;
constexpr int min_mtu = 576, max_mtu = 65535;
constexpr int64_t max_cpu = 4095, max_rekey_seconds = 7 * 86400;
constexpr uint32_t most_default_lanes = 8;

// Edits (insert, delete, replace, swap neighbours) that turn `a` into `b`.
size_t edit_distance(std::string_view a, std::string_view b) {
    std::vector<std::vector<size_t>> d(a.size() + 1, std::vector<size_t>(b.size() + 1));
    for (size_t i = 0; i <= a.size(); ++i) d[i][0] = i;
    for (size_t j = 0; j <= b.size(); ++j) d[0][j] = j;
    for (size_t i = 1; i <= a.size(); ++i) {
        for (size_t j = 1; j <= b.size(); ++j) {
            const bool same = a[i - 1] == b[j - 1];
            d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + (same ? 0 : 1)});
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
        }
    }
    return d[a.size()][b.size()];
}

// What is allowed in place of an unknown key: the one that it resembles, else all.
std::string advice(std::string_view key, const std::vector<std::string>& known) {
    constexpr size_t longest = 64;
    const std::string* nearest = nullptr;
    size_t best = std::max<size_t>(1, key.size() / 3) + 1;
    for (const auto& candidate : known) {
        const size_t distance = key.size() > longest ? best : edit_distance(key, candidate);
        if (distance < best) {
            best = distance;
            nearest = &candidate;
        }
    }
    if (nearest) return fmt::format("did you mean '{}'?", *nearest);
    return fmt::format("allowed here: {}", fmt::join(known, ", "));
}

const char* type_text(toml::node_type type) {
    switch (type) {
        case toml::node_type::table: return "a table";
        case toml::node_type::array: return "an array";
        case toml::node_type::string: return "a text";
        case toml::node_type::integer: return "an integer";
        case toml::node_type::floating_point: return "a floating-point number";
        case toml::node_type::boolean: return "a truth value";
        default: return "a date or time";
    }
}

// The errors of one file.
class Findings {
public:
    explicit Findings(std::string file) : file_(std::move(file)) {}

    void add(const toml::source_position& where, std::string text) {
        entries_.emplace_back(where.line, where.column, std::move(text));
    }
    // What is missing has no place; it comes last.
    void add_missing(std::string text) { entries_.emplace_back(no_line, 0, std::move(text)); }

    Status status() {
        if (entries_.empty()) return {};
        std::stable_sort(entries_.begin(), entries_.end(), [](const Entry& a, const Entry& b) {
            return std::tie(std::get<0>(a), std::get<1>(a)) < std::tie(std::get<0>(b), std::get<1>(b));
        });
        std::string all;
        for (const auto& [line, column, text] : entries_) {
            if (!all.empty()) all += '\n';
            all += line == no_line ? fmt::format("{}: {}", file_, text)
                                   : fmt::format("{}:{}:{}: {}", file_, line, column, text);
        }
        return Error(Errc::invalid, all);
    }

private:
    using Entry = std::tuple<uint32_t, uint32_t, std::string>;
    static constexpr uint32_t no_line = UINT32_MAX;
    std::string file_;
    std::vector<Entry> entries_;
};

// One table of the file. `name` is how errors call it ("[tls]"); the top level has none. A null table is empty.
class Section {
public:
    Section(Findings& findings, const toml::table* table, std::string name)
        : findings_(findings), table_(table), name_(std::move(name)) {}

    // Says what is left over.
    void finish() {
        if (!table_) return;
        for (const auto& [key, value] : *table_) {
            if (std::find(known_.begin(), known_.end(), key.str()) != known_.end()) continue;
            findings_.add(key.source().begin,
                          fmt::format("unknown key '{}'{}; {}", printable(key.str()), in(), advice(key.str(), known_)));
        }
    }

    const toml::node* find(const char* key) {
        known_.emplace_back(key);
        return table_ ? table_->get(key) : nullptr;
    }

    void missing(const char* key, const char* allowed) {
        const std::string text = fmt::format("key '{}'{} is missing; it must be {}", key, in(), allowed);
        if (table_ && !name_.empty() && table_->source().begin)
            findings_.add(table_->source().begin, text);
        else
            findings_.add_missing(text);
    }

    void wrong(const char* key, const toml::node& node, std::string_view found, std::string_view allowed) {
        findings_.add(node.source().begin, fmt::format("key '{}'{} is {}; it must be {}", key, in(), found, allowed));
    }

    const toml::table* table(const char* key) {
        const toml::node* node = find(key);
        if (node && !node->is_table()) wrong(key, *node, type_text(node->type()), fmt::format("a table, [{}]", key));
        return node ? node->as_table() : nullptr;
    }

    // `accept` takes the text, or answers false.
    template <class Accept>
    void text(const char* key, const char* allowed, Accept accept) {
        const toml::node* node = find(key);
        if (!node) return;
        if (const auto* value = node->as_string(); !value)
            wrong(key, *node, type_text(node->type()), allowed);
        else if (!accept(value->get()))
            wrong(key, *node, fmt::format("'{}'", printable(value->get(), 60)), allowed);
    }

    template <class Store>
    void integer(const char* key, int64_t min, int64_t max, Store store, const std::string& why = "") {
        const toml::node* node = find(key);
        if (!node) return;
        const std::string allowed = fmt::format("an integer from {} to {}{}", min, max, why);
        const auto* value = node->as_integer();
        if (!value)
            wrong(key, *node, type_text(node->type()), allowed);
        else if (value->get() < min || value->get() > max)
            wrong(key, *node, std::to_string(value->get()), allowed);
        else
            store(value->get());
    }

    void port(const char* key, uint16_t& out) {
        integer(key, 1, UINT16_MAX, [&](int64_t value) { out = static_cast<uint16_t>(value); });
    }

    // A truth value reaches `accept` as "true" or "false".
    template <class Accept>
    void truth_or_text(const char* key, const char* allowed, Accept accept) {
        const toml::node* node = find(key);
        if (!node) return;
        const auto* value = node->as_boolean();
        if (value == nullptr)
            text(key, allowed, accept);
        else
            accept(value->get() ? "true" : "false");
    }

    // Integers of a range, at most `most` of them.
    void integers(const char* key, int64_t max, size_t most, std::vector<uint32_t>& out, const std::string& why) {
        const toml::node* node = find(key);
        if (!node) return;
        const std::string allowed = fmt::format("an array of at most {} integers from 0 to {}{}", most, max, why);
        const auto* array = node->as_array();
        if (array == nullptr) return wrong(key, *node, type_text(node->type()), allowed);
        if (array->size() > most) return wrong(key, *node, fmt::format("an array of {}", array->size()), allowed);
        for (const auto& element : *array) {
            const auto* value = element.as_integer();
            if (value == nullptr || value->get() < 0 || value->get() > max)
                return wrong(key, element, value ? std::to_string(value->get()) : type_text(element.type()), allowed);
            out.push_back(static_cast<uint32_t>(value->get()));
        }
    }

    bool has(const char* key) const { return table_ && table_->contains(key); }

private:
    std::string in() const { return name_.empty() ? "" : " in " + name_; }

    Findings& findings_;
    const toml::table* table_;
    std::string name_;
    std::vector<std::string> known_;
};

constexpr const char* name_rule = "1 to 32 of a-z, 0-9 and '-', the first no '-'";
constexpr const char* unicast_rule = "an IPv4 or IPv6 address of one host";
constexpr const char* address_rule = "an address or a host's DNS name";
constexpr const char* path_rule = "an absolute path";
constexpr const char* socket_rule = "an absolute path of at most 107 bytes";  // unix(7)
constexpr const char* uri_rule = "a libvirt URI such as qemu:///system, or empty for no libvirt";

bool is_name(std::string_view text) {
    const auto good = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-'; };
    return !text.empty() && text.size() <= max_name && text[0] != '-' && std::all_of(text.begin(), text.end(), good);
}

// Not unspecified, not multicast, not IPv4's broadcast: something that one host can have.
bool is_unicast(const IpAddress& ip) {
    const auto begin = ip.bytes.begin(), end = begin + static_cast<long>(ip.size());
    if (std::all_of(begin, end, [](uint8_t b) { return b == 0; })) return false;
    return ip.size() == 4 ? ip.bytes[0] < 224 : ip.bytes[0] != 0xff;
}

bool is_dns_name(std::string_view text) {
    constexpr size_t longest = 253;
    const auto good = [](unsigned char c) { return (c < 0x80 && isalnum(c) != 0) || c == '-' || c == '.' || c == '_'; };
    // No top-level domain is a number (RFC 3696 section 2): that is an address with a slip in it.
    const auto last = text.substr(text.rfind('.') + 1);
    const bool number = std::all_of(last.begin(), last.end(), [](char c) { return c >= '0' && c <= '9'; });
    return !text.empty() && text.size() <= longest && text[0] != '-' && text[0] != '.' && (last.empty() || !number) &&
           std::all_of(text.begin(), text.end(), good);
}

// The number of the last CPU that this machine can ever have: "0-3", "0-3,8-11", "0".
int64_t last_cpu() {
    std::ifstream file("/sys/devices/system/cpu/possible");
    std::string list;
    if (!std::getline(file, list)) return max_cpu;
    const size_t at = list.find_last_of(",-");
    int64_t last = max_cpu;
    (void)std::from_chars(list.data() + (at == std::string::npos ? 0 : at + 1), list.data() + list.size(), last);
    return last;
}

// Half the cores are left to the guests.
uint32_t default_lanes() { return std::clamp(std::thread::hardware_concurrency() / 2, 1U, most_default_lanes); }

auto name_into(std::string& out) {
    return [&out](const std::string& text) {
        out = text;
        return is_name(text);
    };
}

auto path_into(std::string& out) {
    return [&out](const std::string& text) {
        out = text;
        return text.starts_with('/') && text.find('\0') == std::string::npos;
    };
}

template <class Out>
auto unicast_into(Out& out) {
    return [&out](const std::string& text) {
        const auto ip = IpAddress::parse(text);
        if (!ip || !is_unicast(*ip)) return false;
        out = *ip;
        return true;
    };
}

void read_host(Section& top, Config& config) {
    top.text("host", name_rule, name_into(config.host));
    if (!top.has("host")) top.missing("host", name_rule);
    top.text("site", name_rule, name_into(config.site));
    top.text("underlay", unicast_rule, unicast_into(config.underlay));
    if (!top.has("underlay")) top.missing("underlay", unicast_rule);
    top.integer("underlay_mtu", min_mtu, max_mtu,
                [&](int64_t value) { config.underlay_mtu = static_cast<int>(value); });
    top.text("listen", "an IPv4 or IPv6 address, 0.0.0.0 and :: included", [&](const std::string& text) {
        config.listen = text;
        return IpAddress::parse(text).ok();
    });
    top.port("port", config.port);
}

void read_tls(Findings& findings, Section& top, Config& config) {
    Section tls(findings, top.table("tls"), "[tls]");
    config.tls.ca = fmt::format("{}/ca.crt", default_pki_dir);
    config.tls.certificate = fmt::format("{}/{}.crt", default_pki_dir, config.host);
    config.tls.key = fmt::format("{}/{}.key", default_pki_dir, config.host);
    tls.text("ca", path_rule, path_into(config.tls.ca));
    tls.text("certificate", path_rule, path_into(config.tls.certificate));
    tls.text("key", path_rule, path_into(config.tls.key));
    tls.finish();
}

void read_tunnel(Findings& findings, Section& top, Config& config) {
    TunnelConfig& tunnel = config.tunnel;
    tunnel.lanes = default_lanes();
    tunnel.certificate = fmt::format("{}/{}-tunnel.crt", default_pki_dir, config.host);
    tunnel.key = fmt::format("{}/{}-tunnel.key", default_pki_dir, config.host);
    Section section(findings, top.table("tunnel"), "[tunnel]");
    section.port("port", tunnel.port);
    section.integer("lanes", 1, model::tunnel_lanes_max, [&](int64_t v) { tunnel.lanes = static_cast<uint32_t>(v); });
    section.integers("cpus", last_cpu(), model::tunnel_lanes_max, tunnel.cpus, ", the CPUs of this machine");
    section.text("poll", "auto or never", [&](const std::string& text) {
        tunnel.poll = text;
        return text == "auto" || text == "never";
    });
    section.text("certificate", path_rule, path_into(tunnel.certificate));
    section.text("key", path_rule, path_into(tunnel.key));
    section.text("socket", socket_rule, [&](const std::string& text) {
        return path_into(tunnel.socket)(text) && text.size() < sizeof(sockaddr_un::sun_path);
    });
    section.truth_or_text("spawn", "true, false or \"auto\"", [&](const std::string& text) {
        using Spawn = TunnelConfig::Spawn;
        tunnel.spawn = text == "true" ? Spawn::always : text == "false" ? Spawn::never : Spawn::automatic;
        return text == "true" || text == "false" || text == "auto";
    });
    section.integer("rekey_seconds", 1, max_rekey_seconds,
                    [&](int64_t v) { tunnel.rekey_seconds = static_cast<uint32_t>(v); });
    // Half of what a session seals at most: so many are left for when the rekey fails at first.
    section.integer("rekey_records", 1000, int64_t{1} << 35,
                    [&](int64_t v) { tunnel.rekey_records = static_cast<uint64_t>(v); });
    section.finish();
}

void read_sections(Findings& findings, Section& top, Config& config) {
    Section libvirt(findings, top.table("libvirt"), "[libvirt]");
    libvirt.text("uri", uri_rule, [&](const std::string& text) {
        config.libvirt_uri = text;
        return text.empty() || text.find(":/") != std::string::npos;
    });
    libvirt.finish();

    Section vxlan(findings, top.table("vxlan"), "[vxlan]");
    vxlan.port("port", config.vxlan_port);
    vxlan.finish();
    read_tunnel(findings, top, config);

    LimitsConfig& limits = config.limits;
    Section section(findings, top.table("limits"), "[limits]");
    section.integer(
        "hook_timeout_ms", 100, max_hook_timeout.count(), [&](int64_t v) { limits.hook_timeout = milliseconds(v); },
        fmt::format(", as banana-hook itself gives up after {}", hooks::default_deadline.count()));
    // Unasked, it follows the hook's: a file that says only the latter is no error.
    limits.peer_call_timeout = std::min(limits.peer_call_timeout, limits.hook_timeout * 3 / 4);
    section.integer("peer_call_timeout_ms", 100, 60000, [&](int64_t v) { limits.peer_call_timeout = milliseconds(v); });
    section.integer("max_wires", 1, max_wires_limit, [&](int64_t v) { limits.max_wires = v; });
    section.finish();

    Section log(findings, top.table("log"), "[log]");
    log.text("level", "debug, info, notice, warning or error", [&](const std::string& text) {
        constexpr std::array<const char*, 5> levels{"debug", "info", "notice", "warning", "error"};
        const auto found = std::find(levels.begin(), levels.end(), text);
        config.log_level = static_cast<log::Level>(found - levels.begin());
        return found != levels.end();
    });
    log.finish();
}

PeerConfig read_peer(Findings& findings, const toml::table& table) {
    PeerConfig peer;
    Section section(findings, &table, "[[peer]]");
    section.text("name", name_rule, name_into(peer.name));
    if (!section.has("name")) section.missing("name", name_rule);
    section.text("address", address_rule, [&](const std::string& text) {
        peer.address = text;
        const auto ip = IpAddress::parse(text);
        return ip ? is_unicast(*ip) : is_dns_name(text);
    });
    if (!section.has("address")) section.missing("address", address_rule);
    section.port("port", peer.port);
    section.text("underlay", unicast_rule, unicast_into(peer.underlay));
    section.finish();
    return peer;
}

void read_peers(Findings& findings, Section& top, Config& config) {
    constexpr const char* allowed = "[[peer]] tables, one for each peer";
    const toml::node* node = top.find("peer");
    if (!node) return;
    const toml::array* array = node->as_array();
    if (!array) return top.wrong("peer", *node, type_text(node->type()), allowed);
    std::set<std::string> seen;
    for (const auto& element : *array) {
        const toml::table* table = element.as_table();
        if (!table) {
            top.wrong("peer", element, type_text(element.type()), allowed);
            continue;
        }
        PeerConfig peer = read_peer(findings, *table);
        const toml::node* name = table->get("name");
        if (name && peer.name == config.host)
            findings.add(name->source().begin,
                         fmt::format("peer '{}' is this host itself; a peer is another host", printable(peer.name)));
        else if (name && !seen.insert(peer.name).second)
            findings.add(name->source().begin,
                         fmt::format("peer '{}' is there twice; a name names one peer", printable(peer.name)));
        for (const char* key : {"address", "underlay"}) {
            const toml::node* value = table->get(key);
            const auto ip = IpAddress::parse(value ? value->value_or(std::string()) : "");
            if (ip && *ip == config.underlay)
                findings.add(value->source().begin, fmt::format("key '{}' in [[peer]] is {}, this host's own underlay "
                                                                "address; a peer is another host",
                                                                key, ip->text()));
        }
        config.peers.push_back(std::move(peer));
    }
}

// What each key allows by itself, but not together. Told where the first of the two stands that the file has.
void check_together(Findings& findings, const toml::table& file, const Config& config) {
    const auto place = [&](const char* key, const char* other) {
        for (const char* path : {key, other})
            if (const auto view = file.at_path(path)) return view.node()->source().begin;
        return toml::source_position{};
    };
    const auto peer_call = config.limits.peer_call_timeout.count(), hook = config.limits.hook_timeout.count();
    if (peer_call >= hook)
        findings.add(place("limits.peer_call_timeout_ms", "limits.hook_timeout_ms"),
                     fmt::format("peer_call_timeout_ms in [limits] is {}, hook_timeout_ms {}; the former must be less, "
                                 "as a hook waits for peers",
                                 peer_call, hook));
    if (config.vxlan_port == config.tunnel.port)
        findings.add(place("tunnel.port", "vxlan.port"),
                     fmt::format("port in [vxlan] and port in [tunnel] are both {}; each needs a UDP port of its own",
                                 config.vxlan_port));
}

Result<std::string> read_all(const std::string& path) {
    const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY));
    if (!fd) return errno_error(errno, fmt::format("read configuration {}", path));
    std::string text;
    std::array<char, 16384> chunk;
    while (text.size() <= max_file_bytes) {
        const ssize_t n = ::read(fd.get(), chunk.data(), chunk.size());
        if (n == 0) return text;
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return errno_error(errno, fmt::format("read configuration {}", path));
        text.append(chunk.data(), static_cast<size_t>(n));
    }
    return Error(Errc::invalid, fmt::format("read configuration {}: larger than {} bytes", path, max_file_bytes));
}

}  // namespace

Result<Config> Config::load(const std::string& path) {
    TRY_SET(const std::string text, read_all(path));
    return parse(text, path);
}

Result<Config> Config::parse(std::string_view text, const std::string& name) {
    Findings findings(name);
    const toml::parse_result parsed = toml::parse(text);
    if (!parsed) {
        const auto& error = parsed.error();
        findings.add(error.source().begin, fmt::format("not TOML: {}", error.description()));
        return findings.status().error();
    }
    Config config;
    Section top(findings, &parsed.table(), "");
    read_host(top, config);
    read_tls(findings, top, config);
    read_sections(findings, top, config);
    read_peers(findings, top, config);
    check_together(findings, parsed.table(), config);
    top.finish();
    TRY(findings.status());
    return config;
}

}  // namespace banana::controller
