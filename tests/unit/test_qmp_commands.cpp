#include "qmp/commands.h"

#include <doctest/doctest.h>

using namespace banana;
using namespace banana::qmp;

namespace {

// Remembers what was sent; answers from a table.
class Recorder final : public Transport {
public:
    std::string sent;
    std::string answer = "{}";
    void execute(const std::string& command, const Json& arguments, Reply reply) override {
        reply(call(command, arguments));
    }
    Result<Json> call(const std::string& command, const Json& arguments, Milliseconds = default_timeout) override {
        sent = command + (arguments.is_null() ? "" : " " + arguments.dump());
        return Json::parse(answer);
    }
    void on_event(EventHandler) override {}
    void on_closed(ClosedHandler) override {}
};

Json json(const char* text) { return *Json::parse(text); }

}  // namespace

TEST_CASE("qmp commands: run states in QEMU's spelling, there and back") {
    for (const char* name :
         {"running", "paused", "prelaunch", "inmigrate", "finish-migrate", "postmigrate", "save-vm", "restore-vm",
          "suspended", "shutdown", "io-error", "internal-error", "guest-panicked", "debug", "watchdog", "colo"})
        CHECK(std::string(run_state_name(run_state_from_name(name))) == name);
    CHECK(run_state_from_name("finish-migrate") == RunState::finish_migrate);
    const auto unknown = decode_status(json(R"({"status":"brand-new","running":false})"));
    CHECK(unknown->state == RunState::other);
    CHECK(unknown->text == "brand-new");
    CHECK(decode_status(json("{}")).error().message() == "member 'status' is missing");
    CHECK_FALSE(decode_status(json(R"({"status":"running"})")).ok());
}

TEST_CASE("qmp commands: migration") {
    CHECK(decode_migrate(json("{}"))->status == MigrationStatus::none);
    const auto done = decode_migrate(json(R"({"status":"completed","downtime":31,"total-time":1200})"));
    CHECK(done->status == MigrationStatus::completed);
    CHECK(done->downtime_ms == 31);
    CHECK(done->total_ms == 1200);
    const auto failed = decode_migrate(json(R"({"status":"failed","error-desc":"no route"})"));
    CHECK(failed->error == "no route");
    CHECK_FALSE(failed->downtime_ms.has_value());
    CHECK_FALSE(decode_migrate(json("[]")).ok());
    for (const char* name :
         {"none", "setup", "active", "pre-switchover", "device", "completed", "failed", "cancelling", "cancelled"})
        CHECK(std::string(migration_status_name(migration_status_from_name(name))) == name);
    CHECK(migration_status_from_name("postcopy-active") == MigrationStatus::postcopy);
    CHECK(migration_status_from_name("wait-unplug") == MigrationStatus::other);
    const Event event{.name = "MIGRATION", .data = json(R"({"status":"pre-switchover"})")};
    CHECK(*decode_migration_event(event) == MigrationStatus::pre_switchover);
    CHECK_FALSE(decode_migration_event({.name = "STOP", .data = {}}).ok());
    CHECK_FALSE(decode_migration_event({.name = "MIGRATION", .data = {}}).ok());
}

TEST_CASE("qmp commands: what is sent") {
    Recorder to;
    CHECK(announce_self(to, {}).ok());
    CHECK(to.sent == R"(announce-self {"initial":50,"max":550,"rounds":5,"step":100})");
    CHECK(announce_self(to, {.rounds = 3}, {"net0"}).ok());
    CHECK(to.sent == R"(announce-self {"initial":50,"max":550,"rounds":3,"step":100,"interfaces":["net0"]})");
    CHECK(set_link(to, "net0", false).ok());
    CHECK(to.sent == R"(set_link {"name":"net0","up":false})");
    CHECK(stop(to).ok());
    CHECK(to.sent == "stop");
    CHECK(cont(to).ok());
    CHECK(to.sent == "cont");
    to.answer = "[]";
    CHECK(query_status(to).error().message() == "QMP query-status: member 'status' is missing");
}

TEST_CASE("qmp commands: receive filters") {
    Recorder to;
    to.answer = R"([{"name":"net0","main-mac":"52:54:00:12:34:56","promiscuous":true,"unicast":"normal",
        "multicast":"all","unicast-table":[],"multicast-table":["33:33:00:00:00:01"],"vlan":"none",
        "vlan-table":[],"unicast-overflow":false,"multicast-overflow":false,"broadcast-allowed":true}])";
    const auto filters = query_rx_filter(to, "net0");
    REQUIRE(filters.ok());
    CHECK(to.sent == R"(query-rx-filter {"name":"net0"})");
    REQUIRE(filters->size() == 1);
    CHECK(filters->at(0).mac.text() == "52:54:00:12:34:56");
    CHECK(filters->at(0).promiscuous);
    CHECK(filters->at(0).unicast_table.empty());
    CHECK(filters->at(0).multicast_table.at(0).text() == "33:33:00:00:00:01");
    to.answer = R"([{"name":"net0"}])";
    CHECK(query_rx_filter(to, "net0").error().message() == "QMP query-rx-filter net0: member 'main-mac' is missing");
}
