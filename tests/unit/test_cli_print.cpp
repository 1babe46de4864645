#include <doctest/doctest.h>

#include <sstream>

#include "cli/arguments.h"
#include "cli/local.h"
#include "cli/print.h"

using namespace banana;
using namespace banana::cli;

namespace {

Json json(const char* text) {
    const auto parsed = Json::parse(text);
    REQUIRE(parsed.ok());
    return *parsed;
}

const Command& command(const std::string& noun, const std::string& verb) {
    for (const auto& c : commands())
        if (c.noun == noun && c.verb == verb) return c;
    FAIL("no such command");
    return commands().front();
}

std::string printed(const Printer& print, const Json& result, bool brief = false, const Json& params = Json::object()) {
    std::ostringstream out;
    print({out, brief}, params, result);
    return out.str();
}

}  // namespace

TEST_CASE("a table is aligned, numbers to the right, nothing is cut") {
    Table table({"NAME", "MTU", "TEXT"});
    table.add({"a", "1500", "short"});
    table.add({"a-much-longer-name", "-", std::string(300, 'x')});
    table.add({"b", "9", ""});
    std::ostringstream out;
    table.print(out, "> ");
    CHECK(out.str() ==
          "> NAME                 MTU  TEXT\n"
          "> a                   1500  short\n"
          "> a-much-longer-name     -  " +
              std::string(300, 'x') +
              "\n"
              "> b                      9\n");
}

TEST_CASE("a cell shows any value, and no control byte") {
    CHECK(cell(Json()) == "-");
    CHECK(cell("") == "-");
    CHECK(cell(0) == "0");
    CHECK(cell(-5) == "-5");
    CHECK(cell(true) == "yes");
    CHECK(cell(Json::array()) == "-");
    CHECK(cell(json(R"(["a","b",3])")) == "a,b,3");
    CHECK(cell("\x1b[31mred\n") == "\\x1b[31mred\\x0a");
    CHECK(cell(std::string(5000, '\x01')).size() == 20000);
    CHECK(cell("hv1/b\\xc3\\xa4d/net0\\") == "hv1/b\\xc3\\xa4d/net0\\");  // a name that is escaped is not escaped again
    CHECK(cell("\\\x1b\\") == "\\\\x1b\\");
    CHECK(at_path(json(R"({"a":{"b":7}})"), "a.b").as_int() == 7);
    CHECK(at_path(json(R"({"a":1})"), "a.b.c").is_null());
}

TEST_CASE("reload says what was taken, and what waits for a restart") {
    const Json result = json(R"({"reloaded":["certificates","peer hv3"],"restart":["underlay","[tunnel] lanes"],
        "warnings":["it ends"]})");
    CHECK(printed(command("", "reload").print, result) ==
          "reloaded: certificates\nreloaded: peer hv3\n"
          "changed, waits for a restart of bananad: underlay\n"
          "changed, waits for a restart of bananad: [tunnel] lanes\n"
          "warning: it ends\n");
    CHECK(printed(command("", "reload").print, result, true) == "certificates\npeer hv3\n");
}

TEST_CASE("durations and sizes") {
    CHECK(duration_text(0) == "0s");
    CHECK(duration_text(59) == "59s");
    CHECK(duration_text(190) == "3m 10s");
    CHECK(duration_text(7500) == "2h 5m");
    CHECK(duration_text(273600) == "3d 4h");
    CHECK(bytes_text(1023) == "1023 B");
    CHECK(bytes_text(1536) == "1.5 KiB");
    CHECK(bytes_text(5LL << 40) == "5.0 TiB");
}

TEST_CASE("lists: a table for people, names alone with --brief") {
    const Json corms = json(R"({"corms":[
        {"name":"hv1/lab","kind":"uplink","device":"eth1","bridge":"bnb1","network":"banana-lab","mtu":1500,
         "formats":["native","vxlan"],"wires":2,"state":"up","problems":[]},
        {"name":"hv2/x","kind":"etherstub","device":"","bridge":"bnb2","network":"banana-x","mtu":9000,
         "formats":[],"wires":0,"state":"down","problems":["no network"]}]})");
    CHECK(printed(command("corm", "list").print, corms) ==
          "NAME     KIND       DEVICE  BRIDGE  NETWORK      MTU  FORMATS       WIRES  STATE  PROBLEMS\n"
          "hv1/lab  uplink     eth1    bnb1    banana-lab  1500  native,vxlan      2  up     -\n"
          "hv2/x    etherstub  -       bnb2    banana-x    9000  -                 0  down   no network\n");
    CHECK(printed(command("corm", "list").print, corms, true) == "hv1/lab\nhv2/x\n");
    CHECK(printed(command("wire", "list").print, json(R"({"wires":[]})"), true).empty());
    CHECK(printed(command("spike", "list").print, json(R"({"spikes":[{"name":"hv1/vm1/net0"}]})"), true) ==
          "hv1/vm1/net0\n");
}

