// The QMP client against a real QEMU.
//
//   [ child: its own network namespace; qemu-system-x86_64 -S, virtio-net on a tap in there ] --- UNIX socket --- test
//
// QEMU is a child with a parent-death signal, so that nothing is left behind when the test is killed.
#include <doctest/doctest.h>
#include <poll.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdlib>
#include <filesystem>

#include "base/clock.h"
#include "qmp/commands.h"
#include "qmp/unix_transport.h"

using namespace banana;
using namespace banana::qmp;

namespace {

constexpr Milliseconds patient{20000};

class Qemu {
public:
    Qemu() {
        char name[] = "/tmp/banana-qmp-XXXXXX";
        REQUIRE(mkdtemp(name) != nullptr);
        folder_ = name;
        // The socket is made, and listens, before QEMU starts: no need to wait for it to appear.
        const std::string monitor = "unix:" + path() + ",server=on,wait=off";
        pid_ = fork();
        REQUIRE(pid_ >= 0);
        if (pid_ == 0) exec_qemu(monitor.c_str());
    }
    Qemu(const Qemu&) = delete;
    Qemu& operator=(const Qemu&) = delete;
    ~Qemu() {
        kill();
        std::filesystem::remove_all(folder_);
    }
    std::string path() const { return folder_ + "/qmp.sock"; }

    // Waits until QEMU listens, or has died of something.
    std::unique_ptr<UnixTransport> connect() {
        const int64_t deadline = monotonic_ns() + patient.count() * 1'000'000;
        while (monotonic_ns() < deadline) {
            auto made = UnixTransport::connect(path());
            if (made) return std::move(*made);
            REQUIRE(waitpid(pid_, nullptr, WNOHANG) == 0);
            poll(nullptr, 0, 5);
        }
        FAIL("QEMU does not listen on " << path());
        return nullptr;
    }
    void signal(int number) { REQUIRE(::kill(pid_, number) == 0); }
    void kill() {
        if (pid_ <= 0) return;
        ::kill(pid_, SIGKILL);
        waitpid(pid_, nullptr, 0);
        pid_ = -1;
    }

private:
    [[noreturn]] static void exec_qemu(const char* monitor) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (unshare(CLONE_NEWNET) != 0) _exit(126);
        execlp("qemu-system-x86_64", "qemu-system-x86_64", "-machine", "q35,accel=tcg", "-nodefaults",
               "-no-user-config", "-S", "-display", "none", "-m", "16", "-netdev",
               "tap,id=host0,ifname=t0,script=no,downscript=no", "-device",
               "virtio-net-pci,netdev=host0,id=net0,mac=52:54:00:12:34:56,romfile=", "-qmp", monitor, nullptr);
        _exit(127);
    }
    std::string folder_;
    pid_t pid_ = -1;
};

// Lets the transport work until `done`.
template <class Done>
bool eventually(UnixTransport& transport, Done done) {
    const int64_t deadline = monotonic_ns() + patient.count() * 1'000'000;
    while (!done() && monotonic_ns() < deadline)
        if (auto waited = transport.wait_input(Milliseconds(100)); !waited && waited.error().code() != Errc::timeout)
            break;
    return done();
}

}  // namespace

