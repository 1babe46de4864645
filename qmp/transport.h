// Transport: how commands reach a QEMU and how its events come back; one interface, two ways.
//
//   UnixTransport     a monitor socket of ours (tests; QEMUs that libvirt does not run)    unix_transport.h
//   LibvirtTransport  through libvirtd, which owns the monitor of a libvirt domain          libvirt_transport.h
//
// Threading: a transport belongs to one thread; its callbacks are called on that thread, from within execute(), call()
// or the implementation's event function. A callback may execute(), but must neither call() nor destroy the transport.
// Errors: Errc::timeout when the deadline passed (the command may still be carried out), Errc::unreachable when the
// connection is or gets lost, Errc::unsupported for a command that this QEMU has not, else what QEMU answered.
#pragma once

#include <chrono>

#include "qmp/session.h"

namespace banana::qmp {

using Milliseconds = std::chrono::milliseconds;
inline constexpr Milliseconds default_timeout{5000};

class Transport {
public:
    Transport() = default;
    Transport(const Transport&) = delete;
    Transport& operator=(const Transport&) = delete;
    virtual ~Transport() = default;

    // Sends and returns; `reply` comes later, or at once. Exactly one call of it.
    virtual void execute(const std::string& command, const Json& arguments, Reply reply) = 0;
    // Sends and waits. Events that arrive meanwhile go to their handler.
    virtual Result<Json> call(const std::string& command, const Json& arguments = {},
                              Milliseconds timeout = default_timeout) = 0;

    virtual void on_event(EventHandler handler) = 0;
    virtual void on_closed(ClosedHandler handler) = 0;
};

}  // namespace banana::qmp
