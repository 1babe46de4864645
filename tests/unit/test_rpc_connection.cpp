// Two ends of a UNIX socket pair on one event loop: an rpc::Connection on each, or a bare socket on one of them.
#include <doctest/doctest.h>
#include <sys/socket.h>

#include <asio/io_context.hpp>
#include <asio/local/connect_pair.hpp>
#include <asio/local/stream_protocol.hpp>
#include <asio/redirect_error.hpp>
#include <asio/steady_timer.hpp>
#include <asio/use_awaitable.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "peer/codec.h"
#include "peer/rpc.h"
#include "peer/spawn.h"
#include "peer/streams.h"

using namespace banana;
using namespace banana::rpc;
using namespace std::chrono_literals;
using Local = asio::local::stream_protocol;

namespace {

Error explain(const asio::error_code& code) { return {Errc::unreachable, code.message()}; }

std::unique_ptr<Stream> stream_of(Local::socket socket) {
    return std::make_unique<AsioStream<Local::socket>>(std::move(socket), explain);
}

Context context_of(const std::string& peer) {
    Context context;
    context.peer = context.from = peer;
    return context;
}

struct World {
    asio::io_context io{1};
    Dispatcher methods;
    std::vector<std::string> log;  // what handlers did, in order
    std::vector<std::shared_ptr<asio::steady_timer>> gates;

    World() {
        methods.on("echo", [](Context&, Json params) -> asio::awaitable<Result<Json>> { co_return params; });
        methods.on("fail", [](Context&, Json) -> asio::awaitable<Result<Json>> {
            co_return Error(Errc::refused, "no such right");
        });
        methods.on("throw", [](Context&, Json) -> asio::awaitable<Result<Json>> {
            throw std::runtime_error("bug");
            co_return Json();
        });
        methods.on("wait", [this](Context&, Json params) -> asio::awaitable<Result<Json>> {
            log.push_back("begin " + params.get("n").as_string());
            auto gate = std::make_shared<asio::steady_timer>(io, 1h);
            gates.push_back(gate);
            asio::error_code ignored;
            co_await gate->async_wait(asio::redirect_error(asio::use_awaitable, ignored));
            log.push_back("end " + params.get("n").as_string());
            co_return params;
        });
        methods.on("big", [](Context&, Json params) -> asio::awaitable<Result<Json>> {
            co_return Json(std::string(static_cast<size_t>(params.get("size").as_int()), 'x'));
        });
    }

    template <class Condition>
    bool until(Condition condition, std::chrono::milliseconds limit = 5s) {
        const auto end = std::chrono::steady_clock::now() + limit;
        io.restart();
        while (!condition() && std::chrono::steady_clock::now() < end) io.run_one_until(end);
        return condition();
    }