TEST_CASE("qmp: run state, STOP and RESUME of a real QEMU") {
    Qemu qemu;
    auto transport = qemu.connect();
    REQUIRE(transport->wait_ready(patient).ok());
    CHECK(transport->session().greeting().major >= 7);
    std::vector<std::string> events;
    transport->on_event([&](const Event& event) {
        events.push_back(event.name);
        CHECK(event.seconds > 1'600'000'000);
    });
    CHECK(query_status(*transport, patient)->state == RunState::prelaunch);
    REQUIRE(cont(*transport, patient).ok());
    REQUIRE(eventually(*transport, [&] { return events == std::vector<std::string>{"RESUME"}; }));
    CHECK(query_status(*transport, patient)->state == RunState::running);
    REQUIRE(stop(*transport, patient).ok());
    REQUIRE(eventually(*transport, [&] { return events == std::vector<std::string>{"RESUME", "STOP"}; }));
    const auto paused = query_status(*transport, patient);
    CHECK(paused->state == RunState::paused);
    CHECK_FALSE(paused->running);
}

TEST_CASE("qmp: helpers and errors of a real QEMU") {
    Qemu qemu;
    auto transport = qemu.connect();
    CHECK(query_migrate(*transport, patient)->status == MigrationStatus::none);
    const auto filters = query_rx_filter(*transport, "net0", patient);
    REQUIRE_MESSAGE(filters.ok(), (filters.ok() ? "" : filters.error().message()));
    CHECK(filters->at(0).mac.text() == "52:54:00:12:34:56");
    CHECK(announce_self(*transport, {}, {"net0"}, patient).ok());
    CHECK(set_link(*transport, "net0", false, patient).ok());
    CHECK(set_link(*transport, "net0", true, patient).ok());
    CHECK(set_link(*transport, "nope", true, patient).error().code() == Errc::not_found);
    const auto unknown = transport->call("no-such-command", {}, patient);
    REQUIRE_FALSE(unknown.ok());
    CHECK(unknown.error().code() == Errc::unsupported);
    CHECK(unknown.error().message() ==
          "QMP no-such-command: The command no-such-command has not been found (CommandNotFound)");
    CHECK_FALSE(transport->call("query-status", Json::object({{"surplus", 1}}), patient).ok());
    // Its largest reply, and many commands at once.
    CHECK(transport->call("query-qmp-schema", {}, patient)->size() > 100);
    int replies = 0;
    for (int i = 0; i < 200; i++)
        transport->execute("query-status", {}, [&](Result<Json> r) { replies += r.ok() ? 1 : 0; });
    CHECK(eventually(*transport, [&] { return replies == 200; }));
    CHECK(transport->session().stray_replies() == 0);
}

TEST_CASE("qmp: a migration to nowhere fails and says so") {
    Qemu qemu;
    auto transport = qemu.connect();
    std::vector<MigrationStatus> seen;
    transport->on_event([&](const Event& event) {
        if (auto status = decode_migration_event(event)) seen.push_back(*status);
    });
    Json capability = Json::object({{"capability", "events"}, {"state", true}});
    Json list = Json::array();
    list.push(capability);
    REQUIRE(transport->call("migrate-set-capabilities", Json::object({{"capabilities", list}}), patient).ok());
    REQUIRE(transport->call("migrate", Json::object({{"uri", "exec:exit 1"}}), patient).ok());
    REQUIRE(eventually(*transport, [&] { return !seen.empty() && seen.back() == MigrationStatus::failed; }));
    CHECK(query_migrate(*transport, patient)->status == MigrationStatus::failed);
}

TEST_CASE("qmp: kill -9 in the middle of a command") {
    Qemu qemu;
    auto transport = qemu.connect();
    REQUIRE(transport->wait_ready(patient).ok());
    // A stopped QEMU takes the command and does not answer; then it dies.
    qemu.signal(SIGSTOP);
    std::string first;
    transport->execute("query-status", {},
                       [&](Result<Json> r) { first = r ? "answered" : errc_name(r.error().code()); });
    CHECK(transport->call("query-migrate", {}, Milliseconds(50)).error().code() == Errc::timeout);
    CHECK(first == "");
    qemu.kill();
    REQUIRE(eventually(*transport, [&] { return !first.empty(); }));
    CHECK(first == "unreachable");
    CHECK(transport->fd() == -1);
    CHECK(query_status(*transport).error().code() == Errc::unreachable);
    CHECK_FALSE(UnixTransport::connect(qemu.path()).ok());
}

TEST_CASE("qmp: a second client hears nothing until the first has gone") {
    Qemu qemu;
    auto first = qemu.connect();
    REQUIRE(first->wait_ready(patient).ok());
    auto second = UnixTransport::connect(qemu.path());
    REQUIRE(second.ok());
    CHECK((*second)->wait_ready(Milliseconds(100)).error().code() == Errc::timeout);
    first.reset();
    CHECK((*second)->wait_ready(patient).ok());
}
