// UnixTransport: QMP over a UNIX socket (`-qmp unix:PATH,server=on,wait=off`), blocking or driven by an event loop.
//
// Concepts: the socket never blocks. With an event loop: wait for fd() to be readable, and writable while
// wants_write(); call on_ready(). Without: call() and wait_event() poll by themselves, with a deadline. QEMU serves one
// client per monitor socket at a time: a second one connects and hears nothing until the first has gone. Threading and
// errors: as transport.h says. QEMU's death is Errc::unreachable for every waiting command.
#pragma once

#include <memory>

#include "base/fd.h"
#include "qmp/transport.h"

namespace banana::qmp {

class UnixTransport final : public Transport {
public:
    // Connects and returns at once; the greeting is awaited by the first call() or by on_ready().
    static Result<std::unique_ptr<UnixTransport>> connect(const std::string& path, Limits limits = {});
    // Takes a connected stream socket.
    static Result<std::unique_ptr<UnixTransport>> adopt(Fd socket, const std::string& name, Limits limits = {});
    ~UnixTransport() override;

    void execute(const std::string& command, const Json& arguments, Reply reply) override;
    Result<Json> call(const std::string& command, const Json& arguments = {},
                      Milliseconds timeout = default_timeout) override;
    void on_event(EventHandler handler) override { session_.on_event(std::move(handler)); }
    void on_closed(ClosedHandler handler) override { session_.on_closed(std::move(handler)); }

    int fd() const { return socket_.get(); }  // -1 once closed
    bool wants_write() const { return !unsent_.empty(); }
    // Reads and writes what is possible without waiting. The error is the reason for which the session has ended.
    Status on_ready();
    // Waits until the session is ready for commands.
    Status wait_ready(Milliseconds timeout = default_timeout);
    // Waits until something arrived and was handled; Errc::timeout when nothing did.
    Status wait_input(Milliseconds timeout);

    const Session& session() const { return session_; }

private:
    UnixTransport(Fd socket, const std::string& name, Limits limits);
    Status read_some();
    Status write_some();
    Status flush();
    Status end(const Error& reason);

    Fd socket_;
    Session session_;
    std::string unsent_;
};

}  // namespace banana::qmp
