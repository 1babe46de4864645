// Peers that ought to understand each other: two and three hosts (test_peer_lab.h draws them), restarts, deaths.
#include <sys/wait.h>

#include <asio/redirect_error.hpp>
#include <asio/steady_timer.hpp>
#include <asio/use_awaitable.hpp>
#include <csignal>

#include "test_peer_lab.h"

using namespace banana;
using namespace banana::peer_test;

namespace {

// A host in a process of its own, which can be killed or stopped. Dies with the test's thread.
class Child {
public:
    Child(Lab& lab, const std::string& name) {
        const auto& host = lab.hosts.at(name);
        pid_ = ::fork();
        if (pid_ != 0) return;
        ::alarm(60);
        asio::io_context io(1);
        rpc::Dispatcher methods;
        methods.on("hang", [&io](rpc::Context&, Json) -> asio::awaitable<Result<Json>> {
            asio::steady_timer timer(io, 1h);
            asio::error_code ignored;
            co_await timer.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
            co_return Json();
        });
        peer::Peers peers(io, host.config, methods);
        if (!peers.start()) ::_exit(1);
        io.run();
        ::_exit(0);
    }
    ~Child() {
        signal(SIGKILL);
        ::waitpid(pid_, nullptr, 0);
    }
    Child(const Child&) = delete;
    Child& operator=(const Child&) = delete;
    void signal(int number) const {
        if (pid_ > 0) ::kill(pid_, number);
    }

private:
    pid_t pid_ = -1;
};

}  // namespace

TEST_CASE("peers: three hosts find each other, call both ways and know who asks") {
    in_own_netns([] {
        Lab lab;
        const std::vector<std::string> names{"hv1", "hv2", "hv3"};
        for (int i = 1; i <= 3; ++i) lab.add(i, 3);
        for (const auto& name : names) lab.start(name);
        for (const auto& from : names)
            for (const auto& to : names)
                if (from != to) REQUIRE(lab.until([&] { return lab.up(from, to); }));
        for (const auto& from : names) {
            for (const auto& to : names) {
                if (from == to) continue;
                const auto answer = lab.ask(from, to, "whoami", {});
                REQUIRE(lab.until([&] { return answer->has_value(); }));
                REQUIRE((*answer)->ok());
                CHECK((**answer)->as_string() == from + "/controller");
                const Json entry = lab.entry(from, to);
                CHECK(entry.get("info").get("site").as_string() == "site-" + to);
                CHECK(entry.get("info").get("capabilities").get("formats").at(0).as_string() == "vxlan");
                CHECK(entry.get("certificate").get("host").as_string() == to);
                CHECK(lab.until([&] { return lab.entry(from, to).get("incoming").as_bool(); }));
                CHECK(lab.until([&] { return lab.entry(from, to).get("rtt_us").as_int() > 0; }));
            }
        }
        const auto unknown = lab.ask("hv1", "hv9", "whoami", {});
        const auto method = lab.ask("hv1", "hv2", "no.such", {});
        REQUIRE(lab.until([&] { return *unknown && *method; }));
        CHECK((*unknown)->error().code() == Errc::not_found);
        CHECK((*method)->error().code() == Errc::unsupported);
        CHECK(lab.up("hv1", "hv2"));
    });
}

TEST_CASE("peers: new capabilities are told, and a large message passes") {
    in_own_netns([] {
        Lab lab;
        lab.add(1, 2);
        lab.add(2, 2);
        lab.start("hv1");
        lab.start("hv2");
        REQUIRE(lab.until([&] { return lab.up("hv1", "hv2") && lab.up("hv2", "hv1"); }));
        std::string changed;
        lab.at("hv2").on_changed([&](const std::string& peer) { changed = peer; });
        lab.at("hv1").set_capabilities(Json::object({{"mtu", 9000}}));
        CHECK(lab.until([&] { return changed == "hv1"; }));
        CHECK(lab.at("hv2").info("hv1").get("capabilities").get("mtu").as_int() == 9000);
        const auto large = lab.ask("hv1", "hv2", "echo", std::string(1'000'000, 'x'));
        REQUIRE(lab.until([&] { return large->has_value(); }));
        REQUIRE((*large)->ok());
        CHECK((**large)->as_string().size() == 1'000'000);
    });
}

