#include "base/log.h"

#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <ctime>

namespace banana::log {

namespace {

constexpr std::array<const char*, 5> level_names{"debug", "info", "notice", "warning", "error"};
// sd-daemon(3): a line on stderr that begins with <N> has that syslog priority in the journal.
constexpr std::array<int, 5> syslog_priority{7, 6, 5, 4, 3};
std::atomic<Level> lowest{Level::info};

std::string prefix(Level level) {
    const auto index = static_cast<size_t>(level);
    static const bool journal = std::getenv("JOURNAL_STREAM") != nullptr;
    if (journal) return fmt::format("<{}>", syslog_priority[index]);
    timespec now{};
    clock_gettime(CLOCK_REALTIME, &now);
    tm parts{};
    localtime_r(&now.tv_sec, &parts);
    return fmt::format("{:02}:{:02}:{:02}.{:06} {}: ", parts.tm_hour, parts.tm_min, parts.tm_sec, now.tv_nsec / 1000,
                       level_names[index]);
}

}  // namespace

void set_level(Level level) { lowest = level; }

bool set_level(std::string_view name) {
    for (size_t i = 0; i < level_names.size(); ++i) {
        if (name != level_names[i]) continue;
        lowest = static_cast<Level>(i);
        return true;
    }
    return false;
}

bool enabled(Level level) { return level >= lowest.load(std::memory_order_relaxed); }

void write(Level level, std::string_view text) {
    if (!enabled(level)) return;
    std::string line = prefix(level);
    line += text;
    line += '\n';
    // A log that cannot be written has nowhere to say so.
    [[maybe_unused]] const ssize_t n = ::write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace banana::log
