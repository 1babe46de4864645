#include <doctest/doctest.h>

#include "qmp/session.h"

using namespace banana;
using namespace banana::qmp;

namespace {

const std::string hello =
    R"({"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, "capabilities": ["oob"]}})"
    "\r\n";

// A session that is past its negotiation.
struct Ready {
    Session session{"vm1"};
    Ready() {
        REQUIRE(session.feed(hello).ok());
        CHECK(session.take_output() == "{\"execute\":\"qmp_capabilities\",\"id\":1}\n");
        REQUIRE(session.feed("{\"return\": {}, \"id\": 1}\r\n").ok());
        REQUIRE(session.state() == State::ready);
    }
};

}  // namespace

TEST_CASE("qmp session: greeting, negotiation, commands queued until then") {
    Session session("vm1");
    CHECK(session.state() == State::greeting);
    bool answered = false;
    const int64_t id = session.execute("query-status", {}, [&](Result<Json> reply) { answered = reply.ok(); });
    CHECK_FALSE(session.has_output());
    // One byte at a time.
    for (const char c : hello) REQUIRE(session.feed({&c, 1}).ok());
    CHECK(session.state() == State::negotiating);
    CHECK(session.greeting().major == 7);
    CHECK(session.greeting().capabilities == std::vector<std::string>{"oob"});
    CHECK(session.take_output().find("qmp_capabilities") != std::string::npos);
    CHECK_FALSE(answered);
    REQUIRE(session.feed("{\"return\": {}, \"id\": 2}\r\n").ok());
    CHECK(session.take_output() == "{\"execute\":\"query-status\",\"id\":1}\n");
    REQUIRE(session.feed("{\"return\": {\"status\": \"paused\"}, \"id\": " + std::to_string(id) + "}\n").ok());
    CHECK(answered);
    CHECK(session.waiting() == 0);
}

TEST_CASE_FIXTURE(Ready, "qmp session: replies are matched by id in any order") {
    std::string log;
    const auto note = [&](const char* name) {
        return [&log, name](Result<Json> r) {
            log += name + std::string("=") + (r ? r->as_string() : r.error().message()) + " ";
        };
    };
    const int64_t a = session.execute("a", Json::object({{"x", 1}}), note("a"));
    const int64_t b = session.execute("b", {}, note("b"));
    CHECK(session.take_output() == "{\"execute\":\"a\",\"arguments\":{\"x\":1},\"id\":" + std::to_string(a) +
                                       "}\n{\"execute\":\"b\",\"id\":" + std::to_string(b) + "}\n");
    REQUIRE(session
                .feed("{\"return\":\"B\",\"id\":" + std::to_string(b) +
                      "}\n{\"return\":\"A\",\"id\":" + std::to_string(a) + "}\n")
                .ok());
    CHECK(log == "b=B a=A ");
    // The same reply again, an id of nobody's, an id that is no number.
    REQUIRE(session.feed("{\"return\":1,\"id\":" + std::to_string(a) + "}\n{\"return\":1,\"id\":\"x\"}\n").ok());
    CHECK(session.stray_replies() == 2);
    CHECK(log == "b=B a=A ");
}

TEST_CASE_FIXTURE(Ready, "qmp session: an error reply is the command's, with its class as code") {
    std::optional<Error> got;
    int64_t id = session.execute("nope", {}, [&](Result<Json> r) { got = r.error(); });
    REQUIRE(
        session
            .feed(
                "{\"error\":{\"class\":\"CommandNotFound\",\"desc\":\"The command nope has not been found\"},\"id\":" +
                std::to_string(id) + "}\n")
            .ok());
    CHECK(got->code() == Errc::unsupported);
    CHECK(got->message() == "QMP nope: The command nope has not been found (CommandNotFound)");
    id = session.execute("x", {}, [&](Result<Json> r) { got = r.error(); });
    REQUIRE(
        session.feed("{\"error\":{\"class\":\"DeviceNotFound\",\"desc\":\"d\"},\"id\":" + std::to_string(id) + "}\n")
            .ok());
    CHECK(got->code() == Errc::not_found);
}

TEST_CASE_FIXTURE(Ready, "qmp session: events come between replies") {
    std::vector<Event> events;
    session.on_event([&](const Event& event) { events.push_back(event); });
    REQUIRE(
        session
            .feed(
                R"({"timestamp": {"seconds": 5, "microseconds": 6}, "event": "STOP"})"
                "\n"
                R"({"timestamp": {"seconds": -1, "microseconds": -1}, "event": "MIGRATION", "data": {"status": "active"}})"
                "\n")
            .ok());
    REQUIRE(events.size() == 2);
    CHECK(events[0].name == "STOP");
    CHECK(events[0].data.is_null());
    CHECK(events[0].seconds == 5);
    CHECK(events[0].microseconds == 6);
    CHECK(events[1].data.get("status").as_string() == "active");
}