TEST_CASE("peers: a host that goes and comes back is down with the reason, then up") {
    in_own_netns([] {
        Lab lab;
        lab.add(1, 2);
        lab.add(2, 2);
        lab.start("hv1");
        CHECK(lab.until([&] { return lab.error("hv1", "hv2").find("Connection refused") != std::string::npos; }));
        CHECK(lab.state("hv1", "hv2") == "connecting");
        const auto early = lab.ask("hv1", "hv2", "echo", {});
        REQUIRE(lab.until([&] { return early->has_value(); }));
        CHECK((*early)->error().code() == Errc::unreachable);
        CHECK((*early)->error().message().find("Connection refused") != std::string::npos);
        lab.start("hv2");
        REQUIRE(lab.until([&] { return lab.up("hv1", "hv2") && lab.up("hv2", "hv1"); }));
        CHECK(lab.error("hv1", "hv2") == "");  // what is up has no problem
        CHECK(lab.error("hv2", "hv1") == "");
        CHECK_FALSE(lab.entry("hv1", "hv2").has("last_loss"));
        lab.stop("hv2");
        REQUIRE(lab.until([&] { return lab.state("hv1", "hv2") != "up"; }, 1s));
        const std::string loss = lab.error("hv1", "hv2");
        CHECK(loss != "");
        lab.start("hv2");
        REQUIRE(lab.until([&] { return lab.up("hv1", "hv2") && lab.up("hv2", "hv1"); }));
        CHECK(lab.error("hv1", "hv2") == "");
        CHECK(lab.entry("hv1", "hv2").get("last_loss").as_string() == loss);
        CHECK(lab.hosts.at("hv1").events == "+hv2 -hv2 +hv2 ");
        const auto after = lab.ask("hv1", "hv2", "echo", 7);
        REQUIRE(lab.until([&] { return after->has_value(); }));
        CHECK((**after)->as_int() == 7);
    });
}

TEST_CASE("peers: a controller killed in the middle of a call") {
    in_own_netns([] {
        Lab lab;
        lab.add(1, 2);
        lab.add(2, 2);
        const Child child(lab, "hv2");
        lab.start("hv1");
        REQUIRE(lab.until([&] { return lab.up("hv1", "hv2"); }));
        const auto call = lab.ask("hv1", "hv2", "hang", {}, 30s);
        REQUIRE_FALSE(lab.until([&] { return call->has_value(); }, 200ms));
        child.signal(SIGKILL);
        REQUIRE(lab.until([&] { return call->has_value(); }, 2s));
        CHECK((*call)->error().code() == Errc::unreachable);
        CHECK(lab.until([&] { return lab.hosts.at("hv1").events == "+hv2 -hv2 "; }, 1s));
    });
}

TEST_CASE("peers: a controller that is silent, its connection open, is noticed within 5 s") {
    in_own_netns([] {
        Lab lab;
        lab.add(1, 2);
        lab.add(2, 2);
        const Child child(lab, "hv2");
        lab.start("hv1");
        REQUIRE(lab.until([&] { return lab.up("hv1", "hv2") && lab.entry("hv1", "hv2").get("incoming").as_bool(); }));
        const auto call = lab.ask("hv1", "hv2", "hang", {}, 30s);
        child.signal(SIGSTOP);
        CHECK(lab.until([&] { return !lab.up("hv1", "hv2"); }, 5s));
        CHECK(lab.until([&] { return call->has_value(); }, 1s));
        CHECK(lab.until([&] { return !lab.entry("hv1", "hv2").get("incoming").as_bool(); }, 3s));
        child.signal(SIGCONT);
        CHECK(lab.until([&] { return lab.up("hv1", "hv2"); }));
    });
}

