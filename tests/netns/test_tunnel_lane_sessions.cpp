// Who gets a session of a lane, how many, and who does not.
#include <doctest/doctest.h>

#include "test_tunnel_lane_world.h"

using namespace banana;
using namespace banana::tunnel;
using namespace banana::tunnel::lane_test;

TEST_CASE("lane: certificates that are no good are refused, and both ends say why") {
    struct {
        const char *certificate, *here, *there;
    } const cases[] = {
        {"expired", "expired on", "it has expired"},
        {"early", "not yet valid", "it is not valid there"},
        {"foreign", "CA", "not signed by the CA"},
        {"controller", "tunnel", "it has not the role 'tunnel'"},
    };
    for (const auto& one : cases) {
        INFO(one.certificate);
        Listening at;
        Peer peer(one.certificate);
        REQUIRE(peer.finished());
        CHECK(peer.session->state() == Session::State::closed);
        CHECK_MESSAGE(peer.session->why_closed().find(one.there) != std::string::npos, peer.session->why_closed());
        const bool said = within([&] { return at.reason().find(one.here) != std::string::npos; });
        CHECK_MESSAGE(said, at.reason());
        CHECK_FALSE(at.up());
    }
}

TEST_CASE("lane: one host cannot take all handshakes") {
    Listening at;
    std::vector<std::unique_ptr<Peer>> stuck;
    // Each proves its address and goes no further.
    for (uint16_t i = 0; i < Lane::handshakes_of_host_max; i++) {
        stuck.push_back(std::make_unique<Peer>("hv2", static_cast<uint16_t>(100 + i)));
        const bool challenged = stuck.back()->take(5000), answered = stuck.back()->waiting(5000);
        CHECK(challenged);
        CHECK(answered);
    }
    Peer one_more("hv2", 200);
    CHECK_FALSE(one_more.waiting(100));
    Peer other_host("hv2", 201, "127.0.0.2");
    CHECK(other_host.finished());
    CHECK(other_host.session->state() == Session::State::up);
}

TEST_CASE("lane: strangers' handshakes are bounded in number, and peers have theirs") {
    Listening at;
    std::vector<std::unique_ptr<Peer>> strangers;
    for (uint16_t i = 0; i < 8; i++) {
        strangers.push_back(std::make_unique<Peer>("hv2", static_cast<uint16_t>(400 + i), "127.0.0.3"));
        REQUIRE(strangers.back()->take(5000));  // the challenge; its cookie goes back at once
    }
    const int64_t begin = monotonic_ns(), end = begin + 1'000'000'000;
    int64_t handshakes = 0;
    while (monotonic_ns() < end)
        for (const auto& stranger : strangers) {
            handshakes += stranger->abort(1);
            stranger->repeat_hello();
        }
    CHECK(handshakes >= Lane::handshakes_at_once);
    CHECK(handshakes <=
          Lane::handshakes_at_once + 1 + Lane::handshakes_per_s * (monotonic_ns() - begin) / 1'000'000'000);
    at.lane->run([&] { CHECK(at.lane->turned_away() > 0); });
    Peer peer;
    const int64_t dialled = monotonic_ns();
    CHECK(peer.finished());
    CHECK(peer.session->state() == Session::State::up);
    CHECK(monotonic_ns() - dialled < 1'000'000'000);
}

TEST_CASE("lane: when all places for sessions are taken, it says so") {
    Listening at;
    ChannelHost& host = *at.lane;
    at.lane->run([&] {
        Live taken(host.batch(), Place{});
        for (size_t index = 1; index < 1 << 16; index++) {
            const Place place = host.dialling_place(Endpoint{});
            taken.place.own_index = place.own_index;
            if (place.own_index != 0) host.keep(taken);
        }
        CHECK(host.dialling_place(Endpoint{}).own_index == 0);
        taken.place.own_index = 1234;
        host.forget(taken);
        CHECK(host.dialling_place(Endpoint{}).own_index == 1234);
        host.keep(taken);
        for (size_t index = 1; index < 1 << 16; index++) {
            taken.place.own_index = static_cast<uint16_t>(index);
            host.forget(taken);
        }
    });
}

TEST_CASE("lane: a peer has a bounded number of sessions, the one in use among them") {
    Listening at;
    std::vector<std::unique_ptr<Peer>> peers;
    for (uint16_t i = 0; i < 3 * Channel::sessions_max; i++) {
        peers.push_back(std::make_unique<Peer>("hv2", static_cast<uint16_t>(300 + i)));
        REQUIRE(peers.back()->finished());
        REQUIRE(peers.back()->session->state() == Session::State::up);
        if (i == 0) peers.back()->seal(on_wire(own_wire, frame_of(60)));  // the current one from here on
        size_t sessions = 0;
        at.lane->run([&] { sessions = at.lane->channels().at("hv2")->sessions().size(); });
        CHECK(sessions <= Channel::sessions_max);
    }
    REQUIRE(at.own.read(5000) == frame_of(60));
    peers.front()->seal(on_wire(own_wire, frame_of(61)));
    CHECK(at.own.read(5000) == frame_of(61));
}

TEST_CASE("lane: strangers that say nothing give their places up, and a peer's place is known") {
    Listening at;
    std::vector<std::unique_ptr<Peer>> silent;
    const size_t each = Lane::handshakes_of_host_max;
    // As fast as the budget lets them; each brings its cookie back and is silent.
    for (size_t i = 0; i < Lane::handshakes_max / 2; i++) {
        const std::string address = "127.0.1." + std::to_string(i / each + 1);
        silent.push_back(std::make_unique<Peer>("hv2", static_cast<uint16_t>(500 + i), address.c_str()));
        REQUIRE(silent.back()->take(5000));
        while (!silent.back()->waiting(100)) silent.back()->repeat_hello();
    }
    Peer late("hv2", 900, "127.0.2.1");
    const int64_t dialled = monotonic_ns();
    CHECK(within([&] {
        late.take(50);
        late.repeat_hello();
        return late.session->state() != Session::State::handshaking;
    }));
    CHECK(late.session->state() == Session::State::up);
    CHECK(monotonic_ns() - dialled < Lane::silent_max_ns + 1'000'000'000);
    at.lane->run([&] {
        const auto& channel = *at.lane->channels().at("hv2");
        CHECK(channel.is_at(Endpoint::of(ip("127.0.2.1"), 1)));
        CHECK(channel.is_at(Endpoint::of(ip("127.0.0.1"), 1)));
        CHECK_FALSE(channel.is_at(Endpoint::of(ip("127.0.1.1"), 1)));
        CHECK(at.lane->turned_away() > 0);
    });
}
