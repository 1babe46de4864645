// The control socket and its blocking client: the server on this thread's event loop, clients on others.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <asio/io_context.hpp>
#include <filesystem>
#include <fstream>
#include <future>
#include <thread>

#include "base/bytes.h"
#include "base/control_client.h"
#include "peer/control_server.h"

using namespace banana;
using namespace banana::rpc;
using namespace std::chrono_literals;
namespace fs = std::filesystem;

namespace {

struct World {
    asio::io_context io{1};
    fs::path folder = fs::temp_directory_path() / ("banana-ctl-" + random_hex(8));
    std::string path = folder / "control.sock";
    Dispatcher methods;
    World() {
        fs::create_directory(folder);
        methods.on("echo", [](Context& context, Json params) -> asio::awaitable<Result<Json>> {
            if (!context.is_control) co_return Error(Errc::refused, "not the control socket");
            co_return params;
        });
        methods.on("fail", [](Context&, Json) -> asio::awaitable<Result<Json>> {
            co_return Error(Errc::exists, "corm lab: exists already");
        });
        methods.on("list", [](Context&, Json params) -> asio::awaitable<Result<Json>> {
            co_return std::string(static_cast<size_t>(params.as_int()), 'x');
        });
    }
    ~World() { fs::remove_all(folder); }
    ControlOptions options() const {
        ControlOptions out;
        out.path = path;
        return out;
    }
    // Runs a client's code on its own thread while the server's loop turns on this one.
    template <class Work>
    auto with_client(Work work) {
        auto result = std::async(std::launch::async, work);
        io.restart();
        while (result.wait_for(0s) != std::future_status::ready) io.run_one_for(10ms);
        return result.get();
    }
    template <class Condition>
    bool until(Condition condition) {
        const auto end = std::chrono::steady_clock::now() + 5s;
        io.restart();
        while (!condition() && std::chrono::steady_clock::now() < end) io.run_one_until(end);
        return condition();
    }
};

Fd raw_client(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof address.sun_path - 1);
    Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) fd.reset();
    return fd;
}

std::string read_to_end(int fd) {
    std::string out(1 << 16, '\0');
    size_t size = 0;
    for (ssize_t n = 1; n > 0 && size < out.size(); size += static_cast<size_t>(std::max<ssize_t>(n, 0)))
        n = ::read(fd, out.data() + size, out.size() - size);
    out.resize(size);
    return out;
}

}  // namespace

