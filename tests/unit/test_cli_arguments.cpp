#include <doctest/doctest.h>

#include <cstdlib>
#include <set>

#include "cli/arguments.h"

using namespace banana;
using namespace banana::cli;

namespace {

using Args = std::vector<std::string>;

Args words(const std::string& line) {
    Args out;
    for (size_t at = 0; at < line.size();) {
        const size_t end = std::min(line.find(' ', at), line.size());
        out.push_back(line.substr(at, end - at));
        at = end + 1;
    }
    return out;
}

// "method params", or the usage error's first line.
std::string mapped(const std::string& line) {
    const auto parsed = parse_arguments(words(line));
    if (const auto* invocation = std::get_if<Invocation>(&parsed))
        return std::string(invocation->command->method) + " " + invocation->params.dump();
    const auto& exit = std::get<Exit>(parsed);
    CHECK(exit.code == 2);
    CHECK(exit.out.empty());
    return exit.error.substr(0, exit.error.find('\n'));
}

struct Case {
    const char* line;
    const char* result;
};

}  // namespace

TEST_CASE("arguments become the method's params") {
    const Case cases[]{
        {"status", "status {}"},
        {"doctor", "doctor {}"},
        {"reload", "reload {}"},
        {"corm create lab --uplink eth1",
         R"(corm.create {"name":"lab","move_addresses":false,"force":false,"kind":"uplink","device":"eth1"})"},
        {"corm create lab --bridge br0 --mtu 9000 --allow-formats native,vxlan --allow-hosts hv1,hv2 --force",
         R"(corm.create {"name":"lab","mtu":9000,"formats":["native","vxlan"],"hosts":["hv1","hv2"],)"
         R"("move_addresses":false,"force":true,"kind":"bridge","device":"br0"})"},
        {"corm create --etherstub --allow-hosts hv1 lab",
         R"(corm.create {"name":"lab","hosts":["hv1"],"move_addresses":false,"force":false,"kind":"etherstub",)"
         R"("device":""})"},
        {"corm create --etherstub lab",
         R"(corm.create {"name":"lab","move_addresses":false,"force":false,"kind":"etherstub","device":""})"},
        {"corm create lab --uplink eth1 --move-addresses",
         R"(corm.create {"name":"lab","move_addresses":true,"force":false,"kind":"uplink","device":"eth1"})"},
        {"corm list", "corm.list {}"},
        {"corm show lab", R"(corm.show {"name":"lab"})"},
        {"corm delete lab", R"(corm.delete {"name":"lab"})"},
        {"spike list", "spike.list {}"},
        {"spike show hv1/vm1/net0", R"(spike.show {"name":"hv1/vm1/net0"})"},
        {"spike create s1 --macvtap", R"(spike.create {"name":"s1","kind":"macvtap"})"},
        {"spike create s1 --macvtap --mac 52:54:00:00:00:01",
         R"(spike.create {"name":"s1","mac":"52:54:00:00:00:01","kind":"macvtap"})"},
        {"spike adopt s1 --device eth7", R"(spike.adopt {"name":"s1","device":"eth7","allow_any_mac":false})"},
        {"spike adopt s1 --device eth7 --mac 52:54:00:00:00:01 --allow-any-mac",
         R"(spike.adopt {"name":"s1","device":"eth7","mac":"52:54:00:00:00:01","allow_any_mac":true})"},
        {"spike delete s1", R"(spike.delete {"name":"s1"})"},
        {"connect s1 lab", R"(connect {"spike":"s1","corm":"lab","wire":"auto"})"},
        {"connect s1 lab --wire vxlan", R"(connect {"spike":"s1","corm":"lab","wire":"vxlan"})"},
        {"disconnect s1", R"(disconnect {"spike":"s1"})"},
        {"wire list", "wire.list {}"},
        {"wire show w", R"(wire.show {"name":"w"})"},
        {"ping s1", R"(wire.probe {"name":"s1"})"},
        {"ping s1 --count 5 --size 1500", R"(wire.probe {"name":"s1","count":5,"size":1500})"},
        {"peer list", "peer.list {}"},
        {"migration show", "migration.list {}"},
        {"migration show s1", R"(migration.list {"spike":"s1"})"},
        {"pki init", R"( {"dir":"banana-pki","cluster":"banana","overwrite":false})"},
        {"pki issue hv1 --out /x --days 9",
         R"( {"host":"hv1","dir":"banana-pki","out":"/x","role":"controller","days":9,"overwrite":false})"},
        {"pki show a b", R"( {"files":["a","b"],"dir":"/etc/banana/pki"})"},
    };
    std::set<const char*> seen;
    for (const auto& c : cases) {
        CAPTURE(c.line);
        CHECK(mapped(c.line) == c.result);
        seen.insert(std::get<Invocation>(parse_arguments(words(c.line))).command->summary);
    }
    CHECK(seen.size() == commands().size());  // no command is left out above
}

