// Log lines of the daemons: to the journal when systemd runs us (priority prefixes), else to stderr with a time stamp.
//
// A line is one event; it bears the object's name and kind. Guest- or peer-controlled text goes through printable().
// Threading: each call writes one line with one write(2); safe from any thread.
#pragma once

#include <fmt/core.h>

#include <string>
#include <string_view>

namespace banana::log {

enum class Level { debug, info, notice, warning, error };

void set_level(Level lowest);
bool set_level(std::string_view name);  // "debug" ... "error"; false: no such level
void write(Level level, std::string_view line);
bool enabled(Level level);

#define BANANA_LOG_LEVEL(name)                                                                          \
    template <class... Args>                                                                            \
    void name(fmt::format_string<Args...> format, Args&&... args) {                                     \
        if (enabled(Level::name)) write(Level::name, fmt::format(format, std::forward<Args>(args)...)); \
    }
BANANA_LOG_LEVEL(debug)
BANANA_LOG_LEVEL(info)
BANANA_LOG_LEVEL(notice)
BANANA_LOG_LEVEL(warning)
BANANA_LOG_LEVEL(error)
#undef BANANA_LOG_LEVEL

}  // namespace banana::log
