// Tunnel, bananad's side of banana-tunneld's control socket, against a stand-in for banana-tunneld.
//
//   a namespace:  bnd0000000a, bnd0000000b ... (taps)
//   Tunnel -- UNIX socket, SEQPACKET -- FakeTunneld (a thread): answers from a table, keeps what it was told
#include "controller/tunnel.h"

#include <doctest/doctest.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <asio/co_spawn.hpp>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <thread>

#include "base/clock.h"
#include "model/names.h"
#include "registry/store.h"
#include "test_netlink_world.h"
#include "tunnel/control.h"

using namespace banana;
using namespace banana::controller;
using namespace std::chrono_literals;
using netlink::why;

namespace {

// Accepts one controller after the other. Everything that `mutex` guards may be looked at meanwhile.
class FakeTunneld {
public:
    explicit FakeTunneld(const std::string& path) : listening_(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)) {
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        path.copy(address.sun_path, sizeof address.sun_path - 1);
        REQUIRE(::bind(listening_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
        REQUIRE(::listen(listening_.get(), 4) == 0);
        REQUIRE(::pipe2(end_, O_CLOEXEC) == 0);
        thread_ = std::thread([this] { serve(); });
    }
    FakeTunneld(const FakeTunneld&) = delete;
    ~FakeTunneld() {
        ::close(end_[1]);
        thread_.join();
        ::close(end_[0]);
    }

    struct Heard {
        std::string method;
        Json params;
        std::vector<std::string> taps;  // the devices of the queues that came with it
        size_t descriptors = 0;
    };
    std::mutex mutex;
    std::vector<std::string> heard;            // "wire.add 0000000a bnd0000000a*2", in order
    std::map<std::string, std::string> wires;  // connector -> JSON
    std::string configured;                    // JSON; "": null
    bool silent = false;                       // reads, and does not answer
    bool hang_up = false;                      // ends the connection at the next request
    std::string peer_state = "up", peer_reason;
    std::string behind_status;  // an event right behind that answer
    int connections = 0;

private:
    bool wait(int fd) {
        pollfd on[2] = {{fd, POLLIN, 0}, {end_[0], POLLIN | POLLHUP, 0}};
        return ::poll(on, 2, -1) > 0 && on[1].revents == 0;
    }

    void serve() {
        while (wait(listening_.get())) {
            const Fd controller(::accept4(listening_.get(), nullptr, nullptr, SOCK_CLOEXEC));
            {
                const std::lock_guard lock(mutex);
                ++connections;
            }
            while (wait(controller.get()))
                if (!serve_one(controller.get())) break;
        }
    }

    bool serve_one(int socket) {
        std::vector<char> text(tunnel::control_max);
        alignas(cmsghdr) char rights[CMSG_SPACE(tunnel::control_fds_max * sizeof(int))];
        iovec part{text.data(), text.size()};
        msghdr message{};
        message.msg_iov = &part;
        message.msg_iovlen = 1;
        message.msg_control = rights;
        message.msg_controllen = sizeof rights;
        const ssize_t got = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
        if (got <= 0) return false;
        std::vector<Fd> fds;
        if (const cmsghdr* part_of = CMSG_FIRSTHDR(&message); part_of != nullptr)
            for (size_t i = 0; i < (part_of->cmsg_len - CMSG_LEN(0)) / sizeof(int); ++i) {
                int fd = -1;
                std::memcpy(&fd, CMSG_DATA(part_of) + i * sizeof(int), sizeof fd);
                fds.emplace_back(fd);
            }
        const Json request = *Json::parse(std::string_view(text.data(), static_cast<size_t>(got)));
        const std::lock_guard lock(mutex);
        const Json result = answer(request, fds);
        if (hang_up) return hang_up = false;
        if (silent) return true;
        const std::string reply = Json::object({{"id", request.get("id")}, {"result", result}}).dump();
        if (::send(socket, reply.data(), reply.size(), MSG_NOSIGNAL) <= 0) return false;
        if (behind_status.empty() || request.get("method").as_string() != "status") return true;
        return ::send(socket, behind_status.data(), behind_status.size(), MSG_NOSIGNAL) > 0;
    }

    Json answer(const Json& request, const std::vector<Fd>& fds) {
        const std::string method = request.get("method").as_string();
        const Json params = request.get("params");
        const std::string connector = params.get("connector").as_string();
        std::string line = method + (connector.empty() ? "" : " " + connector);
        if (!fds.empty()) {
            ifreq name{};
            const bool tap = ::ioctl(fds[0].get(), TUNGETIFF, &name) == 0;
            line += (tap ? " " + std::string(name.ifr_name) : "") + "*" + std::to_string(fds.size());
        }
        heard.push_back(line);
        if (method == "hello")
            return Json::object({{"version", 1},
                                 {"host", "hv1"},
                                 {"configured", configured.empty() ? Json() : *Json::parse(configured)}});
        if (method == "configure") configured = params.dump();
        if (method == "wire.add") wires[connector] = params.dump();
        if (method == "wire.remove") wires.erase(connector);
        if (method == "wire.list") return list(params.get("after").as_string());
        if (method == "status") {
            Json peers = Json::array();
            peers.push(Json::object({{"name", "hv2"}, {"state", peer_state}, {"reason", peer_reason}}));
            return Json::object({{"peers", peers}});
        }
        return Json::object();
    }

    Json list(const std::string& after) {
        constexpr size_t page = 3;  // several, without hundreds of wires
        Json out = Json::array();
        auto it = wires.upper_bound(after);
        for (; it != wires.end() && out.size() < page; ++it) out.push(*Json::parse(it->second));
        return Json::object({{"wires", out}, {"more", it != wires.end()}});
    }

    Fd listening_;
    int end_[2] = {-1, -1};
    std::thread thread_;
};

struct Lab {
    Lab() {
        config.host = "hv1";
        config.underlay = *IpAddress::parse("127.0.0.1");
        config.tunnel.lanes = 3;
        config.tunnel.socket = dir + "/tunneld.sock";
        config.tunnel.spawn = TunnelConfig::Spawn::never;
        config.peers.push_back({"hv2", "127.0.0.2", 1, {}});
        bench.make(netlink::set_up("lo"));
        store.emplace(open_store(dir + "/db"));
    }
    ~Lab() { std::filesystem::remove_all(dir); }

    // Not inlined: g++ 12 takes the error that is not there for one that is freed wrongly.
    [[gnu::noinline]] static registry::Store open_store(const std::string& path) {
        auto opened = registry::Store::open(path);
        REQUIRE(opened.ok());
        return std::move(*opened);
    }

    static std::string make_dir() {
        std::string name = "/tmp/banana-test-XXXXXX";
        REQUIRE(::mkdtemp(name.data()) != nullptr);
        return name;
    }
    // The taps of a wire, as the engine makes them.
    wiring::TunnelWire wire(uint32_t connector) {
        const std::string device = model::tunnel_device(connector);
        REQUIRE(netlink::create_tap({.name = device, .multi_queue = true}).ok());
        return {connector, device, "hv2", 1500};
    }
    void start() {
        tunnel.emplace(io, config, *store);
        REQUIRE(tunnel->load().ok());
        tunnel->start(dir, [] {});
    }
    void know_peer(uint32_t lanes = 2) {
        model::Host host{"hv2", "b", *IpAddress::parse("127.0.0.2"), 1500, {}, {4790, lanes, ""}};
        tunnel->set_peer(host);
    }
    template <class Done>
    bool until(Done done, std::chrono::milliseconds patience = 10s) {
        const int64_t deadline = monotonic_ns() + std::chrono::nanoseconds(patience).count();
        while (!done()) {
            if (monotonic_ns() > deadline) return false;
            io.restart();
            io.run_for(2ms);
        }
        return true;
    }
    std::string state() { return tunnel->status().get("state").as_string(); }
    bool ready() {
        return until([&] { return state() == "ready"; });
    }
    // What await_up() says.
    std::string up(uint32_t connector, std::chrono::milliseconds patience) {
        std::optional<Status> told;
        asio::co_spawn(io, tunnel->await_up(connector, patience),
                       [&](const std::exception_ptr&, const Status& status) { told.emplace(status); });
        REQUIRE(until([&] { return told.has_value(); }));
        return why(*told);
    }

    netlink::Bench bench;
    const std::string dir = make_dir();
    asio::io_context io;
    Config config;
    std::optional<registry::Store> store;
    std::optional<Tunnel> tunnel;
};

using Lines = std::vector<std::string>;

Lines heard(FakeTunneld& fake) {
    const std::lock_guard lock(fake.mutex);
    return std::exchange(fake.heard, {});
}

}  // namespace

TEST_CASE("tunnel control: settings, peers and wires, with their descriptors, in that order") {
    Lab lab;
    FakeTunneld fake(lab.config.tunnel.socket);
    lab.start();
    lab.know_peer();
    lab.tunnel->want(lab.wire(0xa));
    CHECK(lab.tunnel->end().problem == "banana-tunneld is being started");
    REQUIRE(lab.ready());
    CHECK(lab.up(0xa, 5s) == "");
    CHECK(heard(fake) ==
          Lines{"hello", "configure*6", "peers", "wire.list", "wire.add 0000000a bnd0000000a*2", "status"});
    CHECK(lab.tunnel->end() == model::TunnelEnd{4790, 3, ""});

    lab.tunnel->want(lab.wire(0xb));
    lab.tunnel->unwant(0xa);
    lab.tunnel->unwant(0xc);  // never wanted
    CHECK(lab.up(0xb, 5s) == "");
    CHECK(lab.until([&] {
        const std::lock_guard lock(fake.mutex);
        return fake.heard.size() == 2;
    }));
    CHECK(heard(fake) == Lines{"wire.add 0000000b bnd0000000b*2", "wire.remove 0000000a"});
    CHECK(lab.up(0xa, 0ms) == "DTLS wire 0000000a is gone");

    lab.know_peer(1);  // with fewer lanes from now on
    CHECK(lab.up(0xb, 5s) == "");
    CHECK(heard(fake) == Lines{"peers", "wire.add 0000000b bnd0000000b*1"});
}

TEST_CASE("tunnel control: a controller that comes back changes only what differs") {
    Lab lab;
    FakeTunneld fake(lab.config.tunnel.socket);
    lab.start();
    lab.know_peer();
    for (uint32_t connector = 1; connector <= 7; ++connector) lab.tunnel->want(lab.wire(connector));
    REQUIRE(lab.ready());
    CHECK(lab.up(7, 5s) == "");
    lab.tunnel->stop();
    REQUIRE(lab.until([&] { return lab.state() != "joining"; }));
    lab.io.restart();
    lab.io.poll();
    (void)heard(fake);

    lab.start();  // the peer is remembered
    for (uint32_t connector = 2; connector <= 7; ++connector) {
        wiring::TunnelWire wire = lab.wire(connector);
        if (connector == 5) wire.mtu = 9000;
        lab.tunnel->want(wire);
    }
    lab.tunnel->want(lab.wire(8));
    REQUIRE(lab.ready());
    CHECK(lab.up(8, 5s) == "");
    CHECK(lab.up(4, 0ms) == "");
    const Lines all = heard(fake);
    CHECK(all == Lines{"hello", "peers", "wire.list", "wire.list", "wire.list", "wire.remove 00000001",
                       "wire.add 00000005 bnd00000005*2", "wire.add 00000008 bnd00000008*2", "status"});
}

TEST_CASE("tunnel control: one that ends, and one that hangs, are left and told all again; nobody waits for them") {
    Lab lab;
    FakeTunneld fake(lab.config.tunnel.socket);
    lab.start();
    lab.know_peer();
    lab.tunnel->want(lab.wire(0xa));
    REQUIRE(lab.ready());
    CHECK(lab.up(0xa, 5s) == "");
    (void)heard(fake);
    const auto lose = [&](bool& how) {
        {
            const std::lock_guard lock(fake.mutex);
            fake.wires.clear();
            fake.configured.clear();
            how = true;
        }
        lab.tunnel->want(lab.wire(0xb));
    };
    lose(fake.hang_up);
    const int64_t lost = monotonic_ns();
    REQUIRE(lab.until([&] { return lab.state() == "away"; }));
    CHECK(lab.tunnel->end().problem == "");  // as long as a restart takes
    CHECK(lab.up(0xa, 0ms) == "the tunnel to hv2 is not up: banana-tunneld ended the connection");
    REQUIRE(lab.ready());
    CHECK(lab.up(0xa, 5s) == "");
    CHECK(monotonic_ns() - lost < 1'000'000'000);
    const Lines again = heard(fake);
    CHECK(std::count(again.begin(), again.end(), "wire.add 0000000a bnd0000000a*2") == 1);

    lose(fake.silent);
    const int64_t asked = monotonic_ns();
    CHECK(lab.up(0xb, 100ms) == "the tunnel to hv2 is not up: banana-tunneld has not taken the wire yet");
    CHECK(monotonic_ns() - asked < 1'000'000'000);
    REQUIRE(lab.until([&] { return lab.state() == "away"; }));
    CHECK(lab.up(0xb, 0ms).find("has not answered for 2000 ms") != std::string::npos);
    {
        const std::lock_guard lock(fake.mutex);
        fake.silent = false;
    }
    REQUIRE(lab.ready());
    CHECK(lab.up(0xb, 5s) == "");
}

TEST_CASE("tunnel control: why a wire is not up") {
    Lab lab;
    FakeTunneld fake(lab.config.tunnel.socket);
    fake.peer_state = "connecting";
    fake.peer_reason = "certificate has expired";
    lab.start();
    lab.tunnel->want(lab.wire(0xa));
    lab.tunnel->want({0xb, "bnd0000000b", "hv2", 1500});
    REQUIRE(lab.ready());
    CHECK(lab.up(0xa, 0ms) == "the tunnel to hv2 is not up: host hv2 has not said how its tunnel is reached");
    lab.know_peer();
    CHECK(lab.up(0xa, 50ms) == "the tunnel to hv2 is not up: certificate has expired");
    CHECK(lab.up(0xb, 50ms).find("open the queues of bnd0000000b: No such device") != std::string::npos);
    CHECK(lab.tunnel->peer_status("hv2").get("reason").as_string() == "certificate has expired");
    CHECK(if_nametoindex("bnd0000000b") == 0);  // not made in passing
}

TEST_CASE("tunnel control: a peer that comes up while its state is asked for is up") {
    for (int round = 0; round < 20; ++round) {  // both must wait in the socket when the answer is read
        Lab lab;
        FakeTunneld fake(lab.config.tunnel.socket);
        fake.peer_state = "connecting";
        fake.behind_status = R"({"event":"peer","name":"hv2","state":"up","reason":""})";
        lab.start();
        lab.know_peer();
        REQUIRE(lab.ready());
        CHECK(lab.until([&] { return lab.tunnel->peer_status("hv2").get("state").as_string() == "up"; }, 2s));
    }
}

TEST_CASE("tunnel control: hundreds of wires are told within a second") {
    Lab lab;
    FakeTunneld fake(lab.config.tunnel.socket);
    lab.start();
    lab.know_peer();
    constexpr uint32_t wires = 300;
    for (uint32_t connector = 1; connector <= wires; ++connector) lab.tunnel->want(lab.wire(connector));
    const int64_t begun = monotonic_ns();
    REQUIRE(lab.until([&] {
        const std::lock_guard lock(fake.mutex);
        return fake.wires.size() == wires;
    }));
    CHECK(monotonic_ns() - begun < 1'000'000'000);
}

TEST_CASE("tunnel control: the wrong process at the socket") {
    Lab lab;
    FakeTunneld fake(lab.config.tunnel.socket);
    lab.config.host = "hv9";
    lab.config.tunnel.certificate = "/pki/hv1-tunnel.crt";
    lab.start();
    REQUIRE(lab.until([&] { return lab.tunnel->end().problem.find("certificate") != std::string::npos; }));
    CHECK(lab.tunnel->end().problem == "certificate /pki/hv1-tunnel.crt is host hv1's, and this is hv9");
}
