// A hypervisor of its own for one test: a real libvirtd in its own pid, mount, network and UTS namespaces.
//
// Concepts: in_host() forks; the child is process 1 of the pid namespace, so that whatever the test started (libvirtd,
// its QEMUs) dies with it, and it dies with us, also by kill -9. libvirt's directories are tmpfs there. A test's body
// returns nothing; it ends with a failed EXPECT (the text goes to stderr) or comes to its end.
#pragma once

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

namespace libvirtd_test {

#define EXPECT(condition)                                                                  \
    do {                                                                                   \
        if (!(condition)) {                                                                \
            fprintf(stderr, "%s:%d: EXPECT(%s) failed\n", __FILE__, __LINE__, #condition); \
            _exit(1);                                                                      \
        }                                                                                  \
    } while (0)
// Of a Result: prints its error.
#define EXPECT_OK(result)                                                                                        \
    do {                                                                                                         \
        if (!(result).ok()) {                                                                                    \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #result, (result).error().message().c_str()); \
            _exit(1);                                                                                            \
        }                                                                                                        \
    } while (0)

inline void write_file(const std::string& path, const std::string& text) {
    std::ofstream file(path);
    file << text;
    EXPECT(file.good());
}

inline void make_host() {
    EXPECT(mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0);
    EXPECT(mount("proc", "/proc", "proc", 0, nullptr) == 0);
    // The directories need not exist on the machine; nothing may be made there, hence the overlays.
    EXPECT(mount("tmpfs", "/run", "tmpfs", 0, "mode=755") == 0);
    for (const std::string dir : {"etc", "var"}) {
        const std::string base = "/run/overlay-" + dir;
        for (const char* part : {"", "/upper", "/work"}) EXPECT(mkdir((base + part).c_str(), 0755) == 0);
        const std::string options = "lowerdir=/" + dir + ",upperdir=" + base + "/upper,workdir=" + base + "/work";
        EXPECT(mount("overlay", ("/" + dir).c_str(), "overlay", 0, options.c_str()) == 0);
    }
    for (const char* dir : {"/etc/libvirt", "/var/lib/libvirt", "/var/log/libvirt", "/var/cache/libvirt"}) {
        mkdir(dir, 0755);
        EXPECT(mount("tmpfs", dir, "tmpfs", 0, "mode=755") == 0);
    }
    mkdir("/var/log/libvirt/qemu", 0755);
    EXPECT(umount2("/sys", MNT_DETACH) == 0);
    EXPECT(mount("sysfs", "/sys", "sysfs", 0, nullptr) == 0);  // of this network namespace, without cgroups
    EXPECT(sethostname("hv", 2) == 0);
    write_file("/etc/libvirt/libvirtd.conf",
               "auth_unix_rw = \"none\"\nhost_uuid = \"6e1c7a52-64e5-4f2f-9d2c-0d9c7c1b8a11\"\n"
               "log_outputs = \"3:file:/var/log/libvirt/libvirtd.log\"\n");
    write_file(
        "/etc/libvirt/qemu.conf",
        "user = \"root\"\ngroup = \"root\"\nsecurity_driver = \"none\"\ncgroup_controllers = []\nnamespaces = []\n"
        "dynamic_ownership = 0\nremember_owner = 0\nstdio_handler = \"file\"\n");
    EXPECT(system("ip link set lo up && ip link add bn-lab type bridge") == 0);
}

// Process 1 of the host: reaps the QEMUs that libvirtd leaves to it (libvirt waits until they are gone for good), and
// ends with the body's status, and all else with it.
[[noreturn]] inline void be_init(const std::function<void()>& body) {
    const pid_t worker = fork();
    EXPECT(worker >= 0);
    if (worker == 0) {
        make_host();
        body();
        _exit(0);
    }
    int status = 0;
    for (pid_t ended = 0; ended != worker;) {
        ended = waitpid(-1, &status, 0);
        EXPECT(ended > 0);
    }
    _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 3);
}

// Runs `body` in a host of its own and demands that it succeeds.
inline void in_host(const std::function<void()>& body) {
    const pid_t outer = fork();
    REQUIRE(outer >= 0);
    if (outer == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        EXPECT(unshare(CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWUTS) == 0);
        const pid_t init = fork();
        EXPECT(init >= 0);
        if (init == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            be_init(body);
        }
        int status = 0;
        waitpid(init, &status, 0);
        _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 2);
    }
    int status = 0;
    REQUIRE(waitpid(outer, &status, 0) == outer);
    CHECK(status == 0);
}

// libvirtd, started and ended by us. Its QEMUs go on without it.
class Daemon {
public:
    void start() {
        pid_ = fork();
        EXPECT(pid_ >= 0);
        if (pid_ != 0) return;
        signal(SIGPIPE, SIG_DFL);
        const int null = open("/dev/null", O_RDWR);
        dup2(null, 0);
        execlp("libvirtd", "libvirtd", static_cast<char*>(nullptr));
        _exit(127);
    }
    void send(int signal_number) const { EXPECT(kill(pid_, signal_number) == 0); }
    void kill_and_wait() {
        send(SIGKILL);
        EXPECT(waitpid(pid_, nullptr, 0) == pid_);
        unlink("/run/libvirtd.pid");
    }

private:
    pid_t pid_ = -1;
};

}  // namespace libvirtd_test