TEST_CASE("status shows peers and warnings") {
    const Json status = json(R"({"host":"hv1","site":"west","version":"0.1.0","pid":42,"uptime_s":61,
        "underlay":"192.0.2.1","libvirt":{"uri":"qemu:///system","state":"connected","error":""},
        "peers":[{"name":"hv2","address":"192.0.2.2","port":7471,"state":"refused","since":0,"error":"wrong CA",
                  "rtt_us":0,"incoming":false,"incoming_error":"expired","tunnel":{"state":"down","reason":"no answer"}}],
        "tunnel":{"state":"away","problem":"no certificate","port":4790,"lanes":2},
        "corms":1,"spikes":2,"wires":3,"warnings":["bridge-nf-call-iptables is 1"]})");
    CHECK(printed(print_status, status) ==
          "host      hv1, site west\n"
          "daemon    bananad 0.1.0, pid 42, up 1m 1s\n"
          "underlay  192.0.2.1\n"
          "libvirt   connected (qemu:///system)\n"
          "tunnel    away, UDP port 4790, 2 lanes: no certificate\n"
          "corms     1\n"
          "spikes    2\n"
          "wires     3\n"
          "\n"
          "PEER  STATE    ADDRESS              SITE  VERSION  RTT  INCOMING  TUNNEL  PROBLEM\n"
          "hv2   refused  192.0.2.2 port 7471  -     -        -    no        down    wrong CA; incoming: expired; "
          "tunnel: no answer\n"
          "\n"
          "warning: bridge-nf-call-iptables is 1\n");
    CHECK(printed(print_status, status, true) == "hv1 1 warnings\n");
    CHECK(printed(print_status, json(R"({"host":"hv1"})"), true) == "hv1 ok\n");
}

TEST_CASE("peer list tells the round trip") {
    const Json peers = json(R"({"peers":[{"name":"hv2","address":"192.0.2.2","port":7471,"state":"up","since":0,
        "rtt_us":1234,"incoming":true,"info":{"site":"west","version":"0.1.0"}}]})");
    CHECK(printed(print_peers, peers) ==
          "PEER  STATE  ADDRESS              SITE  VERSION  RTT       INCOMING  TUNNEL  PROBLEM\n"
          "hv2   up     192.0.2.2 port 7471  west  0.1.0    1.234 ms  yes       -       -\n");
    CHECK(printed(print_peers, peers, true) == "hv2\n");
}

TEST_CASE("a peer that is up both ways has no problem, whatever was before or knocks at the door") {
    const Json peers = json(R"({"peers":[{"name":"hv2","address":"192.0.2.2","port":7471,"state":"up","since":0,
        "error":"","last_loss":"it went","incoming":true,"incoming_error":"no certificate was shown",
        "tunnel":{"state":"up","reason":"not tried yet"}}]})");
    CHECK(printed(print_peers, peers) ==
          "PEER  STATE  ADDRESS              SITE  VERSION  RTT  INCOMING  TUNNEL  PROBLEM\n"
          "hv2   up     192.0.2.2 port 7471  -     -        -    yes       up      -\n");
}

TEST_CASE("a wire shows format, reason, MTU, counters and drops by reason") {
    const Json wire = json(R"({"name":"hv1/vm1/net0","spike":"1b2c/52:54:00:00:00:01","corm":"hv1/lab","format":"vxlan",
        "why":"other host, same site","phase":"active","epoch":2,"mtu":1500,"role":"spike",
        "underlay":{"local":"192.0.2.2","remote":"192.0.2.1","mtu":1500,"cost":"fragments"},
        "standby":{"host":"hv2"},
        "counters":{"rx_frames":7,"ports":[{"port":"tap","device":"vnet0","direction":"ingress","frames":7,
        "bytes":420,"drops":{"spoof":{"frames":3,"bytes":180},"fenced":{"frames":0,"bytes":0}}}]}})");
    CHECK(printed(print_wire, wire) ==
          "spike             hv1/vm1/net0\n"
          "spike's key       1b2c/52:54:00:00:00:01\n"
          "corm              hv1/lab\n"
          "format            vxlan\n"
          "why               other host, same site\n"
          "phase             active\n"
          "epoch             2\n"
          "this host's role  spike\n"
          "mtu               1500\n"
          "underlay local    192.0.2.2\n"
          "underlay remote   192.0.2.1\n"
          "underlay mtu      1500\n"
          "underlay cost     fragments\n"
          "standby wire:\n"
          "  host  hv2\n"
          "rx_frames 7\n"
          "\n"
          "PORT  DEVICE  DIRECTION  FRAMES  BYTES  DROPPED\n"
          "tap   vnet0   ingress         7    420  3 by spoof (180 B)\n");
    CHECK(printed(print_wire, wire, true) == "hv1/vm1/net0\n");
}

