// The UNIX transport against a fake QEMU at the other end of a socket pair, and the libvirt transport against a
// function.
#include <doctest/doctest.h>
#include <sys/socket.h>

#include <atomic>
#include <thread>

#include "base/clock.h"
#include "qmp/commands.h"
#include "qmp/libvirt_transport.h"
#include "qmp/unix_transport.h"

using namespace banana;
using namespace banana::qmp;

namespace {

const std::string hello =
    R"({"QMP":{"version":{"qemu":{"micro":0,"minor":0,"major":9},"package":""},"capabilities":[]}})"
    "\r\n";
const std::string stop_event = R"({"timestamp":{"seconds":1,"microseconds":2},"event":"STOP"})"
                               "\r\n";

class FakeQemu {
public:
    using Script = std::function<void(FakeQemu&)>;
    explicit FakeQemu(Script script) {
        int ends[2];
        REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
        ours_ = Fd(ends[0]);
        theirs_ = Fd(ends[1]);
        thread_ = std::thread([this, script = std::move(script)] {
            script(*this);
            ours_.reset();
        });
    }
    FakeQemu(const FakeQemu&) = delete;
    FakeQemu& operator=(const FakeQemu&) = delete;
    ~FakeQemu() { thread_.join(); }

    std::unique_ptr<UnixTransport> transport(Limits limits = {}) {
        auto made = UnixTransport::adopt(std::move(theirs_), "fake", limits);
        REQUIRE(made.ok());
        return std::move(*made);
    }
    // For the script.
    void say(const std::string& text) {
        for (size_t done = 0; done < text.size();) {
            const ssize_t n = send(ours_.get(), text.data() + done, text.size() - done, MSG_NOSIGNAL);
            if (n <= 0) return;
            done += static_cast<size_t>(n);
        }
    }
    Json hear() {
        std::string line;
        char c = 0;
        while (recv(ours_.get(), &c, 1, 0) == 1 && c != '\n') line += c;
        auto parsed = Json::parse(line);
        return parsed ? *parsed : Json();
    }
    void reply(const Json& command, const std::string& value) {
        say("{\"return\": " + value + ", \"id\": " + command.get("id").dump() + "}\r\n");
    }
    void greet() {
        say(hello);
        reply(hear(), "{}");
    }

private:
    Fd ours_, theirs_;
    std::thread thread_;
};

}  // namespace

TEST_CASE("qmp unix: a call, with an event and a foreign reply before its own") {
    FakeQemu qemu([](FakeQemu& q) {
        q.greet();
        const Json command = q.hear();
        q.say(stop_event + "{\"return\":{},\"id\":4711}\r\n");
        q.reply(command, R"({"status":"running","running":true,"singlestep":false})");
        q.hear();
    });
    auto transport = qemu.transport();
    int events = 0;
    transport->on_event([&](const Event&) { events++; });
    const auto status = query_status(*transport);
    REQUIRE(status.ok());
    CHECK(status->state == RunState::running);
    CHECK(status->running);
    CHECK(events == 1);
    CHECK(transport->session().stray_replies() == 1);
    transport.reset();
}

TEST_CASE("qmp unix: a QEMU that is silent meets the deadline, and its late reply nobody") {
    FakeQemu qemu([](FakeQemu& q) {
        q.greet();
        const Json slow = q.hear();
        const Json next = q.hear();
        q.reply(slow, "{\"late\":true}");
        q.reply(next, "{\"late\":false}");
        q.hear();
    });
    auto transport = qemu.transport();
    const int64_t start = monotonic_ns();
    const auto slow = transport->call("slow", {}, Milliseconds(100));
    REQUIRE_FALSE(slow.ok());
    CHECK(slow.error().code() == Errc::timeout);
    CHECK(slow.error().message() == "QMP slow: no reply within 100 ms");
    CHECK((monotonic_ns() - start) / 1'000'000 >= 95);
    const auto next = transport->call("next");
    REQUIRE(next.ok());
    CHECK_FALSE(next->get("late").as_bool(true));
    CHECK(transport->session().stray_replies() == 1);
    transport.reset();
}

TEST_CASE("qmp unix: events without end do not put a deadline off") {
    std::atomic<bool> enough = false;
    {
        FakeQemu qemu([&](FakeQemu& q) {
            q.greet();
            q.hear();
            while (!enough) q.say(stop_event);
        });
        auto transport = qemu.transport();
        CHECK(transport->call("slow", {}, Milliseconds(100)).error().message() == "QMP slow: no reply within 100 ms");
        enough = true;
        transport.reset();
    }
    enough = false;
    FakeQemu qemu([&](FakeQemu& q) {
        q.say(hello);
        while (!enough) q.say(stop_event);
    });
    auto transport = qemu.transport();
    CHECK(transport->wait_ready(Milliseconds(100)).error().code() == Errc::timeout);
    enough = true;
    transport.reset();
}

