// The command line, as a command of the table with its params.
//
// Threading: pure, but that BANANA_SOCKET is read. Errors: an Exit with code 2; nothing is thrown.
#pragma once

#include <chrono>
#include <string>
#include <variant>
#include <vector>

#include "cli/command.h"

namespace banana::cli {

struct Globals {
    std::string socket = "/run/banana/control.sock";
    bool json = false;
    bool brief = false;
    std::chrono::milliseconds timeout{30000};
};

struct Invocation {
    const Command* command = nullptr;
    Json params;
    Globals globals;
};

// Nothing is to be run: print `out` to stdout and `error` to stderr, end with `code`.
struct Exit {
    int code = 0;
    std::string out, error;
};

// `args` without the program's name.
std::variant<Invocation, Exit> parse_arguments(std::vector<std::string> args);

}  // namespace banana::cli
