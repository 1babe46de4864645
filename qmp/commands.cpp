#include "qmp/commands.h"

#include <array>
#include <utility>

namespace banana::qmp {

namespace {

constexpr std::array<std::pair<RunState, const char*>, 16> run_states{{
    {RunState::running, "running"},
    {RunState::paused, "paused"},
    {RunState::prelaunch, "prelaunch"},
    {RunState::inmigrate, "inmigrate"},
    {RunState::finish_migrate, "finish-migrate"},
    {RunState::postmigrate, "postmigrate"},
    {RunState::save_vm, "save-vm"},
    {RunState::restore_vm, "restore-vm"},
    {RunState::suspended, "suspended"},
    {RunState::shutdown, "shutdown"},
    {RunState::io_error, "io-error"},
    {RunState::internal_error, "internal-error"},
    {RunState::guest_panicked, "guest-panicked"},
    {RunState::debug, "debug"},
    {RunState::watchdog, "watchdog"},
    {RunState::colo, "colo"},
}};

constexpr std::array<std::pair<MigrationStatus, const char*>, 10> migration_statuses{{
    {MigrationStatus::none, "none"},
    {MigrationStatus::setup, "setup"},
    {MigrationStatus::active, "active"},
    {MigrationStatus::pre_switchover, "pre-switchover"},
    {MigrationStatus::device, "device"},
    {MigrationStatus::completed, "completed"},
    {MigrationStatus::failed, "failed"},
    {MigrationStatus::cancelling, "cancelling"},
    {MigrationStatus::cancelled, "cancelled"},
    {MigrationStatus::postcopy, "postcopy"},
}};

std::optional<int64_t> optional_integer(const Json& from, const char* key) {
    if (!from.get(key).is_int()) return std::nullopt;
    return from.get(key).as_int();
}

Result<std::vector<Mac>> decode_macs(const Json& filter, const char* key) {
    std::vector<Mac> out;
    TRY_SET(const Json list, filter.array_at(key));
    for (size_t i = 0; i < list.size(); i++) {
        TRY_SET(const Mac mac, Mac::parse(list.at(i).as_string()));
        out.push_back(mac);
    }
    return out;
}

Status ignore_value(const Result<Json>& reply) {
    if (!reply) return reply.error();
    return {};
}

}  // namespace

const char* run_state_name(RunState state) {
    for (const auto& [known, name] : run_states)
        if (known == state) return name;
    return "other";
}

RunState run_state_from_name(const std::string& name) {
    for (const auto& [state, known] : run_states)
        if (name == known) return state;
    return RunState::other;
}

Result<StatusInfo> decode_status(const Json& reply) {
    StatusInfo out;
    TRY_SET(out.text, reply.string("status"));
    TRY_SET(out.running, reply.boolean("running"));
    out.state = run_state_from_name(out.text);
    return out;
}

Result<StatusInfo> query_status(Transport& transport, Milliseconds timeout) {
    TRY_SET(const Json reply, transport.call("query-status", {}, timeout));
    return decode_status(reply).context("QMP query-status");
}

MigrationStatus migration_status_from_name(const std::string& name) {
    if (name.starts_with("postcopy-")) return MigrationStatus::postcopy;
    for (const auto& [status, known] : migration_statuses)
        if (name == known) return status;
    return MigrationStatus::other;
}

const char* migration_status_name(MigrationStatus status) {
    for (const auto& [known, name] : migration_statuses)
        if (known == status) return name;
    return "other";
}

Result<MigrateInfo> decode_migrate(const Json& reply) {
    if (!reply.is_object()) return Error(Errc::invalid, "not an object");
    MigrateInfo out;
    // Before the first migration the reply is an empty object.
    if (!reply.has("status")) return out;
    TRY_SET(out.text, reply.string("status"));
    out.status = migration_status_from_name(out.text);
    out.downtime_ms = optional_integer(reply, "downtime");
    out.total_ms = optional_integer(reply, "total-time");
    out.error = reply.get("error-desc").as_string();
    return out;
}

Result<MigrateInfo> query_migrate(Transport& transport, Milliseconds timeout) {
    TRY_SET(const Json reply, transport.call("query-migrate", {}, timeout));
    return decode_migrate(reply).context("QMP query-migrate");
}

Result<MigrationStatus> decode_migration_event(const Event& event) {
    if (event.name != "MIGRATION") return Error(Errc::invalid, "QMP event " + printable(event.name) + ": no MIGRATION");
    TRY_SET(const std::string text, event.data.string("status").context("QMP event MIGRATION"));
    return migration_status_from_name(text);
}

Result<std::vector<RxFilter>> decode_rx_filters(const Json& reply) {
    if (!reply.is_array()) return Error(Errc::invalid, "not an array");
    std::vector<RxFilter> out;
    for (size_t i = 0; i < reply.size(); i++) {
        const Json filter = reply.at(i);
        RxFilter& one = out.emplace_back();
        TRY_SET(one.device, filter.string("name"));
        TRY_SET(const std::string mac, filter.string("main-mac"));
        TRY_SET(one.mac, Mac::parse(mac));
        TRY_SET(one.promiscuous, filter.boolean("promiscuous"));
        TRY_SET(one.unicast, filter.string("unicast"));
        TRY_SET(one.multicast, filter.string("multicast"));
        TRY_SET(one.unicast_table, decode_macs(filter, "unicast-table"));
        TRY_SET(one.multicast_table, decode_macs(filter, "multicast-table"));
    }
    return out;
}

Result<std::vector<RxFilter>> query_rx_filter(Transport& transport, const std::string& device, Milliseconds timeout) {
    TRY_SET(const Json reply, transport.call("query-rx-filter", Json::object({{"name", device}}), timeout));
    return decode_rx_filters(reply).context("QMP query-rx-filter " + device);
}

Status announce_self(Transport& transport, const Announce& announce, const std::vector<std::string>& devices,
                     Milliseconds timeout) {
    Json arguments = Json::object(
        {{"initial", announce.initial}, {"max", announce.max}, {"rounds", announce.rounds}, {"step", announce.step}});
    if (!devices.empty()) arguments.set("interfaces", Json::array(devices));
    return ignore_value(transport.call("announce-self", arguments, timeout));
}

Status set_link(Transport& transport, const std::string& device, bool up, Milliseconds timeout) {
    return ignore_value(transport.call("set_link", Json::object({{"name", device}, {"up", up}}), timeout));
}

Status stop(Transport& transport, Milliseconds timeout) { return ignore_value(transport.call("stop", {}, timeout)); }
Status cont(Transport& transport, Milliseconds timeout) { return ignore_value(transport.call("cont", {}, timeout)); }

}  // namespace banana::qmp