TEST_CASE("a DTLS wire shows its sessions, and what woke its lanes") {
    const auto parsed = [](const std::string& text) { return *Json::parse(text); };
    const std::string head = R"({"name":"n","format":"dtls","underlay":{"path_mtu":1400,"cost":"cut"},"tunnel":)";
    CHECK(printed(print_wire, parsed(head + R"({"sent":{"frames":3,"bytes":2048},"received":{"frames":0,"bytes":0},
        "drops":{"runt":2,"tap_full":1},"lanes":[{"lane":0,"wakeups_per_s":12.4,"frames_per_wakeup":3.25,
        "session":{"state":"up","cipher":"AES-128-GCM","path_mtu":1400,"reason":""}},
        {"lane":1,"wakeups_per_s":0,"frames_per_wakeup":0,
        "session":{"state":"connecting","reason":"no answer"}}]}})")) ==
          "spike             n\n"
          "format            dtls\n"
          "path mtu          1400\n"
          "underlay cost     cut\n"
          "tunnel sent      3 frames, 2.0 KiB\n"
          "tunnel received  0 frames, 0 B\n"
          "tunnel dropped   2 by runt, 1 by tap_full\n"
          "\n"
          "LANE  SESSION     CIPHER       PATH MTU  WAKE-UPS/S  FRAMES/WAKE-UP  PROBLEM\n"
          "   0  up          AES-128-GCM      1400          12             3.2  -\n"
          "   1  connecting  -                   -           0             0.0  no answer\n");
    CHECK(printed(print_wire, parsed(head + R"({"problem":"away"}})")) ==
          "spike             n\n"
          "format            dtls\n"
          "path mtu          1400\n"
          "underlay cost     cut\n"
          "tunnel's problem  away\n");
}

TEST_CASE("the other printers") {
    CHECK(printed(print_corm_created, json(R"({"name":"hv1/lab","network":"banana-lab"})")) ==
          "created Corm hv1/lab\n"
          "guests use it by <interface type='network'><source network='banana-lab'/>...\n");
    CHECK(printed(print_corm_created, json(R"({"name":"hv1/lab","network":"banana-lab","problems":["bad"]})")) ==
          "created Corm hv1/lab\nproblem: bad\n");
    CHECK(printed(print_spike_created, json(R"({"name":"hv1/s","device":"bne1","xml":"<interface>\n</interface>"})")) ==
          "created Spike hv1/s, device bne1; in the domain's XML:\n<interface>\n</interface>\n");
    CHECK(printed(print_corm, json(R"({"name":"hv1/lab","mtu":1500,"wires":["hv1/a/net0","hv2/b/net0"],
        "problems":["bad"]})")) ==
          "name             hv1/lab\n"
          "mtu              1500\n"
          "wires            hv1/a/net0,hv2/b/net0\n"
          "problem: bad\n");
    CHECK(printed(print_migrations, json(R"({"migrations":[{"spike":"s","from":"hv1","to":"hv2","epoch":3,
        "phase":"active","events":[{"at_ms":1000,"what":"stop"},{"at_ms":1012.5,"what":"flip"}]}]})")) ==
          "s: hv1 -> hv2, epoch 3, active\n"
          "    MS  EVENT\n"
          "   0.0  stop\n"
          "  12.5  flip\n");
    CHECK(printed(print_doctor, json(R"({"checks":[{"name":"a","ok":true,"text":"fine","advice":"none"},
        {"name":"b","ok":false,"text":"bad","advice":"do x"}]})")) == "ok    a: fine\nFAIL  b: bad\n      -> do x\n");
    CHECK(printed(print_doctor,
                  json(R"({"checks":[{"name":"a","ok":true,"warning":true,"text":"soon","advice":"do y"}]})")) ==
          "WARN  a: soon\n      -> do y\n");
    CHECK(printed(command("", "connect").print, Json(), false, json(R"({"spike":"s","corm":"lab"})")) ==
          "connected Spike s to Corm lab\n");
    CHECK(printed(command("corm", "delete").print, Json(), true, json(R"({"name":"lab"})")) == "lab\n");
}

TEST_CASE("no printer trips over an empty answer") {
    for (const auto& c : commands())
        for (const bool brief : {false, true})
            for (const char* answer : {"null", "{}", "[]", "7"}) printed(c.print, json(answer), brief);
}
