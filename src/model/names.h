// Names: what hosts, Corms, Spikes and devices are called (doc/architecture.md, "Names").
//
// Concepts: a global name is a path rooted at its home host: Corm "hv1/lab", Spike "hv1/vm1/net0", adopted netdev
// "hv1/dev/eth7". A Corm is also known by its short name, unique in the cluster. Devices are named from ids, never from
// names, since IFNAMSIZ is 16: a prefix that says the role, then eight hexadecimal digits. The anchor alone bears the
// Corm's short name, because libvirt's network refers to it.
// Threading: pure functions. Errors: Errc::invalid, saying what is allowed.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"

namespace banana::model {

inline constexpr size_t corm_name_max = 12;  // "bn-" and this fit IFNAMSIZ
inline constexpr const char* network_prefix = "banana-";
inline constexpr const char* macvtap_prefix = "bne";

Status check_host_name(std::string_view name);  // [a-z0-9][a-z0-9-]{0,31}
Status check_corm_name(std::string_view name);  // [a-z0-9][a-z0-9-]{0,11}: the short name
Status check_device_name(std::string_view name);
// A Spike's last part, chosen by an administrator (adopted netdevs, macvtap): [A-Za-z0-9][A-Za-z0-9._-]{0,63}
Status check_label(std::string_view name);
Status check_mtu(int64_t mtu);  // the range of base/mtu.h

std::string corm_full_name(std::string_view host, std::string_view short_name);
std::string corm_short_name(std::string_view full_name);
std::string corm_host(std::string_view full_name);
// A guest's: of text that its administrator chose, which may be any. What is not printable ASCII, and '/', '\\' and
// '%', is written as %XX, byte by byte; what is too long ends in "...". It is made so once, at the Spike's home: all
// others take it as it is, or refuse it by check_spike_name().
std::string spike_name(std::string_view home, std::string_view domain, std::string_view interface);
inline constexpr size_t spike_name_max = 200;    // bytes; with "banana wire " it fits the kernel's ifalias
Status check_spike_name(std::string_view name);  // HOME/DOMAIN/INTERFACE, printable ASCII without '\\'
// `name`, or if another Spike has that: with "~" and the beginning of the key, which is the domain's uuid's or the
// home.
std::string unique_spike_name(const std::string& name, const std::string& key,
                              const std::function<bool(const std::string&)>& taken);
std::string netdev_spike_name(std::string_view home, std::string_view label);  // "hv1/dev/label"
std::string name_home(std::string_view name);                                  // up to the first '/'

std::string network_name(std::string_view corm_short);   // "banana-lab"
std::string anchor_device(std::string_view corm_short);  // "bn-lab"

std::string corm_bridge_device(uint32_t corm_id);    // bnb: the bridge that Banana makes for a Corm
std::string port_device(uint32_t port_id);           // bnc: a Corm port, an ifb in the Corm's bridge
std::string wire_device(uint32_t connector);         // bnx: a VXLAN wire
std::string tunnel_device(uint32_t connector);       // bnd: a DTLS wire, the tap of the tunnel process
std::string lower_device(uint32_t spike_id);         // bne: what a guest's macvtap sits on
std::string lower_stub_device(uint32_t spike_id);    // bnf: its other end, in the cross-connect
std::string headroom_device(uint32_t corm_id);       // bnh: in a Corm's bridge, for headroom alone (wiring/headroom.h)
std::string stage_device(uint32_t number);           // bns: the bridge, down, that adopted netdevs are put into
std::string stage_headroom_device(uint32_t number);  // bng: in a stage, for headroom alone
bool is_own_device(std::string_view name);           // any of the above but the anchor

inline uint32_t vni_of(uint32_t connector) { return connector & 0xffffff; }

std::optional<uint32_t> tunnel_connector(std::string_view device);  // of tunnel_device()

// Who a Spike is, wherever it runs: domain UUID + MAC, or for an adopted netdev its home and device.
std::string guest_key(std::string_view domain_uuid, const Mac& mac);
std::string netdev_key(std::string_view home, std::string_view label);

}  // namespace banana::model
