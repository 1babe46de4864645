// Peers that must not be let in, and what both sides say of it: certificates, protocol, garbage. test_peer_lab.h draws
// the hosts. hv1 is always in order; hv2 is the one that is not.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>

#include <asio/use_awaitable.hpp>

#include "peer/tls.h"
#include "test_peer_lab.h"

using namespace banana;
using namespace banana::peer_test;

namespace {

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

Fd tcp_client(int last_octet, uint16_t port) {
    Fd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(0x7f000000u + static_cast<uint32_t>(last_octet));
    if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) fd.reset();
    return fd;
}

// A hand-made dialler with hv2's certificate: it asks for `method` before, and instead of, hello.
asio::awaitable<void> ask_unannounced(Lab& lab, std::string method, Lab::Answer answer) {
    const auto& config = lab.hosts.at("hv2").config;
    const auto identity = peer::Identity::load(config.ca, config.certificate, config.key);
    auto stream = peer::make_tls_stream(peer::Tcp::socket(lab.io), *identity);
    const peer::Tcp::endpoint target(asio::ip::make_address("127.0.0.1"), peer::default_port);
    co_await stream->layer().next_layer().async_connect(target, asio::use_awaitable);
    co_await stream->layer().async_handshake(asio::ssl::stream_base::client, asio::use_awaitable);
    const auto connection = rpc::Connection::start(std::move(stream), {}, {});
    *answer = co_await connection->call(method, Json(), 5s);
    connection->close(Error("done"));
}

