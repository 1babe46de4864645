// The table of commands. A new one is a row here, and a printer if none of the present ones fits.
#include "base/mtu.h"
#include "cli/command.h"
#include "cli/local.h"
#include "cli/print.h"

namespace banana::cli {

namespace {

using Texts = std::vector<std::string>;

constexpr int64_t min_frame = 60;  // Ethernet's, without its checksum; the daemon refuses less
constexpr int64_t max_frame = guest_mtu_max + ethernet_bytes;
constexpr const char* ca_dir = "banana-pki";

Param positional(const char* name, const char* key, const char* help, bool required = true) {
    return {.flag = name, .key = key, .kind = Kind::text, .help = help, .required = required};
}
Param name_of(const char* help) { return positional("NAME", "name", help); }
Param option(const char* name, const char* key, const char* value, const char* help, const char* fallback = "",
             const Texts& choices = {}) {
    return {.flag = name,
            .key = key,
            .kind = Kind::text,
            .help = help,
            .value = value,
            .choices = choices,
            .fallback = fallback};
}
Param list(const char* name, const char* key, const char* value, const char* help, const Texts& choices = {}) {
    return {.flag = name, .key = key, .kind = Kind::list, .help = help, .value = value, .choices = choices};
}
Param number(const char* name, const char* key, const char* value, const char* help, int64_t min, int64_t max) {
    return {.flag = name, .key = key, .kind = Kind::integer, .help = help, .value = value, .min = min, .max = max};
}
Param flag(const char* name, const char* key, const char* help) {
    return {.flag = name, .key = key, .kind = Kind::flag, .help = help};
}

// --uplink NIC | --bridge BR | --etherstub become kind and device.
Status finish_corm(Json& params) {
    const bool etherstub = params.get("etherstub").as_bool();
    if (params.has("uplink") + params.has("bridge") + (etherstub ? 1 : 0) != 1)
        return Error(Errc::invalid, "corm create: exactly one of --uplink, --bridge and --etherstub is needed");
    const char* kind = etherstub ? "etherstub" : params.has("uplink") ? "uplink" : "bridge";
    if (params.get("move_addresses").as_bool() && !params.has("uplink"))
        return Error(Errc::invalid, "corm create: --move-addresses goes with --uplink only");
    const Json device = etherstub ? Json("") : params.get(kind);
    for (const char* used : {"uplink", "bridge", "etherstub"}) params.erase(used);
    params.set("kind", kind);
    params.set("device", device);
    return {};
}

Status finish_spike(Json& params) {
    if (!params.get("macvtap").as_bool())
        return Error(Errc::invalid,
                     "spike create: --macvtap is needed (a tap's Spike comes with its domain, another netdev's by "
                     "'banana spike adopt')");
    params.erase("macvtap");
    params.set("kind", "macvtap");
    return {};
}

std::vector<Command> host_commands() {
    return {
        {.noun = "",
         .verb = "status",
         .summary = "This host's daemon, its peers, and what it warns of",
         .method = "status",
         .print = print_status,
         .details = "--brief prints the host's name and 'ok' or how many warnings there are."},
        {.noun = "",
         .verb = "doctor",
         .summary = "Check this host; say what is wrong and what to do about it",
         .method = "doctor",
         .print = print_doctor,
         .details = "Exit code 1 if any check fails. --brief prints the failed checks' names.",
         .run = run_doctor},
        {.noun = "",
         .verb = "reload",
         .summary = "Let the daemon read its configuration and certificates again",
         .method = "reload",
         .print = print_reloaded,
         .details = "Says what was taken, and what waits for a restart of bananad (traffic goes on meanwhile)."},
    };
}

std::vector<Command> joining_commands() {
    return {
        {.noun = "",
         .verb = "connect",
         .summary = "Join a Spike to a Corm",
         .method = "connect",
         .params = {positional("SPIKE", "spike", "The Spike, e.g. hv1/dev/eth7"),
                    positional("CORM", "corm", "The Corm, e.g. lab"),
                    option("--wire", "wire", "FORMAT", "The wire's format: auto, native, vxlan or dtls", "auto",
                           {"auto", "native", "vxlan", "dtls"})},
         .print = done("connected Spike {spike} to Corm {corm}", "spike"),
         .details = "For adopted netdevs and macvtaps; libvirt's own interfaces are joined by their domain's XML.\n"
                    "auto: native on one host, vxlan within a site, dtls between sites."},
        {.noun = "",
         .verb = "disconnect",
         .summary = "Remove a Spike's wire",
         .method = "disconnect",
         .params = {positional("SPIKE", "spike", "The Spike")},
         .print = done("disconnected Spike {spike}", "spike")},
        {.noun = "",
         .verb = "ping",
         .summary = "Send probes over a Spike's wire and time their return",
         .method = "wire.probe",
         .params = {positional("SPIKE", "name", "The Spike"),
                    number("--count", "count", "N", "Probes to send [3]", 1, 1'000'000),
                    number("--size", "size", "BYTES", "Frame size; the wire's MTU tells whether full frames pass",
                           min_frame, max_frame)},
         .print = print_ping,
         .details = "Exit code 3 if no probe comes back. --brief prints the mean in microseconds.",
         .run = run_ping},
    };
}

std::vector<Command> corm_commands() {
    return {
        {.noun = "corm",
         .verb = "create",
         .summary = "Make a Corm on this host",
         .method = "corm.create",
         .params = {name_of("The Corm's short name, one in the cluster: a-z, 0-9 and '-'"),
                    option("--uplink", "uplink", "NIC", "Make a bridge and put this NIC into it"),
                    option("--bridge", "bridge", "BRIDGE", "Use this bridge as it is"),
                    flag("--etherstub", "etherstub", "Make a bridge without a NIC"),
                    number("--mtu", "mtu", "BYTES", "The guests' MTU [the uplink's, or the bridge's]", guest_mtu_min,
                           guest_mtu_max),
                    list("--allow-formats", "formats", "FORMAT,...", "Of native, vxlan, dtls: what wires may use [all]",
                         {"native", "vxlan", "dtls"}),
                    list("--allow-hosts", "hosts", "HOST,...", "Hosts whose Spikes may be joined [all]"),
                    flag("--move-addresses", "move_addresses",
                         "Move the uplink's IP addresses and routes to the bridge; else such an uplink is refused"),
                    flag("--force", "force", "Go on although not every peer can be asked whether the name is free")},
         .print = print_corm_created,
         .details =
             "One of --uplink, --bridge and --etherstub is needed. Every host of the cluster then has a libvirt\n"
             "network banana-NAME. Example: banana corm create lab --uplink eth1",
         .finish = finish_corm},
        {.noun = "corm",
         .verb = "list",
         .summary = "The cluster's Corms",
         .method = "corm.list",
         .print = list_of("corms", {{"NAME", "name"},
                                    {"KIND", "kind"},
                                    {"DEVICE", "device"},
                                    {"BRIDGE", "bridge"},
                                    {"NETWORK", "network"},
                                    {"MTU", "mtu"},
                                    {"FORMATS", "formats"},
                                    {"WIRES", "wires"},
                                    {"STATE", "state"},
                                    {"PROBLEMS", "problems"}})},
        {.noun = "corm",
         .verb = "show",
         .summary = "One Corm, and what is wired to it",
         .method = "corm.show",
         .params = {name_of("The Corm")},
         .print = print_corm},
        {.noun = "corm",
         .verb = "delete",
         .summary = "Remove a Corm of this host; refused while anything is wired to it",
         .method = "corm.delete",
         .params = {name_of("The Corm")},
         .print = done("deleted Corm {name}", "name")},
    };
}

std::vector<Command> spike_views() {
    return {
        {.noun = "spike",
         .verb = "list",
         .summary = "This host's Spikes",
         .method = "spike.list",
         .print = list_of("spikes", {{"NAME", "name"},
                                     {"KIND", "kind"},
                                     {"DEVICE", "device"},
                                     {"MAC", "mac"},
                                     {"DOMAIN", "domain"},
                                     {"INTERFACE", "interface"},
                                     {"CORM", "corm"},
                                     {"FORMAT", "format"},
                                     {"STATE", "state"},
                                     {"EPOCH", "epoch"},
                                     {"HOME", "home"},
                                     {"PROBLEM", "problem"}})},
        {.noun = "spike",
         .verb = "show",
         .summary = "One Spike",
         .method = "spike.show",
         .params = {name_of("The Spike, e.g. hv1/vm1/net0")},
         .print = fields_of({{"name", "name"},
                             {"home", "home"},
                             {"kind", "kind"},
                             {"device", "device"},
                             {"mac", "mac"},
                             {"sends from any mac", "allow_any_mac"},
                             {"domain", "domain"},
                             {"domain's uuid", "uuid"},
                             {"interface", "interface"},
                             {"corm", "corm"},
                             {"wanted wire", "wire"},
                             {"format", "format"},
                             {"state", "state"},
                             {"epoch", "epoch"},
                             {"problem", "problem"}})},
    };
}

std::vector<Command> spike_commands() {
    const Param new_name = name_of("The Spike's name: 1 to 64 letters, digits, '.', '_' and '-'");
    return {
        {.noun = "spike",
         .verb = "create",
         .summary = "Make an endpoint device for a domain's type='direct' interface",
         .method = "spike.create",
         .params = {new_name, flag("--macvtap", "macvtap", "Make it for a macvtap (needed)"),
                    option("--mac", "mac", "MAC", "The guest's MAC address [a new one]")},
         .print = print_spike_created,
         .details = "Prints the interface XML to put into the domain.",
         .finish = finish_spike},
        {.noun = "spike",
         .verb = "adopt",
         .summary = "Make a netdev that is there a Spike (a container's veth, say)",
         .method = "spike.adopt",
         .params = {new_name,
                    {.flag = "--device",
                     .key = "device",
                     .kind = Kind::text,
                     .help = "The netdev",
                     .value = "IF",
                     .required = true},
                    option("--mac", "mac", "MAC", "The MAC address that it may send from [any]"),
                    flag("--allow-any-mac", "allow_any_mac",
                         "Let it send from any MAC address, although --mac is given")},
         .print = done("adopted {device} as Spike {name}", "name"),
         .details = "Then join it: banana connect NAME CORM"},
        {.noun = "spike",
         .verb = "delete",
         .summary = "Remove a Spike that was created or adopted; refused while it is wired",
         .method = "spike.delete",
         .params = {name_of("The Spike")},
         .print = done("deleted Spike {name}", "name")},
    };
}

std::vector<Command> wire_commands() {
    return {
        {.noun = "wire",
         .verb = "list",
         .summary = "The wires that end on this host",
         .method = "wire.list",
         .print = list_of("wires", {{"NAME", "name"},
                                    {"CORM", "corm"},
                                    {"FORMAT", "format"},
                                    {"WHY", "why"},
                                    {"PHASE", "phase"},
                                    {"EPOCH", "epoch"},
                                    {"SPIKE AT", "spike_host"},
                                    {"CORM AT", "corm_host"},
                                    {"PORT", "port"},
                                    {"DEVICE", "device"},
                                    {"MTU", "mtu"},
                                    {"ROLE", "role"},
                                    {"CONNECTOR", "connector"}})},
        {.noun = "wire",
         .verb = "show",
         .summary = "One wire: its format and why, counters, drops by reason, MTU",
         .method = "wire.show",
         .params = {name_of("The wire's name, which is its Spike's")},
         .print = print_wire},
    };
}

std::vector<Command> cluster_commands() {
    return {
        {.noun = "peer",
         .verb = "list",
         .summary = "The other hosts, their state, and why one is not reached",
         .method = "peer.list",
         .print = print_peers},
        {.noun = "migration",
         .verb = "show",
         .summary = "Migrations under way and past ones, event by event",
         .method = "migration.list",
         .params = {positional("SPIKE", "spike", "Only this Spike's", false)},
         .print = print_migrations,
         .details = "Times are milliseconds since a migration's first event.",
         .run = run_migration_show},
    };
}

std::vector<Command> pki_commands() {
    const Param days = number("--days", "days", "N", "Validity in days [a CA 3650, a host 825]", 1, 36500);
    const Param overwrite = flag("--overwrite", "overwrite", "Replace files that are there");
    return {
        {.noun = "pki",
         .verb = "init",
         .summary = "Make the cluster's certificate authority",
         .method = "",
         .params = {option("--dir", "dir", "DIR", "Where ca.crt and ca.key go", ca_dir),
                    option("--cluster", "cluster", "NAME", "The cluster's name", "banana"), days, overwrite},
         .print = print_issued,
         .details = "Whoever holds ca.key can name hosts: keep the directory on one safe machine.",
         .run = run_pki_init},
        {.noun = "pki",
         .verb = "issue",
         .summary = "Make a host's key and certificate",
         .method = "",
         .params = {positional("HOST", "host", "The host's name in its bananad.toml"),
                    option("--dir", "dir", "DIR", "The CA's directory", ca_dir),
                    option("--out", "out", "DIR", "Where the files go [the CA's directory]"),
                    option("--role", "role", "ROLE", "controller or tunnel", "controller", {"controller", "tunnel"}),
                    days, overwrite},
         .print = print_issued,
         .details = "Copy HOST.crt, HOST.key and ca.crt (never ca.key) to /etc/banana/pki on the host.",
         .run = run_pki_issue},
        {.noun = "pki",
         .verb = "show",
         .summary = "Say what certificates hold",
         .method = "",
         .params =
             {{.flag = "FILE", .key = "files", .kind = Kind::texts, .help = "Certificates [all in the directory]"},
              option("--dir", "dir", "DIR", "Where to look", "/etc/banana/pki")},
         .print = print_certificates,
         .run = run_pki_show},
    };
}

}  // namespace

const std::vector<Noun>& nouns() {
    static const std::vector<Noun> all{{"corm", "The NIC side of a network: a bridge on one host"},
                                       {"spike", "The guest side of a NIC"},
                                       {"wire", "What joins a Spike to a Corm"},
                                       {"peer", "The other hosts of the cluster"},
                                       {"migration", "How guests' NICs moved"},
                                       {"pki", "The cluster's certificates; no daemon is needed"}};
    return all;
}

const std::vector<Command>& commands() {
    static const std::vector<Command> all = [] {
        std::vector<Command> out;
        for (const auto& part : {host_commands(), joining_commands(), corm_commands(), spike_views(), spike_commands(),
                                 wire_commands(), cluster_commands(), pki_commands()})
            out.insert(out.end(), part.begin(), part.end());
        return out;
    }();
    return all;
}

}  // namespace banana::cli
