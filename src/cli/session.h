// A command's talk with the daemon and with the terminal.
//
// Concepts: the connection is made at the first call, so local commands need no daemon.
// Threading: one thread. Errors: Errc::unreachable means that this host's daemon cannot be reached; when the daemon
// itself says that something else cannot be, the error is Errc::failed with its text.
#pragma once

#include <optional>
#include <ostream>

#include "base/control_client.h"
#include "cli/arguments.h"

namespace banana::cli {

class Session {
public:
    Session(const Globals& globals, std::ostream& out, std::ostream& err) : globals_(globals), out_(out), err_(err) {}

    Result<Json> call(const std::string& method, const Json& params);

    const Globals& globals() const { return globals_; }
    std::ostream& out() { return out_; }
    void complain(const std::string& text);  // a line on stderr
    // `result` as JSON if that was asked for; else as `print` shows it.
    void show(const Printer& print, const Json& params, const Json& result);

private:
    const Globals& globals_;
    std::ostream& out_;
    std::ostream& err_;
    std::optional<rpc::BlockingClient> client_;
};

}  // namespace banana::cli