TEST_CASE("qmp unix: a QEMU that goes away answers all that wait") {
    FakeQemu qemu([](FakeQemu& q) {
        q.greet();
        q.hear();
    });
    auto transport = qemu.transport();
    std::string other, closed;
    transport->on_closed([&](const Error& error) { closed = error.message(); });
    REQUIRE(transport->wait_ready().ok());
    transport->execute("one", {}, [&](Result<Json> r) { other = r.error().message(); });
    const auto two = transport->call("two");
    REQUIRE_FALSE(two.ok());
    CHECK(two.error().code() == Errc::unreachable);
    CHECK(closed == "QMP session fake: QEMU closed the connection");
    CHECK(other == "QMP one: " + closed);
    CHECK(two.error().message() == "QMP two: " + closed);
    CHECK(transport->fd() == -1);
    CHECK(transport->call("three").error().code() == Errc::unreachable);
    CHECK_FALSE(transport->on_ready().ok());
}

TEST_CASE("qmp unix: garbage, a line without end, nesting") {
    const auto outcome = [](const std::string& text) {
        FakeQemu qemu([&text](FakeQemu& q) {
            q.greet();
            q.hear();
            q.say(text);
        });
        auto transport = qemu.transport({.line_bytes = 100000, .depth = 16});
        const auto reply = transport->call("query-status");
        REQUIRE_FALSE(reply.ok());
        CHECK(transport->fd() == -1);
        return reply.error().message();
    };
    CHECK(outcome("garbage\n").find("not valid JSON") != std::string::npos);
    CHECK(outcome(std::string(1 << 20, 'x')).find("a line of more than 100000 bytes") != std::string::npos);
    CHECK(outcome(std::string(5000, '[') + "\n").find("not valid JSON") != std::string::npos);
    CHECK(outcome("{\"return\": {}, \"id\": 2").find("QEMU closed the connection") != std::string::npos);
}

TEST_CASE("qmp unix: a large command to a slow reader is written in pieces") {
    FakeQemu qemu([](FakeQemu& q) {
        q.greet();
        const Json command = q.hear();
        q.reply(command, std::to_string(command.get("arguments").get("x").as_string().size()));
        q.hear();
    });
    auto transport = qemu.transport();
    const auto reply = transport->call("echo", Json::object({{"x", std::string(900000, 'y')}}));
    REQUIRE_MESSAGE(reply.ok(), (reply.ok() ? "" : reply.error().message()));
    CHECK(reply->as_int() == 900000);
    transport.reset();
}

TEST_CASE("qmp unix: nothing at the path") {
    const auto made = UnixTransport::connect("/nonexistent/qmp.sock");
    REQUIRE_FALSE(made.ok());
    CHECK(made.error().message() == "connect to QMP socket /nonexistent/qmp.sock: No such file or directory");
    CHECK_FALSE(UnixTransport::connect(std::string(200, 'x')).ok());
}

TEST_CASE("qmp libvirt: commands through a function, events by delivery") {
    std::string asked, text = "{\"return\": {\"status\": \"paused\", \"running\": false}, \"id\": \"libvirt-7\"}";
    LibvirtTransport transport("vm1", [&](const std::string& json) -> Result<std::string> {
        asked = json;
        if (text.empty()) return Error(Errc::busy, "a job is under way");
        return text;
    });
    CHECK(query_status(transport)->state == RunState::paused);
    CHECK(asked == "{\"execute\":\"query-status\"}");
    text = R"({"id":"libvirt-8","error":{"class":"GenericError","desc":"bad thing"}})";
    CHECK(transport.call("x").error().message() == "domain vm1: QMP x: bad thing (GenericError)");
    text = "garbage";
    CHECK(transport.call("x").error().code() == Errc::invalid);
    text = stop_event;
    CHECK_FALSE(transport.call("x").ok());
    text = "";
    CHECK(transport.call("x").error().message() == "domain vm1: QMP x: a job is under way");
    CHECK(transport.call("x").error().code() == Errc::busy);

    std::vector<std::string> events;
    transport.on_event([&](const Event& e) { events.push_back(e.name + e.data.get("status").as_string()); });
    CHECK(transport.deliver("STOP", 1, 2, "").ok());
    CHECK(transport.deliver("MIGRATION", 1, 2, "{\"status\":\"completed\"}").ok());
    CHECK_FALSE(transport.deliver("MIGRATION", 1, 2, "{").ok());
    CHECK(events == std::vector<std::string>{"STOP", "MIGRATIONcompleted"});

    int closed = 0;
    transport.on_closed([&](const Error&) { closed++; });
    transport.close(Error(Errc::unreachable, "the domain has stopped"));
    transport.close(Error(Errc::unreachable, "again"));
    CHECK(closed == 1);
    std::string late;
    transport.execute("x", {}, [&](Result<Json> r) { late = r.error().message(); });
    CHECK(late == "QMP x: domain vm1: the domain has stopped");
}
