// `banana` as a function: arguments in, text and exit code out.
//
// Exit codes: the table below; scripts rely on it, doc/manual.md tells it.
// Threading: one thread. Errors are written to `err` as "banana: ...", a line each; stdout then holds nothing.
#pragma once

#include <ostream>
#include <string>
#include <vector>

#include "base/result.h"

namespace banana::cli {

inline constexpr int exit_done = 0;
inline constexpr int exit_failed = 1;
inline constexpr int exit_usage = 2;
inline constexpr int exit_timeout = 3;
inline constexpr int exit_refused = 4;
inline constexpr int exit_unreachable = 8;
inline constexpr int exit_not_found = 10;

int exit_code(Errc code);
int run(std::vector<std::string> args, std::ostream& out, std::ostream& err);

}  // namespace banana::cli
