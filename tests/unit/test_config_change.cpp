#include "controller/config_change.h"

#include <doctest/doctest.h>

using namespace banana;
using namespace banana::controller;

namespace {

const std::string before = R"(host = "hv1"
underlay = "192.0.2.1"
[[peer]]
name = "hv2"
address = "192.0.2.2"
)";

Config parse(const std::string& text) {
    const auto config = Config::parse(text, "b.toml");
    if (!config) FAIL(config.error().message());
    return *config;
}

ConfigChange change(const std::string& text) { return compare(parse(before), parse(text)); }

// With these lines at the top level.
ConfigChange with(const std::string& lines) { return change(lines + "\n" + before); }

}  // namespace

TEST_CASE("nothing changed: nothing is taken, and nothing waits") {
    const ConfigChange same = change(before);
    CHECK(!same.limits);
    CHECK(!same.log_level);
    CHECK(same.new_peers.empty());
    CHECK(same.restart.empty());
}

TEST_CASE("limits, log level and new peers are taken") {
    const ConfigChange taken = change(before +
                                      "[[peer]]\nname = \"hv3\"\naddress = \"192.0.2.3\"\nport = 99\n"
                                      "[limits]\nmax_wires = 7\n[log]\nlevel = \"debug\"\n");
    CHECK(taken.limits);
    CHECK(taken.log_level);
    REQUIRE(taken.new_peers.size() == 1);
    CHECK(taken.new_peers[0].name == "hv3");
    CHECK(taken.new_peers[0].port == 99);
    CHECK(taken.restart.empty());
}

TEST_CASE("every other key waits for a restart, by its name in the file") {
    const std::vector<std::pair<std::string, std::string>> cases{
        {"site", "site = \"x\""},
        {"underlay_mtu", "underlay_mtu = 1400"},
        {"listen", "listen = \"192.0.2.1\""},
        {"port", "port = 99"},
        {"[tls] ca", "tls.ca = \"/x\""},
        {"[tls] certificate", "tls.certificate = \"/x\""},
        {"[tls] key", "tls.key = \"/x\""},
        {"[libvirt] uri", "libvirt.uri = \"\""},
        {"[vxlan] port", "vxlan.port = 99"},
        {"[tunnel] port", "tunnel.port = 99"},
        {"[tunnel] lanes", "tunnel.lanes = 32"},
        {"[tunnel] cpus", "tunnel.cpus = [0]"},
        {"[tunnel] poll", "tunnel.poll = \"never\""},
        {"[tunnel] certificate", "tunnel.certificate = \"/x\""},
        {"[tunnel] key", "tunnel.key = \"/x\""},
        {"[tunnel] socket", "tunnel.socket = \"/x\""},
        {"[tunnel] spawn", "tunnel.spawn = true"},
        {"[tunnel] rekey_seconds", "tunnel.rekey_seconds = 9"},
        {"[tunnel] rekey_records", "tunnel.rekey_records = 9999"},
    };
    for (const auto& [key, line] : cases) {
        CAPTURE(key);
        const ConfigChange changed = with(line);
        CHECK(changed.restart == std::vector<std::string>{key});
        CHECK(!changed.limits);
        CHECK(changed.new_peers.empty());
    }
    CHECK(change("host = \"hv1\"\nunderlay = \"192.0.2.9\"\n[[peer]]\nname = \"hv2\"\naddress = \"192.0.2.2\"\n")
              .restart == std::vector<std::string>{"underlay"});
}

TEST_CASE("peers that changed or went wait for a restart") {
    CHECK(change(before + "port = 99\n").restart == std::vector<std::string>{"[[peer]] hv2"});
    CHECK(change(before + "underlay = \"192.0.2.22\"\n").restart == std::vector<std::string>{"[[peer]] hv2"});
    CHECK(change("host = \"hv1\"\nunderlay = \"192.0.2.1\"\n").restart == std::vector<std::string>{"[[peer]] hv2"});
}
