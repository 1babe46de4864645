// Daemon: bananad, put together: what is started in which order, and what wakes it.
//
// Concepts: one thread, one io_context. Order of start: records, kernel (the plan of all records is realised, strays
// are swept), control socket, peers, libvirt; it is ready when the control socket answers, without waiting for peers or
// libvirt. On SIGTERM and SIGINT it closes its sockets and ends; links, maps, programs and filters stay, and with them
// all traffic. Threading: run() is the thread. Errors: start() names what could not be opened.
#pragma once

#include <memory>

#include "base/result.h"
#include "controller/config.h"
#include "controller/options.h"

namespace banana::controller {

class Daemon {
public:
    Daemon(Config config, Options options);
    ~Daemon();
    Status load_certificates();  // before start(); its error is the administrator's to mend, not time's
    Status start();
    void run();  // until a signal

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace banana::controller
