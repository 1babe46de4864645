// LibvirtTransport: QMP through libvirtd, which owns the monitor of each of its domains.
//
// Concepts: the calls of libvirt themselves are the caller's, so that this folder needs no libvirt:
//   commands  a function that does virDomainQemuMonitorCommand(dom, json, &result, 0) and gives back `result`
//   events    the callback of virConnectDomainQemuMonitorEventRegister hands them to deliver()
//   end       when the domain stops or the connection to libvirtd is lost: close()
// libvirt's monitor call blocks, and so does execute() here: run it off the event loop, or where waiting is harmless.
// `timeout` of call() is not ours to keep: libvirt has none. libvirt refuses monitor commands on the destination of a
// migration, and marks the domain as tainted once one was sent.
// Threading and errors: as transport.h says.
#pragma once

#include "qmp/transport.h"

namespace banana::qmp {

class LibvirtTransport final : public Transport {
public:
    // One command as JSON text → QEMU's reply as JSON text, or why libvirt did not deliver it.
    using Monitor = std::function<Result<std::string>(const std::string& json)>;

    LibvirtTransport(std::string domain, Monitor monitor, Limits limits = {});

    void execute(const std::string& command, const Json& arguments, Reply reply) override;
    Result<Json> call(const std::string& command, const Json& arguments = {},
                      Milliseconds timeout = default_timeout) override;
    void on_event(EventHandler handler) override { event_handler_ = std::move(handler); }
    void on_closed(ClosedHandler handler) override { closed_handler_ = std::move(handler); }

    // An event as libvirt reports it: name, time, and its data as JSON text ("" or null pointer's stand-in for none).
    Status deliver(const std::string& name, int64_t seconds, int64_t microseconds, const std::string& data);
    void close(const Error& reason);

private:
    const std::string domain_;
    const Monitor monitor_;
    const Limits limits_;
    std::optional<Error> closed_because_;
    EventHandler event_handler_;
    ClosedHandler closed_handler_;
};

}  // namespace banana::qmp
