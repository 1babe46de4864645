// libvirt's numbers in words, for log lines.
#include <libvirt/libvirt.h>

#include <array>
#include <span>

#include "controller/libvirt.h"

namespace banana::controller {

namespace {

using Words = std::span<const char* const>;

// In the order of virDomainEventType, and of each one's details.
constexpr const char* defined[] = {"added", "updated", "renamed", "from snapshot"};
constexpr const char* undefined[] = {"removed", "renamed"};
constexpr const char* started[] = {"booted", "migrated", "restored", "from snapshot", "wakeup"};
constexpr const char* suspended[] = {"paused",   "migrated",  "I/O error", "watchdog",        "restored",
                                     "snapshot", "API error", "post-copy", "post-copy failed"};
constexpr const char* resumed[] = {"unpaused", "migrated", "from snapshot", "post-copy", "post-copy failed"};
constexpr const char* stopped[] = {"shutdown", "destroyed", "crashed", "migrated", "saved", "failed", "from snapshot"};
constexpr const char* shutdown[] = {"finished", "guest", "host"};
constexpr const char* pm_suspended[] = {"memory", "disk"};
constexpr const char* crashed[] = {"panicked", "crashloaded"};

struct Event {
    const char* name;
    Words details;
};
constexpr std::array<Event, 9> events{{{"defined", defined},
                                       {"undefined", undefined},
                                       {"started", started},
                                       {"suspended", suspended},
                                       {"resumed", resumed},
                                       {"stopped", stopped},
                                       {"shutdown", shutdown},
                                       {"pm suspended", pm_suspended},
                                       {"crashed", crashed}}};

// In the order of virDomainState.
constexpr const char* states[] = {"no state",      "running",  "blocked", "paused",
                                  "shutting down", "shut off", "crashed", "pm suspended"};
constexpr const char* paused_reasons[] = {
    "unknown",       "user",          "migration", "save",    "dump",        "I/O error", "watchdog",
    "from snapshot", "shutting down", "snapshot",  "crashed", "starting up", "post-copy", "post-copy failed"};

std::string word(Words words, int index) {
    const bool known = index >= 0 && static_cast<size_t>(index) < words.size();
    return known ? words[static_cast<size_t>(index)] : std::to_string(index);
}

}  // namespace

std::string lifecycle_text(int event, int detail) {
    if (event < 0 || static_cast<size_t>(event) >= events.size()) return "event " + std::to_string(event);
    const Event& of = events[static_cast<size_t>(event)];
    return std::string(of.name) + " (" + word(of.details, detail) + ")";
}

bool DomainState::active() const {
    return state != VIR_DOMAIN_NOSTATE && state != VIR_DOMAIN_SHUTOFF && state != VIR_DOMAIN_CRASHED;
}

std::string DomainState::text() const {
    const std::string name = word(states, state);
    return state == VIR_DOMAIN_PAUSED ? name + " (" + word(paused_reasons, reason) + ")" : name;
}

}  // namespace banana::controller
