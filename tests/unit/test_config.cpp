#include "controller/config.h"

#include <doctest/doctest.h>

#include <cstdlib>
#include <fstream>

#include "controller/options.h"

using namespace banana;
using namespace banana::controller;

namespace {

const std::string minimal = "host = \"hv1\"\nunderlay = \"192.0.2.1\"\n";

std::string error_of(const std::string& text) {
    const auto config = Config::parse(text, "b.toml");
    return config ? "" : config.error().message();
}

}  // namespace

TEST_CASE("a configuration of two keys gets the documented defaults") {
    const auto config = Config::parse(minimal, "b.toml");
    REQUIRE_MESSAGE(config.ok(), error_of(minimal));
    CHECK(config->host == "hv1");
    CHECK(config->site == "default");
    CHECK(config->underlay.text() == "192.0.2.1");
    CHECK(!config->underlay_mtu);
    CHECK(config->listen == "0.0.0.0");
    CHECK(config->port == 7471);
    CHECK(config->peers.empty());
    CHECK(config->tls.ca == "/etc/banana/pki/ca.crt");
    CHECK(config->tls.certificate == "/etc/banana/pki/hv1.crt");
    CHECK(config->tls.key == "/etc/banana/pki/hv1.key");
    CHECK(config->libvirt_uri == "qemu:///system");
    CHECK(config->vxlan_port == 4789);
    CHECK(config->tunnel.port == 4790);
    CHECK((config->tunnel.lanes >= 1 && config->tunnel.lanes <= 8));
    CHECK(config->tunnel.cpus.empty());
    CHECK(config->tunnel.poll == "auto");
    CHECK(config->tunnel.certificate == "/etc/banana/pki/hv1-tunnel.crt");
    CHECK(config->tunnel.key == "/etc/banana/pki/hv1-tunnel.key");
    CHECK(config->tunnel.socket.empty());
    CHECK(config->tunnel.spawn == TunnelConfig::Spawn::automatic);
    CHECK(config->limits.hook_timeout == milliseconds(7000));
    CHECK(config->limits.peer_call_timeout == milliseconds(3000));
    CHECK(config->limits.max_wires == 4096);
    CHECK(config->log_level == log::Level::info);
}

TEST_CASE("every key is read") {
    const auto config = Config::parse(R"(host = "hv1"
site = "west"
underlay = "2001:db8::1"
underlay_mtu = 9000
listen = "::"
port = 1234
[tls]
ca = "/x/ca"
certificate = "/x/c"
key = "/x/k"
[libvirt]
uri = ""
[vxlan]
port = 8472
[limits]
hook_timeout_ms = 1000
peer_call_timeout_ms = 500
max_wires = 7
[log]
level = "debug"
[[peer]]
name = "hv2"
address = "hv2.example.org"
[[peer]]
name = "hv3"
address = "192.0.2.3"
port = 99
underlay = "198.51.100.3"
)",
                                      "b.toml");
    REQUIRE(config.ok());
    CHECK(config->site == "west");
    CHECK(config->underlay.text() == "2001:db8::1");
    CHECK(config->underlay_mtu == 9000);
    CHECK(config->listen == "::");
    CHECK(config->port == 1234);
    CHECK(config->tls.ca == "/x/ca");
    CHECK(config->tls.certificate == "/x/c");
    CHECK(config->tls.key == "/x/k");
    CHECK(config->libvirt_uri.empty());
    CHECK(config->vxlan_port == 8472);
    CHECK(config->limits.hook_timeout == milliseconds(1000));
    CHECK(config->limits.peer_call_timeout == milliseconds(500));
    CHECK(config->limits.max_wires == 7);
    CHECK(config->log_level == log::Level::debug);
    REQUIRE(config->peers.size() == 2);
    CHECK(config->peers[0].name == "hv2");
    CHECK(config->peers[0].address == "hv2.example.org");
    CHECK(config->peers[0].port == 7471);
    CHECK(!config->peers[0].underlay);
    CHECK(config->peers[1].port == 99);
    CHECK(config->peers[1].underlay->text() == "198.51.100.3");
}

