// The control socket: requests in, answers and events out (control.h has the messages).
//
// Concepts: SOCK_SEQPACKET, so that a message is whole or not there, with its descriptors. Only root and this process's
// own user are let in (SO_PEERCRED). Answers that a controller does not take (its buffer full) end its connection.
// Threading: the control thread, but changed(), which any lane calls. Errors: logged; a bad request is answered.
#pragma once

#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/json.h"
#include "base/result.h"

namespace banana::tunnel {

class Tunnel;

class ControlServer {
public:
    // Makes the socket, mode 0600, in the place of one that a process left. exists: another process serves it; nothing
    // of that one is touched.
    static Result<std::unique_ptr<ControlServer>> open(const std::string& path);
    ~ControlServer();

    // Serves until `signals` (a signalfd) is readable.
    void serve(Tunnel& tunnel, int signals);
    void changed(const std::string& peer);  // its state or its reason, in some lane

private:
    ControlServer() = default;
    void accept();
    bool read_request(Tunnel& tunnel);  // false: the connection is at its end
    Json answer(Tunnel& tunnel, const std::string& text, std::vector<Fd> descriptors);
    bool send(const Json& message);
    void send_events(Tunnel& tunnel);

    std::string path_;
    Fd lock_, listening_, controller_, events_;
    std::mutex mutex_;
    std::set<std::string> changed_;  // peers; under mutex_
};

}  // namespace banana::tunnel