    // Starts a call; the answer appears in the optional.
    std::shared_ptr<std::optional<Result<Json>>> ask(const std::shared_ptr<Connection>& from, std::string method,
                                                     Json params, std::chrono::milliseconds limit = 5s) {
        auto answer = std::make_shared<std::optional<Result<Json>>>();
        spawn(io.get_executor(), asking(from, std::move(method), std::move(params), limit, answer), "test call");
        return answer;
    }
    static asio::awaitable<void> asking(std::shared_ptr<Connection> from, std::string method, Json params,
                                        std::chrono::milliseconds limit,
                                        std::shared_ptr<std::optional<Result<Json>>> answer) {
        *answer = co_await from->call(method, params, limit);
    }
};

struct Pair : World {
    std::shared_ptr<Connection> left, right;
    std::optional<Error> left_end, right_end;
    explicit Pair(Limits limits = {}) {
        Local::socket a(io), b(io);
        asio::local::connect_pair(a, b);
        left = Connection::start(stream_of(std::move(a)), methods, context_of("left"), limits,
                                 [this](const Error& why) { left_end = why; });
        right = Connection::start(stream_of(std::move(b)), methods, context_of("right"), limits,
                                  [this](const Error& why) { right_end = why; });
    }
    ~Pair() {
        left->close(Error("test over"));
        right->close(Error("test over"));
        for (auto& gate : gates) gate->cancel();
        until([&] { return left.use_count() == 1 && right.use_count() == 1; }, 2s);
    }
};

// A connection whose other end is a plain socket that the test writes to and reads from.
struct Bare : World {
    Local::socket socket{io};
    std::shared_ptr<Connection> served;
    std::optional<Error> end;
    std::string heard;
    bool finished = false;
    explicit Bare(Limits limits = {}) {
        Local::socket other(io);
        asio::local::connect_pair(socket, other);
        served = Connection::start(stream_of(std::move(other)), methods, context_of("bare"), limits,
                                   [this](const Error& why) { end = why; });
    }
    ~Bare() {
        served->close(Error("test over"));
        for (auto& gate : gates) gate->cancel();
        asio::error_code ignored;
        socket.close(ignored);
        until([&] { return served.use_count() == 1; }, 2s);
    }
    void send(std::string text) { spawn(io.get_executor(), sending(std::move(text)), "test writer"); }
    asio::awaitable<void> sending(std::string text) {
        asio::error_code ignored;
        co_await asio::async_write(socket, asio::buffer(text), asio::redirect_error(asio::use_awaitable, ignored));
    }
    void listen() { spawn(io.get_executor(), hearing(), "test reader"); }
    asio::awaitable<void> hearing() {
        std::array<char, 4096> chunk;
        asio::error_code code;
        while (!code) {
            const size_t n =
                co_await socket.async_read_some(asio::buffer(chunk), asio::redirect_error(asio::use_awaitable, code));
            heard.append(chunk.data(), n);
        }
        finished = true;
    }
};

}  // namespace

TEST_CASE("rpc: both ends call and serve") {
    Pair pair;
    const auto one = pair.ask(pair.left, "echo", Json::object({{"a", 1}}));
    const auto two = pair.ask(pair.right, "echo", "text");
    const auto failed = pair.ask(pair.left, "fail", {});
    const auto unknown = pair.ask(pair.left, "no.such", {});
    REQUIRE(pair.until([&] { return *one && *two && *failed && *unknown; }));
    CHECK((**one)->get("a").as_int() == 1);
    CHECK((**two)->as_string() == "text");
    CHECK((*failed)->error().code() == Errc::refused);
    CHECK((*failed)->error().message() == "no such right");
    CHECK((*unknown)->error().code() == Errc::unsupported);
    CHECK((*unknown)->error().message().find("no.such") != std::string::npos);
    CHECK(pair.left->is_open());
    const auto thrown = pair.ask(pair.left, "throw", {});
    REQUIRE(pair.until([&] { return thrown->has_value(); }));
    CHECK((*thrown)->error().code() == Errc::failed);
    CHECK(pair.right->is_open());
}

TEST_CASE("rpc: requests begin in order, a slow one holds up nobody, answers find their calls") {
    Pair pair;
    std::vector<std::shared_ptr<std::optional<Result<Json>>>> waits;
    for (const char* n : {"1", "2", "3"}) waits.push_back(pair.ask(pair.left, "wait", Json::object({{"n", n}})));
    const auto quick = pair.ask(pair.left, "echo", "quick");
    REQUIRE(pair.until([&] { return quick->has_value() && pair.gates.size() == 3; }));
    CHECK_FALSE(waits[0]->has_value());
    CHECK(pair.right->serving() == 3);
    for (const size_t i : {2u, 0u, 1u}) {
        pair.gates[i]->cancel();
        REQUIRE(pair.until([&] { return waits[i]->has_value(); }));
        CHECK((**waits[i])->get("n").as_string() == std::to_string(i + 1));
    }
    CHECK(pair.log == std::vector<std::string>{"begin 1", "begin 2", "begin 3", "end 3", "end 1", "end 2"});
}

TEST_CASE("rpc: a call's time-out leaves the connection; the late answer goes nowhere") {
    Pair pair;
    const auto late = pair.ask(pair.left, "wait", Json::object({{"n", "1"}}), 30ms);
    REQUIRE(pair.until([&] { return late->has_value(); }));
    CHECK((*late)->error().code() == Errc::timeout);
    pair.gates.at(0)->cancel();
    const auto after = pair.ask(pair.left, "echo", "after");
    REQUIRE(pair.until([&] { return after->has_value(); }));
    CHECK((**after)->as_string() == "after");
}