TEST_CASE("an error names the place and what is allowed") {
    struct Case {
        std::string text, error;
    };
    const std::string names = "1 to 32 of a-z, 0-9 and '-', the first no '-'";
    const Case cases[]{
        {minimal + "undrlay = \"x\"\n", "b.toml:3:1: unknown key 'undrlay'; did you mean 'underlay'?"},
        {minimal + "colour = 1\n",
         "b.toml:3:1: unknown key 'colour'; allowed here: host, site, underlay, underlay_mtu, listen, port, tls, "
         "libvirt, "
         "vxlan, tunnel, limits, log, peer"},
        {minimal + "[tls]\ncert = \"/x\"\n",
         "b.toml:4:1: unknown key 'cert' in [tls]; allowed here: ca, certificate, key"},
        {minimal + "site = 7\n", "b.toml:3:8: key 'site' is an integer; it must be " + names},
        {minimal + "site = \"\"\n", "b.toml:3:8: key 'site' is ''; it must be " + names},
        {"host = \"HV1\"\nunderlay = \"192.0.2.1\"\n", "b.toml:1:8: key 'host' is 'HV1'; it must be " + names},
        {"host = \"hv1\"\n", "b.toml: key 'underlay' is missing; it must be an IPv4 or IPv6 address of one host"},
        {"", "b.toml: key 'host' is missing; it must be " + names +
                 "\nb.toml: key 'underlay' is missing; it must be an IPv4 or IPv6 address of one host"},
        {"host = \"hv1\"\nunderlay = \"224.0.0.1\"\n",
         "b.toml:2:12: key 'underlay' is '224.0.0.1'; it must be an IPv4 or IPv6 address of one host"},
        {minimal + "port = 65536\n", "b.toml:3:8: key 'port' is 65536; it must be an integer from 1 to 65535"},
        {minimal + "port = 1.5\n",
         "b.toml:3:8: key 'port' is a floating-point number; it must be an integer from 1 to 65535"},
        {minimal + "listen = \"host\"\n",
         "b.toml:3:10: key 'listen' is 'host'; it must be an IPv4 or IPv6 address, 0.0.0.0 and :: included"},
        {minimal + "tls = 1\n", "b.toml:3:7: key 'tls' is an integer; it must be a table, [tls]"},
        {minimal + "[tls]\nkey = \"k\"\n", "b.toml:4:7: key 'key' in [tls] is 'k'; it must be an absolute path"},
        {minimal + "[log]\nlevel = \"loud\"\n",
         "b.toml:4:9: key 'level' in [log] is 'loud'; it must be debug, info, notice, warning or error"},
        {minimal + "[limits]\nhook_timeout_ms = 7001\n",
         "b.toml:4:19: key 'hook_timeout_ms' in [limits] is 7001; it must be an integer from 100 to 7000, as "
         "banana-hook itself gives up after 7500"},
        {minimal + "[peer]\nname = \"hv2\"\n",
         "b.toml:3:1: key 'peer' is a table; it must be [[peer]] tables, one for each peer"},
        {minimal + "peer = [1]\n",
         "b.toml:3:9: key 'peer' is an integer; it must be [[peer]] tables, one for each peer"},
        {minimal + "[[peer]]\nname = \"hv2\"\n",
         "b.toml:3:1: key 'address' in [[peer]] is missing; it must be an address or a host's DNS name"},
        {minimal + "[[peer]]\nname = \"hv2\"\naddress = \"a b\"\n",
         "b.toml:5:11: key 'address' in [[peer]] is 'a b'; it must be an address or a host's DNS name"},
        {minimal + "[[peer]]\nname = \"hv1\"\naddress = \"a\"\n",
         "b.toml:4:8: peer 'hv1' is this host itself; a peer is another host"},
        {minimal + "[[peer]]\nname = \"hv2\"\naddress = \"a\"\n[[peer]]\nname = \"hv2\"\naddress = \"b\"\n",
         "b.toml:7:8: peer 'hv2' is there twice; a name names one peer"},
        {minimal + "\"\\u001b[2J\" = 1\n",
         "b.toml:3:1: unknown key '\\x1b[2J'; allowed here: host, site, underlay, underlay_mtu, listen, port, tls, "
         "libvirt, vxlan, tunnel, limits, log, peer"},
    };
    for (const auto& c : cases) {
        CAPTURE(c.text);
        CHECK(error_of(c.text) == c.error);
    }
}