TEST_CASE("control socket: calls, errors, and its mode") {
    World world;
    ControlServer server(world.io, world.options(), world.methods);
    REQUIRE(server.start().ok());
    struct stat info {};
    REQUIRE(::stat(world.path.c_str(), &info) == 0);
    CHECK((info.st_mode & 07777) == 0600);
    world.with_client([&] {
        auto client = BlockingClient::connect(world.path, 2s);
        REQUIRE(client.ok());
        const auto answer = client->call("echo", Json::object({{"a", "b"}}), 2s);
        REQUIRE(answer.ok());
        CHECK(answer->get("a").as_string() == "b");
        const auto large = client->call("echo", std::string(900'000, 'x'), 5s);
        REQUIRE(large.ok());
        CHECK(large->as_string().size() == 900'000);
        const auto failed = client->call("fail", {}, 2s);
        CHECK(failed.error().code() == Errc::exists);
        CHECK(failed.error().message() == "corm lab: exists already");
        CHECK(client->call("nothing", {}, 2s).error().code() == Errc::unsupported);
        CHECK(client->call("echo", std::string(json_max_bytes, 'x'), 2s).error().code() == Errc::invalid);
        // A long list is an answer; the next call is served as ever.
        constexpr int64_t most = control_answer_max;
        const auto list = client->call("list", most - 100, 10s);
        REQUIRE(list.ok());
        CHECK(list->as_string().size() == most - 100);
        CHECK(client->call("list", most, 10s).error().message().ends_with("bytes; a message holds 16777216"));
        CHECK(client->call("fail", {}, 2s).error().code() == Errc::exists);
        return 0;
    });
    CHECK(world.until([&] { return server.connections() == 0; }));
    server.stop();
    CHECK_FALSE(fs::exists(world.path));
}

TEST_CASE("control socket: a second daemon is refused, a dead one's socket is replaced") {
    World world;
    ControlServer first(world.io, world.options(), world.methods);
    REQUIRE(first.start().ok());
    ControlServer second(world.io, world.options(), world.methods);
    const auto refused = second.start();
    REQUIRE_FALSE(refused.ok());
    CHECK(refused.error().code() == Errc::exists);
    CHECK(refused.error().message().find(world.path) != std::string::npos);
    CHECK(raw_client(world.path));  // the first still serves
    first.stop();

    {
        // What kill -9 leaves: a socket file that nobody listens on.
        const Fd dead(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        world.path.copy(address.sun_path, sizeof address.sun_path - 1);
        REQUIRE(::bind(dead.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
    }
    REQUIRE(fs::exists(world.path));
    CHECK(second.start().ok());
    CHECK(raw_client(world.path));
    second.stop();

    std::ofstream(world.path) << "a plain file";
    ControlServer third(world.io, world.options(), world.methods);
    CHECK(third.start().error().code() == Errc::exists);
    CHECK(fs::exists(world.path));
}

TEST_CASE("control socket: somebody else's server without our lock is left alone") {
    World world;
    const Fd other(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    world.path.copy(address.sun_path, sizeof address.sun_path - 1);
    REQUIRE(::bind(other.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
    REQUIRE(::listen(other.get(), 1) == 0);
    ControlServer server(world.io, world.options(), world.methods);
    CHECK(server.start().error().code() == Errc::exists);
    CHECK(fs::exists(world.path));
}

TEST_CASE("control socket: more connections than allowed are told so") {
    World world;
    auto options = world.options();
    options.max_connections = 3;
    ControlServer server(world.io, options, world.methods);
    REQUIRE(server.start().ok());
    std::vector<Fd> held;
    for (int i = 0; i < 3; ++i) held.push_back(raw_client(world.path));
    REQUIRE(world.until([&] { return server.connections() == 3; }));
    world.with_client([&] {
        auto client = BlockingClient::connect(world.path, 2s);
        REQUIRE(client.ok());
        const auto answer = client->call("echo", {}, 2s);
        CHECK(answer.error().code() == Errc::busy);
        return 0;
    });
    held.clear();
    CHECK(world.until([&] { return server.connections() == 0; }));
}

TEST_CASE("control socket: garbage costs its own connection only") {
    World world;
    ControlServer server(world.io, world.options(), world.methods);
    REQUIRE(server.start().ok());
    world.with_client([&] {
        auto good = BlockingClient::connect(world.path, 2s);
        REQUIRE(good.ok());
        for (int round = 0; round < 20; ++round) {
            const Fd bad = raw_client(world.path);
            REQUIRE(bad);
            std::string input(1 + random_u32() % 5000, '\0');
            random_bytes({reinterpret_cast<uint8_t*>(input.data()), input.size()});
            input += '\n';
            CHECK(::send(bad.get(), input.data(), input.size(), MSG_NOSIGNAL) > 0);
            CHECK(read_to_end(bad.get()).find("\"error\"") != std::string::npos);
            CHECK(good->call("echo", round, 2s).ok());
        }
        return 0;
    });
}

TEST_CASE("blocking client: nobody there, nobody answering, hung up") {
    World world;
    const auto nobody = BlockingClient::connect(world.path, 1s);
    REQUIRE_FALSE(nobody.ok());
    CHECK(nobody.error().code() == Errc::unreachable);
    CHECK(nobody.error().message().find(world.path) != std::string::npos);

    const Fd mute(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    world.path.copy(address.sun_path, sizeof address.sun_path - 1);
    REQUIRE(::bind(mute.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
    REQUIRE(::listen(mute.get(), 0) == 0);
    auto client = BlockingClient::connect(world.path, 1s);
    REQUIRE(client.ok());
    CHECK(client->call("echo", {}, 50ms).error().code() == Errc::timeout);
    const auto crowded = BlockingClient::connect(world.path, 50ms);  // the backlog is full
    CHECK(crowded.error().code() == Errc::timeout);

    const Fd accepted(::accept4(mute.get(), nullptr, nullptr, SOCK_CLOEXEC));
    const std::string late = R"({"jsonrpc":"2.0","id":1,"result":"late"})"
                             "\n"
                             R"({"jsonrpc":"2.0","method":"news"})"
                             "\n"
                             R"({"jsonrpc":"2.0","id":2,"result":"now"})"
                             "\n";
    REQUIRE(::send(accepted.get(), late.data(), late.size(), 0) == static_cast<ssize_t>(late.size()));
    const auto now = client->call("echo", {}, 1s);
    REQUIRE(now.ok());
    CHECK(now->as_string() == "now");
    ::shutdown(accepted.get(), SHUT_RDWR);
    CHECK(client->call("echo", {}, 1s).error().code() == Errc::unreachable);
}
