// LibvirtEvents: libvirt's callbacks of one connection, and the event loop that calls them. Nobody but the core
// includes this.
//
// Concepts: every callback copies what it was given, posts it and returns. QMP events are asked for unfiltered, because
// libvirtd would match a list of names by a regular expression for each event; what we do not want is dropped first
// thing. Threading: register and deregister ask libvirtd, so they are the connector's. Callbacks come from the event
// loop.
#pragma once

#include "controller/libvirt_core.h"

namespace banana::controller {

class LibvirtEvents {
public:
    // Once per process: libvirt's event loop on a thread that never ends, and its errors kept off stderr.
    static Status start_loop();

    // A driver without some kind of event (libvirt's test driver has no QMP) is no error.
    static Status enrol(const std::shared_ptr<LibvirtCore>& core, LibvirtConnection& connection);
    // Must precede the connection's end: each registration holds a reference to it.
    static void withdraw(LibvirtConnection& connection);

private:
    struct Listener {
        std::shared_ptr<LibvirtCore> core;
        std::shared_ptr<std::atomic<bool>> live;
    };
    template <class Call>
    static void report(void* opaque, Call call);
    static void forget(void* opaque);
    static Status domain_events(const Listener& listener, LibvirtConnection& connection);

    static void closed(virConnectPtr, int reason, void* opaque);
    static void lifecycle(virConnectPtr, virDomainPtr domain, int event, int detail, void* opaque);
    static void metadata(virConnectPtr, virDomainPtr domain, int type, const char* uri, void* opaque);
    static void device_added(virConnectPtr, virDomainPtr domain, const char* alias, void* opaque);
    static void device_removed(virConnectPtr, virDomainPtr domain, const char* alias, void* opaque);
    static void qmp(virConnectPtr, virDomainPtr domain, const char* name, long long seconds, unsigned micros,
                    const char* details, void* opaque);
    static void network(virConnectPtr, virNetworkPtr network, int event, int detail, void* opaque);
};

}  // namespace banana::controller