// So many connections to 127.0.0.1, from one address, that say nothing.
std::vector<Fd> silent_strangers(const char* from, size_t count) {
    std::vector<Fd> out;
    sockaddr_in own{}, target{};
    own.sin_family = target.sin_family = AF_INET;
    REQUIRE(::inet_pton(AF_INET, from, &own.sin_addr) == 1);
    target.sin_port = htons(peer::default_port);
    target.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    for (size_t i = 0; i < count; ++i) {
        out.emplace_back(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
        REQUIRE(::bind(out.back().get(), reinterpret_cast<const sockaddr*>(&own), sizeof own) == 0);
        REQUIRE(::connect(out.back().get(), reinterpret_cast<const sockaddr*>(&target), sizeof target) == 0);
    }
    return out;
}

// Gives the loopback device, which is 1 in each namespace, one more address.
void add_loopback(const char* text) {
    struct {
        in6_addr address;
        uint32_t prefix;
        int index;
    } request{{}, 128, 1};
    REQUIRE(::inet_pton(AF_INET6, text, &request.address) == 1);
    const Fd fd(::socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    REQUIRE(::ioctl(fd.get(), SIOCSIFADDR, &request) == 0);
}

bool closed_by_other(int fd) {
    pollfd entry{fd, POLLIN, 0};
    if (::poll(&entry, 1, 0) <= 0) return false;
    char waste[4096];
    return ::recv(fd, waste, sizeof waste, MSG_DONTWAIT) <= 0;
}

}  // namespace

TEST_CASE("peers: each bad certificate is refused, in words, by both sides; reload() heals it") {
    struct Row {
        const char* what;
        const char* here;   // hv1's status of hv2
        const char* there;  // hv2's status of hv1
    };
    const Row rows[] = {
        {"wrong CA", "is not signed by this cluster's CA", "is not signed by this cluster's CA"},
        {"wrong name", "is of host 'hv7'; 'hv2' was expected", "host 'hv7' is not a configured peer of 'hv1'"},
        {"wrong role", "has role 'tunnel'; peers need role 'controller'", "has role 'tunnel'"},
        {"expired", "'CN=hv2' expired on ", "refused this host's certificate"},
        {"not yet valid", "'CN=hv2' is not yet valid, not before ", "refused this host's certificate"},
    };
    for (const Row& row : rows) {
        CAPTURE(row.what);
        in_own_netns([&] {
            Lab lab;
            lab.add(1, 2);
            auto& bad = lab.add(2, 2);
            const int64_t now = ::time(nullptr);
            auto options = lab.certificate("hv2");
            const std::string what = row.what;
            if (what == "wrong CA") {
                pki::InitOptions other;
                other.dir = options.dir = lab.folder / "other";
                REQUIRE(pki::init(other).ok());
                bad.config.ca = other.dir + "/ca.crt";
            }
            if (what == "wrong name") options.host = "hv7";
            if (what == "wrong role") options.role = pki::role_tunnel;
            if (what == "expired") options.not_before = now - 7200, options.not_after = now - 60;
            if (what == "not yet valid") options.not_before = now + 3600;
            const auto issued = pki::issue(options);
            REQUIRE(issued.ok());
            const auto good = bad.config;
            bad.config.certificate = issued->certificate;
            bad.config.key = issued->key;
            lab.start("hv1");
            lab.start("hv2");
            REQUIRE(lab.until([&] { return contains(lab.error("hv1", "hv2"), row.here); }));
            CHECK(lab.state("hv1", "hv2") == "refused");
            CHECK(contains(lab.error("hv1", "hv2"), "peer hv2"));
            const bool told = lab.until([&] { return contains(lab.error("hv2", "hv1"), row.there); });
            if (!told) MESSAGE(lab.error("hv2", "hv1"));
            CHECK(told);
            CHECK(lab.state("hv2", "hv1") == "refused");
            CHECK(lab.hosts.at("hv1").events.empty());
            CHECK_FALSE(lab.entry("hv1", "hv2").get("incoming").as_bool());
            CHECK(lab.until([&] { return !lab.entry("hv1", "hv2").get("incoming_error").as_string().empty(); }));
            const auto call = lab.ask("hv1", "hv2", "whoami", {});
            REQUIRE(lab.until([&] { return call->has_value(); }));
            CHECK((*call)->error().code() == Errc::unreachable);
            CHECK(contains((*call)->error().message(), row.here));

            // The files under the paths in use become good ones.
            if (what == "wrong CA" || what == "wrong name" || what == "wrong role") return;
            REQUIRE(pki::issue(lab.certificate("hv2")).ok());
            REQUIRE(lab.at("hv2").reload().ok());
            CHECK(lab.until([&] { return lab.up("hv1", "hv2") && lab.up("hv2", "hv1"); }));
        });
    }
}

TEST_CASE("peers: reload() with another CA ends what the old one vouched for; a bad file changes nothing") {
    in_own_netns([] {
        Lab lab;
        lab.add(1, 2);
        lab.add(2, 2);
        lab.start("hv1");
        lab.start("hv2");
        REQUIRE(lab.until([&] { return lab.up("hv1", "hv2") && lab.up("hv2", "hv1"); }));
        REQUIRE(lab.at("hv1").reload().ok());
        fs::rename(lab.pki + "/hv1.key", lab.pki + "/away");
        const auto missing = lab.at("hv1").reload();
        REQUIRE_FALSE(missing.ok());
        CHECK(contains(missing.error().message(), lab.pki + "/hv1.key"));
        fs::rename(lab.pki + "/away", lab.pki + "/hv1.key");
        ::chmod((lab.pki + "/hv1.key").c_str(), 0644);
        CHECK(contains(lab.at("hv1").reload().error().message(), "must be 0600"));
        ::chmod((lab.pki + "/hv1.key").c_str(), 0600);
        auto foreign = lab.certificate("hv7");
        const auto own = lab.hosts.at("hv1").config;
        REQUIRE(pki::issue(foreign).ok());
        for (const char* suffix : {".crt", ".key"}) {
            fs::rename(lab.pki + "/hv1" + suffix, lab.pki + "/away" + suffix);
            fs::rename(lab.pki + "/hv7" + suffix, lab.pki + "/hv1" + suffix);
        }
        const auto refused = lab.at("hv1").reload();
        REQUIRE_FALSE(refused.ok());
        CHECK(refused.error().code() == Errc::refused);
        CHECK(contains(refused.error().message(), "peers will refuse this host (" + own.certificate + "): "));
        CHECK(lab.at("hv1").problem() == "");  // the one in use is the old one
        for (const char* suffix : {".crt", ".key"}) fs::rename(lab.pki + "/away" + suffix, lab.pki + "/hv1" + suffix);
        CHECK(lab.up("hv1", "hv2"));
        CHECK(lab.hosts.at("hv1").events == "+hv2 ");

        pki::InitOptions renewed;
        renewed.dir = lab.pki;
        renewed.overwrite = true;
        REQUIRE(pki::init(renewed).ok());
        REQUIRE(pki::issue(lab.certificate("hv1")).ok());
        REQUIRE(lab.at("hv1").reload().ok());
        CHECK(lab.until([&] { return lab.state("hv1", "hv2") == "refused"; }));
        CHECK(contains(lab.error("hv1", "hv2"), "is not signed by this cluster's CA"));
        REQUIRE(pki::issue(lab.certificate("hv2")).ok());
        REQUIRE(lab.at("hv2").reload().ok());
        CHECK(lab.until([&] { return lab.up("hv1", "hv2") && lab.up("hv2", "hv1"); }));
    });
}

TEST_CASE("peers: another protocol version is refused with both numbers") {
    in_own_netns([] {
        Lab lab;
        lab.add(1, 2);
        lab.add(2, 2).config.protocol = 2;
        lab.start("hv1");
        lab.start("hv2");
        CHECK(lab.until([&] { return contains(lab.error("hv1", "hv2"), "speaks protocol 1, 'hv2' speaks 2"); }));
        CHECK(lab.until([&] { return contains(lab.error("hv2", "hv1"), "speaks protocol 2, 'hv1' speaks 1"); }));
        CHECK(lab.state("hv1", "hv2") == "refused");
        CHECK(lab.state("hv2", "hv1") == "refused");
    });
}

TEST_CASE("peers: nothing is served before hello") {
    in_own_netns([] {
        Lab lab;
        lab.add(1, 2);
        lab.add(2, 2);
        lab.start("hv1");
        auto answer = std::make_shared<std::optional<Result<Json>>>();
        rpc::spawn(lab.io.get_executor(), ask_unannounced(lab, "whoami", answer), "unannounced");
        REQUIRE(lab.until([&] { return answer->has_value(); }));
        REQUIRE_FALSE((*answer)->ok());
        CHECK((*answer)->error().code() == Errc::unsupported);
        CHECK_FALSE(lab.entry("hv1", "hv2").get("incoming").as_bool());
    });
}

TEST_CASE("peers: a cluster member that is not configured here is told so") {
    in_own_netns([] {
        Lab lab;
        lab.add(1, 2);
        lab.add(2, 2);
        lab.add(3, 1);  // knows hv1, which does not know it
        for (const char* name : {"hv1", "hv2", "hv3"}) lab.start(name);
        CHECK(lab.until([&] { return contains(lab.error("hv3", "hv1"), "'hv3' is not a configured peer of 'hv1'"); }));
        CHECK(lab.until([&] { return lab.up("hv1", "hv2"); }));
    });
}

TEST_CASE("peers: an address that is taken, or is none, is named") {
    in_own_netns([] {
        Lab lab;
        lab.add(1, 1);
        lab.start("hv1");
        auto config = lab.hosts.at("hv1").config;
        peer::Peers same(lab.io, config, {});
        CHECK(contains(same.start().error().message(), "listen for peers on 127.0.0.1 port 7471: Address already"));
        config.listen = "everywhere";
        peer::Peers nowhere(lab.io, config, {});
        CHECK(nowhere.start().error().code() == Errc::invalid);
    });
}

TEST_CASE("peers: garbage, silence and floods at the TLS port cost nothing") {
    in_own_netns([] {
        Lab lab;
        auto& first = lab.add(1, 2);
        lab.add(2, 2);
        first.config.handshake_timeout = 500ms;
        first.config.max_unauthenticated = 8;
        // Strangers come from 127.0.0.1, which is no peer's address.
        lab.start("hv1");
        lab.start("hv2");
        REQUIRE(lab.until([&] { return lab.up("hv1", "hv2") && lab.up("hv2", "hv1"); }));
        std::vector<Fd> strangers;
        for (int i = 0; i < 40; ++i) {
            strangers.push_back(tcp_client(1, 7471));
            REQUIRE(strangers.back());
            std::string input = "GET / HTTP/1.1\r\n\r\n";
            if (i % 3 == 0) {
                input.resize(1 + random_u32() % 20000);
                random_bytes({reinterpret_cast<uint8_t*>(input.data()), input.size()});
                if (i % 2 == 0) input.replace(0, 5, std::string("\x16\x03\x01\x02\x00", 5));  // looks like TLS
            }
            if (i % 4 != 3)  // the fourth says nothing at all
                [[maybe_unused]]
                const auto n = ::send(strangers.back().get(), input.data(), input.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
        }
        const auto call = lab.ask("hv2", "hv1", "echo", "still there");
        REQUIRE(lab.until([&] { return call->has_value(); }));
        CHECK((*call)->ok());
        CHECK(lab.until(
            [&] {
                for (const Fd& fd : strangers)
                    if (!closed_by_other(fd.get())) return false;
                return true;
            },
            5s));
        CHECK(lab.up("hv1", "hv2"));
        CHECK(lab.up("hv2", "hv1"));
        lab.stop("hv2");
        lab.start("hv2");
        CHECK(lab.until([&] { return lab.up("hv1", "hv2") && lab.up("hv2", "hv1"); }));
    });
}

TEST_CASE("peers: however its address is written, a peer has places that strangers cannot take") {
    struct Row {
        const char* address;  // hv2's, as hv1's configuration has it
        const char* listen;   // hv2's
        const char* hv1;      // as hv2's configuration has it
    };
    const Row rows[] = {
        {"localhost", "127.0.0.1", "127.0.0.1"},
        {"::ffff:127.0.0.1", "127.0.0.1", "127.0.0.1"},
        {"0:0:0:0:0:0:0:1", "::1", "::1"},
    };
    for (const Row& row : rows) {
        CAPTURE(row.address);
        in_own_netns([&] {
            Lab lab;
            auto& first = lab.add(1, 2).config;
            auto& second = lab.add(2, 2).config;
            first.listen = "::";
            first.peers = {{"hv2", row.address, 7472}};
            first.handshake_timeout = 60s;
            first.max_unauthenticated = 8;
            second.listen = row.listen;
            second.port = 7472;
            second.peers = {{"hv1", row.hv1}};
            lab.start("hv1");
            REQUIRE(lab.until([&] { return contains(lab.error("hv1", "hv2"), "Connection refused"); }));
            std::vector<std::vector<Fd>> strangers;
            for (const char* from : {"127.0.0.7", "127.0.0.8", "127.0.0.9"})
                strangers.push_back(silent_strangers(from, 8));
            // The last one is refused: the strangers' places are taken.
            REQUIRE(lab.until([&] { return closed_by_other(strangers.back().back().get()); }));
            lab.start("hv2");
            CHECK(lab.until([&] { return lab.up("hv2", "hv1") && lab.up("hv1", "hv2"); }, 5s));
        });
    }
}

TEST_CASE("peers: one address does not take all places, so that a peer of an unexpected address gets one") {
    in_own_netns([] {
        Lab lab;
        auto& first = lab.add(1, 2).config;
        lab.add(2, 2);
        first.peers[0].address = "127.0.0.99";  // hv2 comes from 127.0.0.2
        first.handshake_timeout = 60s;
        first.max_unauthenticated = 8;
        lab.start("hv1");
        const auto strangers = silent_strangers("127.0.0.9", 9);
        REQUIRE(lab.until([&] { return closed_by_other(strangers.back().get()); }));
        lab.start("hv2");
        CHECK(lab.until([&] { return lab.up("hv2", "hv1"); }, 5s));
    });
}

TEST_CASE("peers: strangers' handshakes are bounded in their rate, and keep no peer out") {
    in_own_netns([] {
        Lab lab;
        auto& first = lab.add(1, 2).config;
        lab.add(2, 2);
        first.max_unauthenticated = 8;  // four of one address, each for half a second
        lab.start("hv1");
        REQUIRE(lab.until([&] { return contains(lab.error("hv1", "hv2"), "Connection refused"); }));
        std::vector<Fd> open;
        size_t tried = 0, answered = 0;
        const char hello[] = "\x16\x03\x01\x00\x05\x01\x00\x00\x01";  // cut short: an alert is the answer
        const auto begin = std::chrono::steady_clock::now();
        while (tried < 300) {
            open.push_back(tcp_client(1, 7471));
            REQUIRE(open.back());
            REQUIRE(::send(open.back().get(), hello, sizeof hello, MSG_NOSIGNAL) == sizeof hello);
            ++tried;
            if (tried == 100) lab.start("hv2");
            lab.io.restart();
            lab.io.run_for(1ms);
            std::erase_if(open, [&](const Fd& fd) {
                char alert[64];
                const auto got = ::recv(fd.get(), alert, sizeof alert, MSG_DONTWAIT);
                if (got > 0) ++answered;
                return got >= 0 || errno != EAGAIN;
            });
        }
        const auto held = (std::chrono::steady_clock::now() - begin) / 500ms;
        MESSAGE(tried << " connections in " << held << " half seconds, " << answered << " of them answered");
        CHECK(answered > 0);
        CHECK(answered <= static_cast<size_t>(4 * (held + 1)));
        CHECK(answered < tried / 2);
        CHECK(lab.until([&] { return lab.up("hv2", "hv1"); }, 5s));
    });
}

TEST_CASE("peers: a refused connection is told of the peer whose address it has, not of one that begins alike") {
    in_own_netns([] {
        Lab lab;
        auto& first = lab.add(1, 1).config;
        first.listen = "::";
        // Nobody listens there: hv1 would reach itself, under a peer's address.
        first.peers = {{"hv2", "0:0:0:0:0:0:0:1", 7472}, {"hv3", "fd00::1", 7472}, {"hv4", "fd00::1:2", 7472}};
        for (const char* address : {"fd00::1", "fd00::1:2"}) add_loopback(address);
        const auto incoming_error = [&](const char* peer) { return lab.entry("hv1", peer).get("incoming_error"); };
        const auto stranger = [](const char* text) {
            Fd fd(::socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0));
            sockaddr_in6 address{};
            address.sin6_family = AF_INET6;
            REQUIRE(::inet_pton(AF_INET6, text, &address.sin6_addr) == 1);
            REQUIRE(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
            address.sin6_port = htons(peer::default_port);
            REQUIRE(::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
            REQUIRE(::send(fd.get(), "GET / HTTP/1.1\r\n\r\n", 18, MSG_NOSIGNAL) == 18);
            return fd;
        };
        lab.start("hv1");
        const Fd one = stranger("fd00::1:2"), other = stranger("::1");
        CHECK(lab.until([&] { return !incoming_error("hv4").as_string().empty(); }, 5s));
        CHECK(lab.until([&] { return !incoming_error("hv2").as_string().empty(); }, 5s));
        CHECK(incoming_error("hv3").as_string().empty());
    });
}
