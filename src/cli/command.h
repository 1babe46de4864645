// What a command of `banana` is: a row of one table (commands.cpp).
//
// Concepts: a row says noun, verb, the control method that it calls, the parameters with their place on the command
// line and in the method's params, and how the result is shown to people. The rest (--help, --json, exit codes) follows
// from the row. A command that is more than one call has a `run` of its own.
// Threading: one thread. Errors: Errc decides the exit code (run.h).
#pragma once

#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/result.h"

namespace banana::cli {

class Session;

enum class Kind {
    text,
    list,     // comma-separated; an array in params
    integer,  // min..max
    flag,     // true or false, always in params
    texts     // a positional argument that can be repeated; an array in params
};

struct Param {
    const char* flag;  // "--mtu", or a positional argument's name: "NAME"
    const char* key;   // its member of params
    Kind kind;
    const char* help;
    const char* value = "";                 // what --help calls the value
    bool required = false;                  // positional arguments that are not, may be left out
    std::vector<std::string> choices = {};  // text, list: nothing else
    int64_t min = 0, max = 0;               // integer
    const char* fallback = "";              // sent when the option is not given; "": nothing is sent
};

// Where and how a result is shown.
struct Page {
    std::ostream& out;
    bool brief;  // names alone, one a line
};

using Printer = std::function<void(const Page& page, const Json& params, const Json& result)>;

struct Command {
    const char* noun;  // "": the verb stands alone
    const char* verb;
    const char* summary;
    const char* method;  // of the control socket; "" when `run` needs none
    std::vector<Param> params = {};
    Printer print = {};
    const char* details = "";  // --help, below the options
    // Turns what was given into the method's params, or says what is wrong with it (exit code 2).
    Status (*finish)(Json& params) = nullptr;
    // In place of one call and `print`; gives the exit code.
    Result<int> (*run)(Session& session, const Command& command, const Json& params) = nullptr;
};

struct Noun {
    const char* name;
    const char* summary;
};

const std::vector<Noun>& nouns();
const std::vector<Command>& commands();

}  // namespace banana::cli