TEST_CASE_FIXTURE(Ready, "qmp session: a cancelled command's reply is dropped") {
    bool called = false;
    const int64_t id = session.execute("slow", {}, [&](Result<Json>) { called = true; });
    session.cancel(id);
    REQUIRE(session.feed("{\"return\":{},\"id\":" + std::to_string(id) + "}\n").ok());
    CHECK_FALSE(called);
    CHECK(session.stray_replies() == 1);
}

TEST_CASE_FIXTURE(Ready, "qmp session: callbacks may execute and close") {
    int closed = 0;
    session.on_closed([&](const Error&) { closed++; });
    std::string nested;
    session.on_event([&](const Event&) {
        session.execute("from-event", {}, [&](Result<Json> r) { nested = r.error().message(); });
        session.close(Error(Errc::refused, "enough"));
        session.execute("after", {}, {});
    });
    CHECK_FALSE(session
                    .feed(R"({"timestamp": {"seconds": 5, "microseconds": 6}, "event": "STOP"})"
                          "\n{\"return\":{},\"id\":9}\n")
                    .ok());
    CHECK(nested == "QMP from-event: QMP session vm1: enough");
    CHECK(closed == 1);
    CHECK(session.state() == State::closed);
    CHECK_FALSE(session.has_output());
}

TEST_CASE("qmp session: garbage ends it with a reason, and answers all that wait") {
    struct Bad {
        std::string line, reason;
    };
    const std::vector<Bad> table{
        {"hello\n", "QMP line: not valid JSON"},
        {"[]\n", "QMP line: not a JSON object"},
        {"{}\n", "neither greeting, reply nor event"},
        {"{\"event\": 5}\n", "QMP event: member 'event' is not a string"},
        {"{\"event\": \"X\"}\n", "QMP event: member 'timestamp' is missing"},
        {"{\"event\": \"X\", \"data\": 5}\n", "QMP event: member 'data' is not an object"},
        {"{\"error\": {}, \"id\": 2}\n", "QMP error reply: member 'class' is missing"},
        {"{\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse error\"}}\n",
         "JSON parse error (GenericError)"},
        {hello, "a second QMP greeting"},
        {std::string(200, '[') + "\n", "QMP line: not valid JSON"},
        {std::string(2 << 20, 'x'), "a line of more than 1048576 bytes"},
        {"\"\xff\xfe\"\n", "QMP line: not valid JSON"},
        {std::string("\0\n", 2), "QMP line: not valid JSON"},
    };
    for (const auto& [line, reason] : table) {
        CAPTURE(reason);
        Ready ready;
        std::string answered;
        ready.session.execute("query-status", {}, [&](Result<Json> r) { answered = r.error().message(); });
        const auto fed = ready.session.feed(line);
        REQUIRE_FALSE(fed.ok());
        CHECK_MESSAGE(fed.error().message().find(reason) != std::string::npos, fed.error().message());
        CHECK(fed.error().message().starts_with("QMP session vm1: "));
        CHECK(answered == "QMP query-status: " + fed.error().message());
        CHECK(ready.session.state() == State::closed);
        // And it stays so.
        CHECK_FALSE(ready.session.feed("{\"return\":{},\"id\":2}\n").ok());
        ready.session.execute("late", {}, [&](Result<Json> r) { answered = r.error().message(); });
        CHECK(answered == "QMP late: " + fed.error().message());
    }
}

TEST_CASE("qmp session: nothing but a greeting may come first, and a bad greeting is refused") {
    for (const char* line :
         {"{\"return\": {}}\n", "{\"timestamp\":{\"seconds\":1,\"microseconds\":1},\"event\":\"STOP\"}\n",
          "{\"error\":{\"class\":\"a\",\"desc\":\"b\"},\"id\":1}\n", "{\"QMP\": 5}\n",
          "{\"QMP\": {\"version\": {\"qemu\": {}}, \"capabilities\": []}}\n"}) {
        CAPTURE(line);
        Session session("vm1");
        CHECK_FALSE(session.feed(line).ok());
        CHECK(session.state() == State::closed);
    }
    Session session("vm1");
    REQUIRE(session.feed(hello).ok());
    CHECK_FALSE(session.feed("{\"error\":{\"class\":\"GenericError\",\"desc\":\"no\"},\"id\":1}\n").ok());
    CHECK(session.closed_because()->message() == "QMP session vm1: QMP qmp_capabilities: no (GenericError)");
}

TEST_CASE("qmp session: limits are the caller's") {
    Session session("vm1", {.line_bytes = 200, .depth = 8});
    REQUIRE(session.feed(hello).ok());
    REQUIRE(session.feed("{\"return\":{},\"id\":1}\n").ok());
    CHECK(session.feed("\r\n\n").ok());
    CHECK_FALSE(session.feed("{\"return\":[[[[[[[[[]]]]]]]]],\"id\":1}\n").ok());
    Session other("vm1", {.line_bytes = 20, .depth = 8});
    CHECK_FALSE(other.feed(std::string(21, ' ')).ok());
}
