// The daemon's configuration file, as plain values.
//
// Concepts: TOML, read once at start and again on `banana reload`. Every key is known, typed and bounded: a key that is
// unknown, missing, of the wrong type or out of range is an error, and so are two peers of one name or a peer that is
// this host. All errors of a file are told at once, a line each, as "FILE:LINE:COLUMN: what; what is allowed".
// packaging/bananad.toml.example explains each key.
// Threading: pure but for load(), which reads the file. Errors: invalid, or the errno of reading; nothing is thrown.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/log.h"
#include "base/result.h"

namespace banana::controller {

using std::chrono::milliseconds;

inline constexpr uint16_t default_peer_port = 7471;
inline constexpr uint16_t default_vxlan_port = 4789;
inline constexpr uint16_t default_tunnel_port = 4790;
inline constexpr const char* default_libvirt_uri = "qemu:///system";
inline constexpr const char* default_pki_dir = "/etc/banana/pki";

// banana-hook itself gives up after 7.5 s; the daemon's own answer has to come before, with some to spare.
inline constexpr milliseconds max_hook_timeout{7000};
inline constexpr int64_t max_wires_limit = 4096;  // what the cross-connect's map has room for, see wires.cpp

struct PeerConfig {
    std::string name;
    std::string address;  // where its controller listens: an address, or a name to be resolved
    uint16_t port = default_peer_port;
    std::optional<IpAddress> underlay;  // unset: what the peer itself says
    bool operator==(const PeerConfig&) const = default;
};

struct TlsConfig {
    std::string ca, certificate, key;  // absolute paths; PEM
};

struct TunnelConfig {
    enum class Spawn { automatic, always, never };
    uint16_t port = default_tunnel_port;  // UDP, at `underlay`
    uint32_t lanes = 1;                   // default: half the cores, 1 to 8
    std::vector<uint32_t> cpus;           // one a lane; empty: wherever the kernel puts them
    std::string poll = "auto";            // or "never"
    std::string certificate, key;         // absolute paths; PEM; of role tunnel
    std::string socket;                   // absolute path; "": as Spawn suggests
    Spawn spawn = Spawn::automatic;       // whether bananad starts banana-tunneld itself
    uint32_t rekey_seconds = 3600;
    uint64_t rekey_records = uint64_t{1} << 24;  // below AES-GCM's limit, RFC 8446 section 5.5
};

struct LimitsConfig {
    milliseconds hook_timeout{max_hook_timeout};  // the daemon's answer to a libvirt hook
    milliseconds peer_call_timeout{3000};         // one question to a peer
    int64_t max_wires = max_wires_limit;          // to Corms of this host
    bool operator==(const LimitsConfig&) const = default;
};

struct Config {
    std::string host;
    std::string site = "default";
    IpAddress underlay;                             // this host's end of every wire
    std::optional<int> underlay_mtu;                // unset: that of the netdev that bears `underlay`
    std::string listen = "0.0.0.0";                 // for peers; a literal address
    uint16_t port = default_peer_port;              // for peers
    std::vector<PeerConfig> peers;                  // in the file's order
    TlsConfig tls;                                  // filled in with the defaults where the file is silent
    std::string libvirt_uri = default_libvirt_uri;  // "": no libvirt on this host
    uint16_t vxlan_port = default_vxlan_port;
    TunnelConfig tunnel;
    LimitsConfig limits;
    log::Level log_level = log::Level::info;

    static Result<Config> load(const std::string& path);
    // `name` stands for the file in errors.
    static Result<Config> parse(std::string_view text, const std::string& name);
};

}  // namespace banana::controller
