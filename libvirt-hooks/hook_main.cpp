// banana-hook: what libvirt's hook stubs exec. See hook.h.
#include <fmt/core.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "libvirt-hooks/hook.h"

namespace {

int status_when_late = 0;

// The backstop of the deadline that run() keeps by itself: should it hang all the same, libvirt must not.
extern "C" void too_late(int) {
    constexpr std::string_view text = "banana: the hook did not end in time\n";
    (void)!write(STDERR_FILENO, text.data(), text.size());
    _exit(status_when_late);
}

void arm_backstop(bool may_refuse) {
    status_when_late = may_refuse ? 1 : 0;
    struct sigaction action {};
    action.sa_handler = too_late;
    sigaction(SIGALRM, &action, nullptr);
    const auto length = banana::hooks::default_deadline + std::chrono::milliseconds(500);
    const itimerval timer{.it_interval = {},
                          .it_value = {.tv_sec = length.count() / 1000, .tv_usec = length.count() % 1000 * 1000}};
    setitimer(ITIMER_REAL, &timer, nullptr);
}

}  // namespace

int main(int argc, char** argv) {
    using namespace banana::hooks;
    auto call = parse_arguments(std::vector<std::string>(argv + 1, argv + std::max(argc, 1)));
    if (!call) {
        fmt::print(stderr, "{}\n", call.error().message());
        return 2;
    }
    arm_backstop(may_refuse(*call));
    signal(SIGPIPE, SIG_IGN);
    Environment environment;
    if (const char* socket = std::getenv("BANANA_SOCKET"); socket != nullptr && *socket != 0)
        environment.socket = socket;
    const Outcome outcome = run(*call, environment);
    if (!outcome.message.empty()) fmt::print(stderr, "{}\n", outcome.message);
    return outcome.status;
}
