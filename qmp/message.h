// QMP's messages: what QEMU says (a greeting, replies, events) and what is said to it (commands), as values.
//
// Concepts: QMP is JSON, one object a line, CR LF or LF after it (QEMU: docs/interop/qmp-spec). The first line is the
// greeting. A command bears an id of ours; its reply, `return` or `error`, bears the same. An event bears none.
// Threading: pure functions on values. Errors: a line that is none of these is Errc::invalid and says what is wrong.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/json.h"
#include "base/result.h"

namespace banana::qmp {

struct Greeting {
    int64_t major = 0, minor = 0, micro = 0;
    std::string package{};  // the distribution's suffix, for people
    std::vector<std::string> capabilities{};
};

// A reply. `id` is null when QEMU could not read the command so far as to find one.
struct Return {
    Json id{};
    Json value{};
};
struct Failure {
    Json id{};
    std::string kind{};  // "GenericError", "CommandNotFound", "DeviceNotFound", ...
    std::string text{};
};

struct Event {
    std::string name{};                     // "STOP", "RESUME", "MIGRATION", ...
    Json data{};                            // an object, or null
    int64_t seconds = 0, microseconds = 0;  // QEMU host's wall clock; -1 when it had none
};

using Message = std::variant<Greeting, Return, Failure, Event>;

Result<Message> parse_message(std::string_view line, size_t max_bytes = json_max_bytes, int max_depth = json_max_depth);

// A command without its line end. `arguments` null: none. `id` null: none.
std::string format_command(const std::string& name, const Json& arguments, const Json& id);

// What a Failure means to us: CommandNotFound is unsupported, DeviceNotFound not_found, the others failed.
Error to_error(const std::string& command, const Failure& failure);

}  // namespace banana::qmp
