// TunnelProcess: banana-tunneld, started by bananad where no service manager does.
//
// Concepts: it gets a session of its own, no standard input, and a log file for its output, so that nothing that ends
// bananad touches it; it is not ended by this object's end either. While bananad lives, it notices and reaps the
// process. Threading: one thread. Errors: "start PATH: cause".
#pragma once

#include <string>
#include <vector>

#include "base/fd.h"
#include "base/result.h"

namespace banana::controller {

class TunnelProcess {
public:
    static Result<TunnelProcess> start(const std::vector<std::string>& arguments, const std::string& log);

    pid_t pid() const { return pid_; }
    const Fd& pidfd() const { return pidfd_; }  // readable when it has ended
    bool ended();                               // reaps it
    std::string how() const { return how_; }    // once it has ended: "exit code 2", "signal 9 (Killed)"

private:
    pid_t pid_ = 0;
    Fd pidfd_;
    std::string how_;
};

// Where banana-tunneld is: beside the running program.
Result<std::string> tunnel_program();

// The last line of a log, for an error's text.
std::string last_line(const std::string& path);

}  // namespace banana::controller
