// bananad's command line.
//
// Concepts: four paths, so that several daemons run on one machine, and what to do instead of running.
// Threading: pure. Errors: a wrong command line is an Exit with code 2; nothing is thrown.
#pragma once

#include <string>
#include <variant>

namespace banana::controller {

struct Options {
    std::string config = "/etc/banana/bananad.toml";
    std::string state_dir = "/var/lib/banana";
    std::string run_dir = "/run/banana";  // control.sock and what goes with it
    std::string bpf_dir = "/sys/fs/bpf/banana";
    bool check_config = false;  // read the configuration, say what is wrong with it, end

    std::string control_socket() const { return run_dir + "/control.sock"; }
};

// The program is to end at once: print `out` to stdout and `error` to stderr, return `code`.
struct Exit {
    int code = 0;
    std::string out, error;
};

std::variant<Options, Exit> parse_options(int argc, const char* const* argv);

}  // namespace banana::controller
