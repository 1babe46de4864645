// The QMP commands that Banana uses, typed: each is a call over any Transport, and its decoding stands by itself for
// those who use execute().
//
// Concepts: the run state tells who owns a guest during a migration: `running` is the only one in which it executes;
// `finish-migrate` is a source that has stopped for good or bad, `postmigrate` one whose guest lives elsewhere,
// `inmigrate` a destination that is still being filled. No event proves any of these after a reconnect: query.
// Threading and errors: as transport.h says; an answer of an unexpected shape is Errc::invalid and names the member.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "qmp/transport.h"

namespace banana::qmp {

// QEMU's RunState (qapi/run-state.json). `other`: one that this list does not know; its text is kept.
enum class RunState {
    running,
    paused,
    prelaunch,
    inmigrate,
    finish_migrate,
    postmigrate,
    save_vm,
    restore_vm,
    suspended,
    shutdown,
    io_error,
    internal_error,
    guest_panicked,
    debug,
    watchdog,
    colo,
    other,
};
const char* run_state_name(RunState state);  // QEMU's own spelling: "finish-migrate"
RunState run_state_from_name(const std::string& name);

struct StatusInfo {
    RunState state = RunState::other;
    std::string text{};
    bool running = false;  // the guest's processors execute
};
Result<StatusInfo> decode_status(const Json& reply);
Result<StatusInfo> query_status(Transport& transport, Milliseconds timeout = default_timeout);

// QEMU's MigrationStatus (qapi/migration.json), as far as a hand-over turns on it.
enum class MigrationStatus {
    none,
    setup,
    active,
    pre_switchover,
    device,
    completed,
    failed,
    cancelling,
    cancelled,
    postcopy,  // postcopy-active, -paused, -recover
    other,
};
MigrationStatus migration_status_from_name(const std::string& name);
const char* migration_status_name(MigrationStatus status);

struct MigrateInfo {
    MigrationStatus status = MigrationStatus::none;
    std::string text{};
    std::optional<int64_t> downtime_ms{}, total_ms{};  // once completed, on the source
    std::string error{};                               // when failed
};
Result<MigrateInfo> decode_migrate(const Json& reply);
Result<MigrateInfo> query_migrate(Transport& transport, Milliseconds timeout = default_timeout);
// The status that a MIGRATION event tells.
Result<MigrationStatus> decode_migration_event(const Event& event);

// What a NIC accepts (query-rx-filter). `device` is QEMU's id: libvirt's interface alias.
struct RxFilter {
    std::string device{};
    Mac mac{};
    bool promiscuous = false;
    std::string unicast{}, multicast{};  // "normal", "none", "all"
    std::vector<Mac> unicast_table{}, multicast_table{};
};
Result<std::vector<RxFilter>> decode_rx_filters(const Json& reply);
Result<std::vector<RxFilter>> query_rx_filter(Transport& transport, const std::string& device,
                                              Milliseconds timeout = default_timeout);

// Has QEMU send self-announcements (RARP, or the guest's own ARP/ND) from the NICs given; none given: from all.
// Times in ms: `initial` before the second one, `step` more for each further one, at most `max` apart.
struct Announce {
    int64_t initial = 50, step = 100, max = 550, rounds = 5;
};
Status announce_self(Transport& transport, const Announce& announce, const std::vector<std::string>& devices = {},
                     Milliseconds timeout = default_timeout);

// The guest sees its NIC's carrier go up or down.
Status set_link(Transport& transport, const std::string& device, bool up, Milliseconds timeout = default_timeout);

Status stop(Transport& transport, Milliseconds timeout = default_timeout);
Status cont(Transport& transport, Milliseconds timeout = default_timeout);

}  // namespace banana::qmp
