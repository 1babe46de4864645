// Controllers' peers in one process and one event loop, each on a loopback address of a network namespace of its own:
//
//    hv1 127.0.0.1:7471 ---+
//    hv2 127.0.0.2:7471 ---+--- lo (up), netns of the test's thread
//    hv3 127.0.0.3:7471 ---+
//
// The namespace belongs to a thread and goes with it, however the process ends.
#pragma once

#include <doctest/doctest.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <asio/io_context.hpp>
#include <chrono>
#include <ctime>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "base/bytes.h"
#include "base/fd.h"
#include "peer/peers.h"
#include "peer/spawn.h"
#include "pki/issue.h"

namespace banana::peer_test {

using namespace std::chrono_literals;
namespace fs = std::filesystem;

inline bool set_loopback(bool up) {
    const Fd fd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    ifreq request{};
    std::string("lo").copy(request.ifr_name, IFNAMSIZ - 1);
    request.ifr_flags = up ? IFF_UP : 0;
    return fd && ::ioctl(fd.get(), SIOCSIFFLAGS, &request) == 0;
}

// Runs `test` on a thread in a new network namespace. A failed REQUIRE ends the test there, and is reported here.
template <class Test>
void in_own_netns(Test test) {
    bool done = false;
    std::thread thread([&] {
        try {
            REQUIRE(::unshare(CLONE_NEWNET) == 0);
            REQUIRE(set_loopback(true));
            test();
            done = true;
        } catch (...) {  // doctest's own; it has said what failed
        }
    });
    thread.join();
    CHECK(done);
}

struct Lab {
    struct Host {
        peer::Config config;
        rpc::Dispatcher methods;
        std::unique_ptr<peer::Peers> peers;
        std::string events;  // "+hv2 -hv2 ..."
    };
    using Answer = std::shared_ptr<std::optional<Result<Json>>>;

    fs::path folder = fs::temp_directory_path() / ("banana-peer-" + random_hex(8));
    std::string pki = folder / "pki";
    asio::io_context io{1};
    std::map<std::string, Host> hosts;

    Lab() {
        fs::create_directory(folder);
        pki::InitOptions options;
        options.dir = pki;
        REQUIRE(pki::init(options).ok());
    }
    ~Lab() {
        for (auto& [name, host] : hosts)
            if (host.peers) host.peers->stop();
        io.restart();
        io.run_for(100ms);
        fs::remove_all(folder);
    }

    pki::IssueOptions certificate(const std::string& name) const {
        pki::IssueOptions options;
        options.host = name;
        options.dir = pki;
        options.overwrite = true;
        return options;
    }

    // A host of the lab with a good certificate that knows hv1 ... hvN but itself; not started.
    Host& add(int number, int total) {
        const std::string name = "hv" + std::to_string(number);
        REQUIRE(pki::issue(certificate(name)).ok());
        Host& host = hosts[name];
        peer::Config& config = host.config;
        config.host = name;
        config.site = "site-" + name;
        config.version = "0.1";
        config.listen = "127.0.0." + std::to_string(number);
        config.ca = pki + "/ca.crt";
        config.certificate = pki + "/" + name + ".crt";
        config.key = pki + "/" + name + ".key";
        config.capabilities = Json::object({{"formats", Json::array({"vxlan"})}});
        for (int other = 1; other <= total; ++other)
            if (other != number)
                config.peers.push_back({"hv" + std::to_string(other), "127.0.0." + std::to_string(other)});
        host.methods.on("whoami", [](rpc::Context& context, Json) -> asio::awaitable<Result<Json>> {
            co_return Json(context.peer + "/" + context.role + (context.is_control ? "/control" : ""));
        });
        host.methods.on("echo", [](rpc::Context&, Json params) -> asio::awaitable<Result<Json>> { co_return params; });
        return host;
    }

    void start(const std::string& name) {
        Host& host = hosts.at(name);
        host.peers = std::make_unique<peer::Peers>(io, host.config, host.methods);
        host.peers->on_up([&host](const std::string& peer) { host.events += "+" + peer + " "; });
        host.peers->on_down([&host](const std::string& peer) { host.events += "-" + peer + " "; });
        const Status started = host.peers->start();
        if (!started) FAIL_CHECK(started.error().message());
        REQUIRE(started.ok());
    }
    void stop(const std::string& name) { hosts.at(name).peers.reset(); }

    peer::Peers& at(const std::string& name) { return *hosts.at(name).peers; }
    bool up(const std::string& from, const std::string& to) { return at(from).is_up(to); }

    Json entry(const std::string& from, const std::string& to) {
        const Json all = at(from).status();
        for (size_t i = 0; i < all.size(); ++i)
            if (all.at(i).get("name").as_string() == to) return all.at(i);
        return {};
    }
    std::string state(const std::string& from, const std::string& to) {
        return entry(from, to).get("state").as_string();
    }
    std::string error(const std::string& from, const std::string& to) {
        return entry(from, to).get("error").as_string();
    }

    template <class Condition>
    bool until(Condition condition, std::chrono::milliseconds limit = 10s) {
        const auto end = std::chrono::steady_clock::now() + limit;
        io.restart();
        while (!condition() && std::chrono::steady_clock::now() < end) io.run_one_until(end);
        return condition();
    }

    Answer ask(const std::string& from, const std::string& to, std::string method, Json params,
               std::chrono::milliseconds limit = 5s) {
        auto answer = std::make_shared<std::optional<Result<Json>>>();
        rpc::spawn(io.get_executor(), asking(at(from), to, std::move(method), std::move(params), limit, answer), "ask");
        return answer;
    }
    static asio::awaitable<void> asking(peer::Peers& from, std::string to, std::string method, Json params,
                                        std::chrono::milliseconds limit, Answer answer) {
        *answer = co_await from.call(to, method, params, limit);
    }
};

}  // namespace banana::peer_test