TEST_CASE("what cannot work together is an error, at a key that the file has") {
    const std::string limits =
        " in [limits] is 3000, hook_timeout_ms 3000; the former must be less, as a hook waits for peers";
    CHECK(error_of(minimal + "[limits]\npeer_call_timeout_ms = 3000\nhook_timeout_ms = 3000\n") ==
          "b.toml:4:24: peer_call_timeout_ms" + limits);
    const auto shorter = Config::parse(minimal + "[limits]\nhook_timeout_ms = 2000\n", "b.toml");
    REQUIRE(shorter.ok());
    CHECK(shorter->limits.peer_call_timeout == milliseconds(1500));
    CHECK(error_of(minimal + "[limits]\npeer_call_timeout_ms = 7000\n").starts_with("b.toml:4:24: "));
    CHECK(error_of(minimal + "[limits]\npeer_call_timeout_ms = 6999\n") == "");
    const std::string ports = "port in [vxlan] and port in [tunnel] are both ";
    CHECK(error_of(minimal + "[vxlan]\nport = 4790\n") ==
          "b.toml:4:8: " + ports + "4790; each needs a UDP port of its own");
    CHECK(error_of(minimal + "[vxlan]\nport = 99\n[tunnel]\nport = 99\n").starts_with("b.toml:6:8: " + ports));
    const std::string peer = minimal + "[[peer]]\nname = \"hv2\"\n";
    CHECK(error_of(peer + "address = \"192.0.2.1\"\n") ==
          "b.toml:5:11: key 'address' in [[peer]] is 192.0.2.1, this host's own underlay address; a peer is another "
          "host");
    CHECK(error_of(peer + "address = \"a\"\nunderlay = \"192.0.2.1\"\n").starts_with("b.toml:6:12: key 'underlay'"));
    for (const char* address : {"192.0.2.300", "300", "host.42", "1.2.3"}) {
        CAPTURE(address);
        CHECK(
            error_of(peer + "address = \"" + address + "\"\n").ends_with("it must be an address or a host's DNS name"));
    }
    for (const char* address : {"hv2", "2hv", "hv.2b", "hv2.example.org."})
        CHECK(error_of(peer + "address = \"" + address + "\"\n") == "");
}

TEST_CASE("all errors are told, in the file's order") {
    CHECK(error_of("port = 0\nhost = \"hv1\"\n[limits]\nmax_wires = 0\nmax_wire = 1\n") ==
          "b.toml:1:8: key 'port' is 0; it must be an integer from 1 to 65535\n"
          "b.toml:4:13: key 'max_wires' in [limits] is 0; it must be an integer from 1 to 4096\n"
          "b.toml:5:1: unknown key 'max_wire' in [limits]; did you mean 'max_wires'?\n"
          "b.toml: key 'underlay' is missing; it must be an IPv4 or IPv6 address of one host");
}

TEST_CASE("as many wires are allowed as the cross-connect has room for, and no more") {
    CHECK(error_of(minimal + "[limits]\nmax_wires = 4096\n").empty());
    CHECK(error_of(minimal + "[limits]\nmax_wires = 4097\n") ==
          "b.toml:4:13: key 'max_wires' in [limits] is 4097; it must be an integer from 1 to 4096");
}