TEST_CASE("rpc: when a connection ends, its calls end with the reason; what is in service goes on") {
    Pair pair;
    const auto call = pair.ask(pair.left, "wait", Json::object({{"n", "1"}}));
    REQUIRE(pair.until([&] { return pair.gates.size() == 1; }));
    SUBCASE("closed here") { pair.left->close(Error(Errc::unreachable, "cable cut")); }
    SUBCASE("closed there") { pair.right->close(Error(Errc::unreachable, "cable cut")); }
    REQUIRE(pair.until([&] { return call->has_value() && pair.left_end; }));
    CHECK((*call)->error().code() == Errc::unreachable);
    CHECK_FALSE(pair.left->is_open());
    const auto after = pair.ask(pair.left, "echo", {});
    REQUIRE(pair.until([&] { return after->has_value(); }));
    CHECK((*after)->error().code() == Errc::unreachable);
    CHECK(pair.log.size() == 1);
    pair.gates[0]->cancel();
    CHECK(pair.until([&] { return pair.log.size() == 2; }));
    CHECK(pair.until([&] { return pair.right_end.has_value(); }));
}

TEST_CASE("rpc: too many requests at once are answered busy") {
    Limits limits;
    limits.max_serving = 2;
    Pair pair(limits);
    std::vector<std::shared_ptr<std::optional<Result<Json>>>> calls;
    for (const char* n : {"1", "2", "3"}) calls.push_back(pair.ask(pair.left, "wait", Json::object({{"n", n}})));
    REQUIRE(pair.until([&] { return calls[2]->has_value(); }));
    CHECK((*calls[2])->error().code() == Errc::busy);
    CHECK_FALSE(calls[0]->has_value());
    CHECK(pair.right->is_open());
}

TEST_CASE("rpc: messages over the limit are refused on the way out, and an answer becomes an error") {
    Pair pair;
    const auto request = pair.ask(pair.left, "echo", std::string(json_max_bytes, 'x'));
    const auto answer = pair.ask(pair.left, "big", Json::object({{"size", int64_t{json_max_bytes}}}));
    const auto large = pair.ask(pair.left, "big", Json::object({{"size", int64_t{json_max_bytes - 100}}}));
    REQUIRE(pair.until([&] { return *request && *answer && *large; }));
    CHECK((*request)->error().code() == Errc::invalid);
    CHECK((*answer)->error().code() == Errc::failed);
    CHECK((**large)->as_string().size() == json_max_bytes - 100);
    CHECK(pair.left->is_open());
}

TEST_CASE("rpc: malformed input is answered and ends its connection") {
    struct Row {
        std::string input;
        int code;
    };
    const std::string deep =
        R"({"jsonrpc":"2.0","id":1,"method":"echo","params":)" + std::string(40, '[') + std::string(40, ']') + "}\n";
    const std::vector<Row> rows{{"garbage\n", code_parse_error},
                                {std::string("\0\x01\xff\n", 4), code_parse_error},
                                {deep, code_parse_error},
                                {"[1,2]\n", code_invalid_request},
                                {R"({"jsonrpc":"2.0","id":1})"
                                 "\n",
                                 code_invalid_request},
                                {std::string(3'000'000, 'x'), code_invalid_request},
                                {std::string(3'000'000, 'x') + "\n", code_invalid_request}};
    for (const Row& row : rows) {
        CAPTURE(row.input.substr(0, 40));
        Bare bare;
        bare.listen();
        bare.send(row.input);
        REQUIRE(bare.until([&] { return bare.finished; }));
        const auto reply = Json::parse(bare.heard);
        REQUIRE(reply.ok());
        CHECK(reply->get("error").get("code").as_int() == row.code);
        asio::error_code ignored;
        bare.socket.close(ignored);
        CHECK(bare.until([&] { return bare.end.has_value(); }));
    }
}