TEST_CASE("wrong usage says what is wrong, and ends with 2") {
    const Case cases[]{
        {"", "banana: a command is missing"},
        {"corm", "banana: corm: a verb is missing: create, list, show, delete"},
        {"nonsense", "banana: unknown command 'nonsense'"},
        {"corm nonsense", "banana: corm: unknown command 'nonsense': create, list, show, delete"},
        {"corm create", "banana: NAME is required"},
        {"corm create lab", "banana: corm create: exactly one of --uplink, --bridge and --etherstub is needed"},
        {"corm create lab --uplink a --bridge b",
         "banana: corm create: exactly one of --uplink, --bridge and --etherstub is needed"},
        {"corm create lab --uplink a --etherstub",
         "banana: corm create: exactly one of --uplink, --bridge and --etherstub is needed"},
        {"corm create lab --bridge b --move-addresses",
         "banana: corm create: --move-addresses goes with --uplink only"},
        {"corm create lab --etherstub --mtu 10", "banana: --mtu: Value 10 not in range 1280 to 65000"},
        {"corm create lab --etherstub --mtu x", "banana: --mtu: Value x not in range 1280 to 65000"},
        {"corm create lab --etherstub --allow-formats gre", "banana: --allow-formats: gre not in {native,vxlan,dtls}"},
        {"connect s lab --wire gre", "banana: --wire: gre not in {auto,native,vxlan,dtls}"},
        {"connect s", "banana: CORM is required"},
        {"ping s --size 59", "banana: --size: Value 59 not in range 60 to 65014"},
        {"spike adopt s", "banana: --device is required"},
        {"status extra", "banana: The following argument was not expected: extra"},
        {"status --socket", "banana: --socket: 1 required PATH missing"},
        {"status --timeout 0", "banana: --timeout: 0 is not a time from 0.001 to 86400 seconds"},
    };
    for (const auto& c : cases) {
        CAPTURE(c.line);
        CHECK(mapped(c.line) == c.result);
    }
    CHECK(mapped("spike create s").starts_with("banana: spike create: --macvtap is needed"));
    CHECK(std::get<Exit>(parse_arguments({"\x1b[2J"})).error.find('\x1b') == std::string::npos);
}

TEST_CASE("global options stand anywhere, and BANANA_SOCKET names the socket") {
    ::setenv("BANANA_SOCKET", "/env.sock", 1);
    const auto from_env = std::get<Invocation>(parse_arguments({"status"})).globals;
    CHECK(from_env.socket == "/env.sock");
    CHECK(!from_env.json);
    CHECK(!from_env.brief);
    CHECK(from_env.timeout == std::chrono::milliseconds(30000));
    for (const char* line : {"--json --brief --socket /s --timeout 1.5 corm show lab",
                             "corm show lab --timeout 1.5 --socket=/s --json --brief",
                             "corm --json show --socket /s --brief lab --timeout 1.5"}) {
        CAPTURE(line);
        const auto parsed = parse_arguments(words(line));
        REQUIRE(std::holds_alternative<Invocation>(parsed));
        const auto& globals = std::get<Invocation>(parsed).globals;
        CHECK(globals.socket == "/s");
        CHECK(globals.json);
        CHECK(globals.brief);
        CHECK(globals.timeout == std::chrono::milliseconds(1500));
    }
    ::unsetenv("BANANA_SOCKET");
    CHECK(std::get<Invocation>(parse_arguments({"status"})).globals.socket == "/run/banana/control.sock");
}

TEST_CASE("every command has help that shows all of its parameters") {
    for (const auto& command : commands()) {
        Args line;
        if (*command.noun) line.emplace_back(command.noun);
        line.emplace_back(command.verb);
        line.emplace_back("--help");
        const auto exit = std::get<Exit>(parse_arguments(line));
        CAPTURE(exit.out);
        CHECK(exit.code == 0);
        CHECK(exit.error.empty());
        CHECK(exit.out.starts_with(command.summary));
        CHECK(exit.out.find("--json") != std::string::npos);
        CHECK(exit.out.find("... ...") == std::string::npos);
        for (const auto& param : command.params) CHECK(exit.out.find(param.flag) != std::string::npos);
    }
    const auto top = std::get<Exit>(parse_arguments({"--help"}));
    CHECK(top.out.find("Exit codes:") != std::string::npos);
    CHECK(std::get<Exit>(parse_arguments({"--version"})).out == "banana " BANANA_VERSION "\n");
}