TEST_CASE("what is not TOML is an error with its place") {
    CHECK(error_of("host = \n").starts_with("b.toml:1:"));
    CHECK(error_of("host = \"a\"\nhost = \"b\"\n").starts_with("b.toml:2:"));
    CHECK(error_of("[=").starts_with("b.toml:1:2: not TOML: "));
    CHECK(error_of(std::string(100000, '[')).starts_with("b.toml:1:"));
    CHECK(error_of("a = \"\xff\"").starts_with("b.toml:1:"));
}

TEST_CASE("a file that cannot be read is named with the cause") {
    CHECK(Config::load("/nonexistent/b.toml").error().message() ==
          "read configuration /nonexistent/b.toml: No such file or directory");
    CHECK(Config::load("/").error().message() == "read configuration /: Is a directory");
    CHECK(Config::load("/dev/zero").error().message() == "read configuration /dev/zero: larger than 1048576 bytes");
}

TEST_CASE("the example configuration is valid and says the defaults") {
    const char* srcdir = std::getenv("srcdir");  // set by `make check`
    const std::string here = __FILE__, top = srcdir ? srcdir : here.substr(0, here.rfind("tests/unit/")) + ".";
    const std::string path = top + "/packaging/bananad.toml.example";
    std::ifstream file(path);
    REQUIRE_MESSAGE(file, path);
    std::string text((std::istreambuf_iterator<char>(file)), {});
    const auto config = Config::parse(text, path);
    REQUIRE_MESSAGE(config.ok(), config.error().message());
    // With each commented-out key put in place, it still is, and nothing but the peers' count changes.
    std::string all;
    for (size_t at = 0; at < text.size();) {
        const size_t end = text.find('\n', at);
        const std::string line = text.substr(at, end - at);
        all += line.starts_with("#") && !line.starts_with("# ") ? line.substr(1) : line;
        all += '\n';
        at = end + 1;
    }
    const auto full = Config::parse(all, path);
    REQUIRE_MESSAGE(full.ok(), full.error().message());
    CHECK(full->port == Config{}.port);
    CHECK(full->limits.hook_timeout == Config{}.limits.hook_timeout);
    CHECK(full->limits.peer_call_timeout == Config{}.limits.peer_call_timeout);
    CHECK(full->limits.max_wires == Config{}.limits.max_wires);
    CHECK(full->libvirt_uri == Config{}.libvirt_uri);
    CHECK(full->vxlan_port == Config{}.vxlan_port);
    CHECK(full->tls.certificate == config->tls.certificate);
    CHECK(full->log_level == Config{}.log_level);
}

namespace {
std::variant<Options, Exit> parse(std::vector<const char*> args) {
    args.insert(args.begin(), "bananad");
    return parse_options(static_cast<int>(args.size()), args.data());
}
}  // namespace

TEST_CASE("bananad's options have defaults and are all settable") {
    const auto plain = parse({});
    REQUIRE(std::holds_alternative<Options>(plain));
    CHECK(std::get<Options>(plain).config == "/etc/banana/bananad.toml");
    CHECK(std::get<Options>(plain).state_dir == "/var/lib/banana");
    CHECK(std::get<Options>(plain).control_socket() == "/run/banana/control.sock");
    CHECK(std::get<Options>(plain).bpf_dir == "/sys/fs/bpf/banana");
    CHECK(!std::get<Options>(plain).check_config);
    const auto all = parse({"--config", "c", "--state-dir=/s", "--run-dir", "/r", "--bpf-dir", "/b", "--check-config"});
    REQUIRE(std::holds_alternative<Options>(all));
    CHECK(std::get<Options>(all).config == "c");
    CHECK(std::get<Options>(all).state_dir == "/s");
    CHECK(std::get<Options>(all).run_dir == "/r");
    CHECK(std::get<Options>(all).bpf_dir == "/b");
    CHECK(std::get<Options>(all).check_config);
}

