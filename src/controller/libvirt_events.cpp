#include "controller/libvirt_events.h"

#include <libvirt/libvirt-qemu.h>
#include <libxml/parser.h>
#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <thread>

#include "controller/libvirt_domain.h"

namespace banana::controller {

namespace {

// What a migration is followed by, and what tells that a QEMU runs, stopped or ends.
constexpr std::array<std::string_view, 8> wanted_qmp_events = {
    "STOP", "RESUME", "MIGRATION", "SHUTDOWN", "RESET", "GUEST_PANICKED", "NIC_RX_FILTER_CHANGED", "UNPLUG_PRIMARY"};

void discard_error(void*, virErrorPtr) {}

void loop_forever() {
    for (;;) {
        if (virEventRunDefaultImpl() < 0) std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
}

Status start_loop_once() {
    virSetErrorFunc(nullptr, discard_error);
    xmlInitParser();  // before other threads read XML
    if (virInitialize() < 0) return last_error("initialise libvirt");
    if (virEventRegisterDefaultImpl() < 0) return last_error("register libvirt's event loop");
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    Status status;
    try {
        std::thread(loop_forever).detach();
    } catch (const std::system_error& error) {
        status = Error(std::string("start libvirt's event loop: ") + error.what());
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return status;
}

bool unsupported() {
    const virError* error = virGetLastError();
    return error && (error->code == VIR_ERR_NO_SUPPORT || error->code == VIR_ERR_OPERATION_UNSUPPORTED);
}

// One registration: its id is kept in `ids`; -1 with "not supported" counts as done.
Status keep(int id, std::vector<int>& ids, const char* kind) {
    if (id >= 0) ids.push_back(id);
    if (id >= 0 || unsupported()) return {};
    return last_error(std::string("register for libvirt's ") + kind + " events");
}

const char* text(const char* given) { return given ? given : ""; }

}  // namespace

Status LibvirtEvents::start_loop() {
    static const Status started = start_loop_once();
    return started;
}

Status LibvirtEvents::enrol(const std::shared_ptr<LibvirtCore>& core, LibvirtConnection& connection) {
    const Listener listener{core, connection.live};
    // Ours to free: a driver without such a callback takes it without an error, and forgets it.
    connection.closing = std::make_shared<Listener>(listener);
    if (virConnectRegisterCloseCallback(connection.get(), closed, connection.closing.get(), nullptr) < 0 &&
        !unsupported())
        return last_error("register for the end of the connection");
    TRY(domain_events(listener, connection));

    auto qemu = std::make_unique<Listener>(listener);
    int id = virConnectDomainQemuMonitorEventRegister(connection.get(), nullptr, nullptr, qmp, qemu.get(), forget, 0);
    if (id >= 0) qemu.release();
    TRY(keep(id, connection.qmp_events, "QMP"));

    auto networks = std::make_unique<Listener>(listener);
    id = virConnectNetworkEventRegisterAny(connection.get(), nullptr, VIR_NETWORK_EVENT_ID_LIFECYCLE,
                                           VIR_NETWORK_EVENT_CALLBACK(network), networks.get(), forget);
    if (id >= 0) networks.release();
    return keep(id, connection.network_events, "network");
}

Status LibvirtEvents::domain_events(const Listener& listener, LibvirtConnection& connection) {
    const struct {
        int id;
        virConnectDomainEventGenericCallback call;
        const char* kind;
    } kinds[] = {
        {VIR_DOMAIN_EVENT_ID_LIFECYCLE, VIR_DOMAIN_EVENT_CALLBACK(lifecycle), "domain lifecycle"},
        {VIR_DOMAIN_EVENT_ID_METADATA_CHANGE, VIR_DOMAIN_EVENT_CALLBACK(metadata), "metadata"},
        {VIR_DOMAIN_EVENT_ID_DEVICE_ADDED, VIR_DOMAIN_EVENT_CALLBACK(device_added), "device-added"},
        {VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, VIR_DOMAIN_EVENT_CALLBACK(device_removed), "device-removed"},
    };
    for (const auto& kind : kinds) {
        auto own = std::make_unique<Listener>(listener);
        const int id =
            virConnectDomainEventRegisterAny(connection.get(), nullptr, kind.id, kind.call, own.get(), forget);
        if (id >= 0) own.release();
        TRY(keep(id, connection.domain_events, kind.kind));
    }
    return {};
}

void LibvirtEvents::withdraw(LibvirtConnection& connection) {
    for (int id : connection.qmp_events) virConnectDomainQemuMonitorEventDeregister(connection.get(), id);
    for (int id : connection.domain_events) virConnectDomainEventDeregisterAny(connection.get(), id);
    for (int id : connection.network_events) virConnectNetworkEventDeregisterAny(connection.get(), id);
    virConnectUnregisterCloseCallback(connection.get(), closed);
}

// Posts call(core), to be dropped if the connection is not up (not yet, or no longer) when its turn comes.
template <class Call>
void LibvirtEvents::report(void* opaque, Call call) {
    const auto& listener = *static_cast<Listener*>(opaque);
    if (!*listener.live) return;
    listener.core->outbox_.post([core = listener.core, live = listener.live, call = std::move(call)] {
        if (*live && core->up_) call(*core);
    });
}

void LibvirtEvents::forget(void* opaque) { delete static_cast<Listener*>(opaque); }

void LibvirtEvents::closed(virConnectPtr, int reason, void* opaque) {
    const char* why = reason == VIR_CONNECT_CLOSE_REASON_EOF         ? "libvirtd closed the connection"
                      : reason == VIR_CONNECT_CLOSE_REASON_KEEPALIVE ? "libvirtd does not answer"
                                                                     : "the connection to libvirtd broke";
    static_cast<Listener*>(opaque)->core->connection_ended(why);
}

void LibvirtEvents::lifecycle(virConnectPtr, virDomainPtr domain, int event, int detail, void* opaque) {
    report(opaque, [of = domain_of(domain), event, detail](LibvirtCore& core) {
        core.tell(core.handlers_.on_lifecycle, of, event, detail);
    });
}

void LibvirtEvents::metadata(virConnectPtr, virDomainPtr domain, int type, const char* uri, void* opaque) {
    if (type != VIR_DOMAIN_METADATA_ELEMENT) return;  // a title or a description
    report(opaque, [of = domain_of(domain), which = std::string(text(uri))](LibvirtCore& core) {
        core.tell(core.handlers_.on_metadata, of, which);
    });
}

void LibvirtEvents::device_added(virConnectPtr, virDomainPtr domain, const char* alias, void* opaque) {
    report(opaque, [of = domain_of(domain), device = std::string(text(alias))](LibvirtCore& core) {
        core.tell(core.handlers_.on_device, of, device, DeviceChange::added);
    });
}

void LibvirtEvents::device_removed(virConnectPtr, virDomainPtr domain, const char* alias, void* opaque) {
    report(opaque, [of = domain_of(domain), device = std::string(text(alias))](LibvirtCore& core) {
        core.tell(core.handlers_.on_device, of, device, DeviceChange::removed);
    });
}

void LibvirtEvents::qmp(virConnectPtr, virDomainPtr domain, const char* name, long long seconds, unsigned micros,
                        const char* details, void* opaque) {
    if (std::find(wanted_qmp_events.begin(), wanted_qmp_events.end(), text(name)) == wanted_qmp_events.end()) return;
    report(opaque, [of = domain_of(domain), event = std::string(name), seconds, micros,
                    data = std::string(text(details))](LibvirtCore& core) {
        // Parsed here, because a Json belongs to one thread. QEMU's own data does not fail to parse; if it did, the
        // event itself still counts.
        Json parsed;
        if (auto result = Json::parse(data)) parsed = *result;
        core.tell(core.handlers_.on_qmp_event, of, event, static_cast<int64_t>(seconds), static_cast<int64_t>(micros),
                  parsed);
    });
}

void LibvirtEvents::network(virConnectPtr, virNetworkPtr network, int event, int, void* opaque) {
    report(opaque, [name = std::string(text(virNetworkGetName(network))), event](LibvirtCore& core) {
        core.tell(core.handlers_.on_network, name, event);
    });
}

}  // namespace banana::controller