TEST_CASE("rpc: input cut off inside a message is answered; a half-closed client gets its answers") {
    Bare bare;
    bare.listen();
    std::string input = encode_request(1, "echo", "whole");
    std::string want = R"("result":"whole")";
    SUBCASE("cut") {
        input += "{\"jsonrpc\"";
        want = "ended inside a message";
    }
    SUBCASE("whole") {}
    REQUIRE(::send(bare.socket.native_handle(), input.data(), input.size(), 0) == static_cast<ssize_t>(input.size()));
    bare.socket.shutdown(asio::socket_base::shutdown_send);
    REQUIRE(bare.until([&] { return bare.finished; }));
    CHECK(bare.heard.find(want) != std::string::npos);
    CHECK(bare.heard.find(R"("result":"whole")") != std::string::npos);
    CHECK(bare.until([&] { return bare.end.has_value(); }));
}

TEST_CASE("rpc: a half-closed client's request in service is still answered") {
    Bare bare;
    bare.listen();
    bare.send(encode_request(1, "wait", Json::object({{"n", "1"}})));
    REQUIRE(bare.until([&] { return bare.gates.size() == 1; }));
    bare.socket.shutdown(asio::socket_base::shutdown_send);
    REQUIRE(bare.until([&] { return !bare.served->is_open(); }));
    CHECK_FALSE(bare.end.has_value());
    bare.gates[0]->cancel();
    CHECK(bare.until([&] { return bare.finished; }));
    CHECK(bare.heard.find("\"result\"") != std::string::npos);
}

TEST_CASE("rpc: clients that do not read, do not end a line, or stay silent are closed") {
    Limits limits;
    limits.max_queued = 1 << 20;
    limits.line_timeout = limits.idle_timeout = limits.write_timeout = 1h;
    limits.linger = 100ms;
    std::string input;
    std::string why;
    bool more = false;
    SUBCASE("does not read, much") {
        for (int i = 0; i < 40; ++i) input += encode_request(i, "big", Json::object({{"size", 100'000}}));
        why = "does not read";
    }
    SUBCASE("does not read, long") {
        limits.write_timeout = 300ms;
        for (int i = 0; i < 8; ++i) input += encode_request(i, "big", Json::object({{"size", 100'000}}));
        why = "does not read";
    }
    SUBCASE("half a line") {
        limits.line_timeout = 300ms;
        input = "{\"jsonrpc\"";
        why = "not ended in time";
    }
    SUBCASE("silent") {
        limits.idle_timeout = 300ms;
        input = encode_request(1, "echo", {});
        why = "silent";
    }
    SUBCASE("goes on sending after an error") {
        input = "garbage\n";
        why = "malformed";
        more = true;
    }
    Bare bare(limits);
    bare.send(input);
    if (more) bare.send(std::string(1 << 20, 'x'));
    REQUIRE(bare.until([&] { return bare.end.has_value(); }));
    CHECK(bare.end->message().find(why) != std::string::npos);
}

TEST_CASE("rpc: a request in service keeps a silent client") {
    Limits limits;
    limits.idle_timeout = 300ms;
    Bare bare(limits);
    bare.listen();
    bare.send(encode_request(1, "wait", Json::object({{"n", "1"}})));
    REQUIRE(bare.until([&] { return bare.gates.size() == 1; }));
    CHECK_FALSE(bare.until([&] { return bare.end.has_value(); }, 900ms));
    bare.gates[0]->cancel();
    CHECK(bare.until([&] { return bare.end.has_value(); }));
    CHECK(bare.heard.find("\"result\"") != std::string::npos);
}

TEST_CASE("rpc: random bytes end in an answer or a close, never in anything else") {
    for (int round = 0; round < 60; ++round) {
        Bare bare;
        bare.listen();
        std::string input = encode_request(1, "echo", Json::object({{"a", "b"}})) + "\n" + encode_notification("x", {});
        for (int n = 0; n < 8; ++n) input[random_u32() % input.size()] = static_cast<char>(random_u32());
        bare.send(input);
        asio::error_code ignored;
        REQUIRE(bare.until([&] { return !bare.heard.empty() || bare.served->serving() == 0; }));
        bare.socket.shutdown(asio::socket_base::shutdown_send, ignored);
        REQUIRE(bare.until([&] { return bare.end.has_value(); }));
    }
}
