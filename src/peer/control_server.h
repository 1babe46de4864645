// The control socket: a UNIX stream socket on which root, and nobody else, speaks JSON-RPC with the daemon.
//
// Concepts: mode 0600 keeps others away, SO_PEERCRED is checked all the same (root, or the daemon's own uid). One
// daemon per path: a lock file beside the socket decides, so a socket left by a killed daemon is replaced and one that
// is served is not. Clients that stay silent, do not end their lines or do not read are closed (rpc::Limits).
// Threading: the io_context's single thread. Errors: start() names the path and what is in the way.
#pragma once

#include <asio/io_context.hpp>
#include <memory>
#include <string>

#include "peer/rpc.h"

namespace banana::rpc {

struct ControlOptions {
    std::string path;
    size_t max_connections = 64;
    milliseconds idle_timeout{60000};
};

class ControlServer {
public:
    ControlServer(asio::io_context& io, ControlOptions options, Dispatcher dispatcher);
    ~ControlServer();
    Status start();  // exists: another daemon serves that path
    void stop();     // closes all connections, removes the socket
    size_t connections() const;

private:
    struct Impl;
    std::shared_ptr<Impl> impl_;
};

}  // namespace banana::rpc