TEST_CASE("peers: an underlay that takes no frames is noticed within 5 s, and its return") {
    in_own_netns([] {
        Lab lab;
        lab.add(1, 2);
        lab.add(2, 2);
        lab.start("hv1");
        lab.start("hv2");
        REQUIRE(lab.until([&] { return lab.up("hv1", "hv2") && lab.up("hv2", "hv1"); }));
        REQUIRE(set_loopback(false));
        CHECK(lab.until([&] { return !lab.up("hv1", "hv2") && !lab.up("hv2", "hv1"); }, 5s));
        REQUIRE(set_loopback(true));
        CHECK(lab.until([&] { return lab.up("hv1", "hv2") && lab.up("hv2", "hv1"); }));
    });
}

TEST_CASE("peers: 500 calls under way at once, each answered with its own") {
    in_own_netns([] {
        Lab lab;
        lab.add(1, 2);
        lab.add(2, 2);
        lab.start("hv1");
        lab.start("hv2");
        REQUIRE(lab.until([&] { return lab.up("hv1", "hv2") && lab.up("hv2", "hv1"); }));
        std::vector<Lab::Answer> answers;
        for (int i = 0; i < 500; ++i)
            answers.push_back(lab.ask(i % 2 == 0 ? "hv1" : "hv2", i % 2 == 0 ? "hv2" : "hv1", "echo", i));
        for (int i = 0; i < 500; ++i) {
            REQUIRE(lab.until([&] { return answers[static_cast<size_t>(i)]->has_value(); }));
            const auto& answer = **answers[static_cast<size_t>(i)];
            if (answer)
                CHECK(answer->as_int() == i);
            else
                CHECK(answer.error().code() == Errc::busy);  // more than the other end serves at once
        }
    });
}

TEST_CASE("peers: IPv6, and :: for both families") {
    in_own_netns([] {
        Lab lab;
        lab.add(1, 2).config.listen = "::";
        auto& second = lab.add(2, 2);
        second.config.listen = "::1";
        second.config.port = 7472;
        second.config.peers[0].address = "::1";
        lab.hosts.at("hv1").config.peers[0].address = "::1";
        lab.hosts.at("hv1").config.peers[0].port = 7472;
        lab.start("hv1");
        lab.start("hv2");
        CHECK(lab.until([&] { return lab.up("hv1", "hv2") && lab.up("hv2", "hv1"); }));
        lab.stop("hv2");
        second.config.peers[0].address = "127.0.0.1";
        lab.start("hv2");
        CHECK(lab.until([&] { return lab.up("hv1", "hv2") && lab.up("hv2", "hv1"); }));
    });
}

TEST_CASE("peers: one that is added while others are up is dialled, and let in") {
    in_own_netns([] {
        Lab lab;
        for (int i = 1; i <= 3; ++i) lab.add(i, 3);
        lab.hosts.at("hv1").config.peers.pop_back();
        for (const auto* name : {"hv1", "hv2", "hv3"}) lab.start(name);
        REQUIRE(lab.until([&] { return lab.up("hv1", "hv2") && lab.state("hv3", "hv1") == "refused"; }));
        CHECK(lab.at("hv1").names() == std::vector<std::string>{"hv2"});
        lab.at("hv1").add({"hv3", "127.0.0.3"});
        lab.at("hv1").add({"hv2", "127.0.0.9"});  // known: it stays what it is
        REQUIRE(lab.until([&] { return lab.up("hv1", "hv3") && lab.up("hv3", "hv1"); }));
        CHECK(lab.up("hv1", "hv2"));
        CHECK(lab.entry("hv1", "hv2").get("address").as_string() == "127.0.0.2");
        CHECK(lab.hosts.at("hv1").events == "+hv2 +hv3 ");
    });
}