TEST_CASE("[tunnel]: every key, and what each may not be") {
    const auto config = Config::parse(minimal + R"([tunnel]
port = 1
lanes = 32
cpus = [0]
poll = "never"
certificate = "/c"
key = "/k"
socket = "/s"
spawn = false
rekey_seconds = 1
rekey_records = 1000
)",
                                      "b.toml");
    REQUIRE(config.ok());
    const TunnelConfig& tunnel = config->tunnel;
    CHECK(tunnel.port == 1);
    CHECK(tunnel.lanes == 32);
    CHECK(tunnel.cpus == std::vector<uint32_t>{0});
    CHECK(tunnel.poll == "never");
    CHECK(tunnel.certificate + tunnel.key + tunnel.socket == "/c/k/s");
    CHECK(tunnel.spawn == TunnelConfig::Spawn::never);
    CHECK(tunnel.rekey_seconds == 1);
    CHECK(tunnel.rekey_records == 1000);
    CHECK(Config::parse(minimal + "[tunnel]\nspawn = true\n", "b")->tunnel.spawn == TunnelConfig::Spawn::always);
    CHECK(Config::parse(minimal + "[tunnel]\nspawn = \"auto\"\n", "b")->tunnel.spawn == TunnelConfig::Spawn::automatic);
    const auto wrong = [](const std::string& line) { return error_of(minimal + "[tunnel]\n" + line + "\n"); };
    CHECK(wrong("lanes = 33") == "b.toml:4:9: key 'lanes' in [tunnel] is 33; it must be an integer from 1 to 32");
    CHECK(wrong("spawn = \"yes\"") ==
          "b.toml:4:9: key 'spawn' in [tunnel] is 'yes'; it must be true, false or \"auto\"");
    CHECK(wrong("spawn = 1").find("is an integer; it must be true, false") != std::string::npos);
    CHECK(wrong("cpus = 1").find("is an integer; it must be an array of at most 32 integers") != std::string::npos);
    CHECK(wrong("cpus = [1, -1]").find("'cpus' in [tunnel] is -1") != std::string::npos);
    CHECK(wrong("cpus = [\"1\"]").find("'cpus' in [tunnel] is a text") != std::string::npos);
    CHECK(wrong("cpus = [4096]").ends_with(", the CPUs of this machine"));
    const std::string longest = "/" + std::string(106, 'x');
    CHECK(wrong("socket = \"" + longest + "\"") == "");
    CHECK(wrong("socket = \"" + longest + "x\"").ends_with("; it must be an absolute path of at most 107 bytes"));
    for (const char* line : {"lanes = 0", "port = 0", "poll = \"always\"", "certificate = \"c\"", "key = 1",
                             "socket = \"\"", "rekey_seconds = 0", "rekey_records = 999", "lane = 1"}) {
        CAPTURE(line);
        CHECK(wrong(line) != "");
    }
}

TEST_CASE("--help and --version end well, a wrong option ends with 2") {
    const auto version = std::get<Exit>(parse({"--version"}));
    CHECK(version.code == 0);
    CHECK(version.out == "bananad " BANANA_VERSION "\n");
    const auto help = std::get<Exit>(parse({"--help"}));
    CHECK(help.code == 0);
    CHECK(help.out.find("/etc/banana/bananad.toml") != std::string::npos);
    for (const auto& wrong : std::vector<std::vector<const char*>>{
             {"--confg", "x"}, {"stray"}, {"--config"}, {"--run-dir", "relative"}, {"--bpf-dir", ""}}) {
        const auto exit = parse(wrong);
        REQUIRE(std::holds_alternative<Exit>(exit));
        CHECK(std::get<Exit>(exit).code == 2);
        CHECK(std::get<Exit>(exit).error.starts_with("bananad: "));
        CHECK(std::get<Exit>(exit).out.empty());
    }
    CHECK(std::get<Exit>(parse({"--run-dir", ("/" + std::string(120, 'x')).c_str()})).code == 2);
}
