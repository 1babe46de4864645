#include "controller/tunnel_process.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <climits>
#include <csignal>
#include <cstring>
#include <fstream>

#include "base/bytes.h"

namespace banana::controller {

namespace {

// What posix_spawn() is told besides the program.
struct SpawnSettings {
    posix_spawn_file_actions_t files{};
    posix_spawnattr_t attributes{};

    explicit SpawnSettings(const std::string& log) {
        posix_spawn_file_actions_init(&files);
        posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
        posix_spawn_file_actions_addopen(&files, STDOUT_FILENO, log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
        posix_spawn_file_actions_adddup2(&files, STDOUT_FILENO, STDERR_FILENO);
        posix_spawn_file_actions_addclosefrom_np(&files, STDERR_FILENO + 1);
        posix_spawnattr_init(&attributes);
        posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
        sigset_t set;
        sigemptyset(&set);
        posix_spawnattr_setsigmask(&attributes, &set);
        sigfillset(&set);
        posix_spawnattr_setsigdefault(&attributes, &set);
    }
    SpawnSettings(const SpawnSettings&) = delete;
    ~SpawnSettings() {
        posix_spawn_file_actions_destroy(&files);
        posix_spawnattr_destroy(&attributes);
    }
};

// A descriptor a wire and lane: the soft limit, 1024 by default, is for programs that use select().
void raise_descriptor_limit() {
    rlimit limit{};
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur == limit.rlim_max) return;
    limit.rlim_cur = limit.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
}

}  // namespace

Result<TunnelProcess> TunnelProcess::start(const std::vector<std::string>& arguments, const std::string& log) {
    raise_descriptor_limit();
    std::vector<char*> argv;
    for (const auto& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    const SpawnSettings settings(log);
    TunnelProcess process;
    const int error = posix_spawn(&process.pid_, argv[0], &settings.files, &settings.attributes, argv.data(), environ);
    if (error != 0) return errno_error(error, "start " + arguments.front());
    process.pidfd_.reset(static_cast<int>(syscall(SYS_pidfd_open, process.pid_, 0)));
    if (!process.pidfd_) return errno_error(errno, fmt::format("watch process {}", process.pid_));
    return process;
}

bool TunnelProcess::ended() {
    if (pid_ == 0 || !how_.empty()) return true;
    int status = 0;
    const pid_t found = waitpid(pid_, &status, WNOHANG);
    if (found == 0 || (found < 0 && errno == EINTR)) return false;
    how_ = found < 0             ? "it is gone"
           : WIFSIGNALED(status) ? fmt::format("signal {} ({})", WTERMSIG(status), strsignal(WTERMSIG(status)))
                                 : fmt::format("exit code {}", WEXITSTATUS(status));
    return true;
}

Result<std::string> tunnel_program() {
    std::string path(PATH_MAX, '\0');
    const ssize_t size = readlink("/proc/self/exe", path.data(), path.size());
    if (size < 0) return errno_error(errno, "find the running program");
    path.resize(static_cast<size_t>(size));
    path.replace(path.rfind('/'), std::string::npos, "/banana-tunneld");
    if (access(path.c_str(), X_OK) < 0) return errno_error(errno, "find " + path);
    return path;
}

std::string last_line(const std::string& path) {
    constexpr std::streamoff tail = 2000;
    std::ifstream file(path, std::ios::ate);
    if (!file) return "";
    file.seekg(std::max<std::streamoff>(0, static_cast<std::streamoff>(file.tellg()) - tail));
    std::string line, last;
    while (std::getline(file, line))
        if (!line.empty()) last = line;
    // A line of ours begins with when and how bad (base/log.h); that is no part of what happened.
    constexpr std::string_view level = " error: ";
    if (const auto at = last.find(level); at != std::string::npos) last.erase(0, at + level.size());
    return printable(last);
}

}  // namespace banana::controller
