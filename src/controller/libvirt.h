// Libvirt: the daemon's one way to libvirtd.
//
// Concepts: libvirt's client calls block, the daemon has one thread. So three kinds of threads stand behind this class:
//   event loop   one per process; libvirt's callbacks come from it and are posted to the io_context at once
//   connector    opens the connection, waits for its end, opens it again (back-off 0.2 s to 5 s)
//   workers      up to 4, made as needed; each carries out one blocking call at a time
// libvirtd may start after us, restart, hang, or not exist; URI "" means that libvirt is not used at all.
//
// Threading: an object belongs to the io_context's thread; every handler is called there. stop() and the destructor may
// be called only there too. Threads that hang with libvirtd are left behind (at most 0.3 s are spent on waiting for
// them); they hold nothing that exit() needs, and never touch the io_context again.
//
// NEVER await anything of this from what a libvirt hook waits for: libvirtd holds locks while a hook runs, and the two
// would wait for each other. The one exception is a migration's *source*, asked for a grant by the destination's hook:
// its libvirtd is another one. Even so with a short deadline.
//
// What is lost: events between a disconnection and the next on_connected; whoever needs them queries states then.
// Events begin with on_connected and end with on_disconnected, never outside.
//
// Errors: "operation object: libvirt's own text". Errc::unreachable: no connection (or lost under way); timeout: the
// deadline passed (the call may still be carried out; its late result is thrown away); not_found: no such domain or
// network; busy: libvirt could not get the domain's lock.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <asio/io_context.hpp>

#include "base/json.h"
#include "base/result.h"
#include "peer/coroutine.h"

namespace banana::controller {

inline constexpr char metadata_uri[] = "urn:banana:1";
inline constexpr char metadata_prefix[] = "banana";

struct Domain {
    std::string name;
    std::string uuid;  // lower-case, with dashes
};

// state: virDomainState, reason: virDomain...Reason of that state; both of <libvirt/libvirt.h>.
struct DomainState {
    int state = 0;
    int reason = 0;
    bool active() const;       // a QEMU exists: running, paused, being shut down, ...
    std::string text() const;  // "running", "paused (migration)"
};

struct DomainEntry {
    Domain domain;
    DomainState state;
};

// What libvirt is doing with a domain.
struct DomainJob {
    bool active = false;
    bool migration_out = false;  // VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT
    bool migration_in = false;
    int operation = 0;  // virDomainJobOperation
    std::optional<uint64_t> elapsed_ms;
};

struct NetworkEntry {
    std::string name;
    std::string uuid;
    std::string bridge;  // "" when it has none
    bool active = false;
    bool autostart = false;
    bool ours = false;  // bears urn:banana:1 metadata
};

enum class NetworkOutcome {
    unchanged,
    created,
    changed,  // redefined, and restarted unless the running one was right already
    pending,  // redefined; guests hold ports of the running one, so it stays as it is until it is started anew
};

enum class DeviceChange { added, removed };

// Each may be empty. `event` and `detail` of on_lifecycle are virDomainEventType and virDomainEvent...DetailType,
// `event` of on_network is virNetworkEventLifecycleType.
struct LibvirtHandlers {
    std::function<void()> on_connected;
    std::function<void(const std::string& why)> on_disconnected;
    std::function<void(const Domain&, int event, int detail)> on_lifecycle;
    // STOP, RESUME, MIGRATION, SHUTDOWN and what else stands in wanted_qmp_events; QEMU's own clock.
    std::function<void(const Domain&, const std::string& name, int64_t seconds, int64_t micros, const Json& data)>
        on_qmp_event;
    std::function<void(const Domain&, const std::string& uri)> on_metadata;  // by set_metadata, ours included
    std::function<void(const Domain&, const std::string& alias, DeviceChange)> on_device;
    std::function<void(const std::string& name, int event)> on_network;
};

std::string lifecycle_text(int event, int detail);  // "stopped (migrated)", for log lines

class LibvirtCore;

class Libvirt {
public:
    using Milliseconds = std::chrono::milliseconds;
    static constexpr Milliseconds default_deadline{5000};
    template <class T>
    using Awaitable = asio::awaitable<Result<T>>;

    Libvirt(asio::io_context& io, std::string uri);
    Libvirt(const Libvirt&) = delete;
    Libvirt& operator=(const Libvirt&) = delete;
    ~Libvirt();

    void start(LibvirtHandlers handlers);
    void stop();  // what is awaited ends with Errc::unreachable; no handler is called any more

    bool used() const;  // the URI is not ""
    bool connected() const;
    std::string problem() const;  // why there is no connection, for `banana status`; "" while there is one

    // Domains. `flags` as virDomainGetXMLDesc; VIR_DOMAIN_XML_SECURE is never needed here.
    Awaitable<std::vector<DomainEntry>> domains(Milliseconds deadline = default_deadline);
    Awaitable<std::string> domain_xml(std::string uuid, unsigned flags = 0, Milliseconds deadline = default_deadline);
    Awaitable<DomainState> domain_state(std::string uuid, Milliseconds deadline = default_deadline);
    // Answers at any moment of a migration (no domain lock is waited for).
    Awaitable<DomainJob> job(std::string uuid, Milliseconds deadline = default_deadline);

    // The element <banana:domain> of the domain's <metadata>; "" when it has none, and to remove it. `flags`:
    // VIR_DOMAIN_AFFECT_LIVE, _CONFIG or both; of these it is written to the definitions that exist. libvirt refuses to
    // write during a migration.
    Awaitable<std::string> get_metadata(std::string uuid, Milliseconds deadline = default_deadline);
    Awaitable<void> set_metadata(std::string uuid, std::string xml, unsigned flags,
                                 Milliseconds deadline = default_deadline);

    // One QMP command as JSON text → QEMU's reply as JSON text (see qmp/libvirt_transport.h). Taints the domain.
    Awaitable<std::string> monitor_command(std::string uuid, std::string json,
                                           Milliseconds deadline = default_deadline);

    // Networks. `xml` is a whole <network> and bears our metadata; a <uuid> in it is not needed. Never touches a
    // network that is not ours (Errc::exists, Errc::refused). See NetworkOutcome for what happens to running guests:
    // nothing.
    Awaitable<std::vector<NetworkEntry>> networks(Milliseconds deadline = default_deadline);
    Awaitable<NetworkOutcome> ensure_network(std::string name, std::string xml,
                                             Milliseconds deadline = default_deadline);
    Awaitable<void> remove_network(std::string name,
                                   Milliseconds deadline = default_deadline);  // absent counts as done

private:
    std::shared_ptr<LibvirtCore> core_;
};

}  // namespace banana::controller
