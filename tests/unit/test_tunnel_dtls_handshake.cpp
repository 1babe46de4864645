// Handshakes: over a path that loses, doubles and reorders, with stragglers, and with certificates that will not do.
//
//   hv1 (dials) ==== in memory, or a lossy road ==== hv2 (listens)
#include <poll.h>

#include <algorithm>
#include <random>

#include "base/clock.h"
#include "tests/unit/tunnel_dtls_parties.h"

using namespace banana;
using namespace banana::tunnel;
using namespace banana::tunnel::testing;

namespace {

constexpr int64_t ms = 1'000'000;
using State = Session::State;

// A path of 1 to 40 ms each way, so that datagrams overtake each other; of 100, 30 are lost and 10 doubled.
class Road {
public:
    explicit Road(uint32_t seed) : random_(seed) {}
    void send(std::vector<Bytes> datagrams, bool to_listener, int64_t now) {
        for (auto& each : datagrams) {
            if (random_() % 100 < 30) continue;
            if (random_() % 100 < 10) on_way_.push_back({now + delay(), to_listener, each});
            on_way_.push_back({now + delay(), to_listener, std::move(each)});
        }
    }
    struct Datagram {
        int64_t due;
        bool to_listener;
        Bytes bytes;
    };
    std::vector<Datagram> arrived(int64_t now) {
        std::vector<Datagram> out;
        std::erase_if(on_way_, [&](Datagram& each) {
            if (each.due > now) return false;
            out.push_back(std::move(each));
            return true;
        });
        std::sort(out.begin(), out.end(), [](const auto& a, const auto& b) { return a.due < b.due; });
        return out;
    }
    int64_t due() const {
        int64_t first = INT64_MAX;
        for (const auto& each : on_way_) first = std::min(first, each.due);
        return first;
    }

private:
    int64_t delay() { return (1 + random_() % 40) * ms; }
    std::mt19937 random_;
    std::vector<Datagram> on_way_;
};

struct Traveller {
    explicit Traveller(uint32_t seed) : road(seed) {}
    Pair pair;
    Road road;
    bool done() const {
        const auto ended = [](const auto& session) { return session && session->state() != State::handshaking; };
        return ended(pair.dialler) && ended(pair.listened);
    }
    int64_t step(int64_t now) {
        for (const auto& each : road.arrived(now)) pair.deliver(each.bytes, each.to_listener);
        int64_t due = INT64_MAX;
        const auto tick = [&](Session* session, Mail& mail) {
            if (session == nullptr || session->timer_due() == 0) return;
            if (session->timer_due() <= now) session->on_timer(mail);
            if (session->timer_due() != 0) due = std::min(due, session->timer_due());
        };
        tick(pair.dialler.get(), pair.from_dialler);
        tick(pair.listened.get(), pair.from_listener);
        road.send(pair.from_dialler.take(), true, now);
        road.send(pair.from_listener.take(), false, now);
        return std::min(due, road.due());
    }
};

struct Why {
    std::string dialler, listener;
};

// Both ends' reasons after hv1's `dials` has dialled `listens`, expecting hv2.
Why refusal(const std::string& dials, const std::string& listens, const std::string& expected = "hv2") {
    Pair pair(Hosts::all()(dials), Hosts::all()(listens), expected);
    pair.handshake();
    CHECK(pair.dialler->state() == State::closed);
    REQUIRE(pair.listened);
    CHECK(pair.listened->state() == State::closed);
    CHECK_FALSE(seal(*pair.dialler, bytes_of("x")));
    CHECK_FALSE(seal(*pair.listened, bytes_of("x")));
    return {pair.dialler->why_closed(), pair.listened->why_closed()};
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("dtls handshake: 30 % loss, doubles and reordering: connected within 10 s") {
    constexpr size_t how_many = 24;
    std::vector<std::unique_ptr<Traveller>> all;
    for (uint32_t i = 0; i < how_many; ++i) all.push_back(std::make_unique<Traveller>(i));
    const int64_t start = monotonic_ns();
    for (size_t open_ones = how_many; open_ones > 0;) {
        const int64_t now = monotonic_ns();
        int64_t due = INT64_MAX;
        open_ones = 0;
        for (const auto& each : all) {
            if (each->done()) continue;
            due = std::min(due, each->step(now));
            ++open_ones;
        }
        REQUIRE(monotonic_ns() - start < 11'000 * ms);
        const int64_t wait = std::clamp<int64_t>(due - monotonic_ns(), 0, 100 * ms);
        if (open_ones > 0) ::poll(nullptr, 0, static_cast<int>((wait + ms - 1) / ms));
    }
    for (const auto& each : all) {
        CHECK_MESSAGE(each->pair.dialler->state() == State::up, each->pair.dialler->why_closed());
        CHECK_MESSAGE(each->pair.listened->state() == State::up, each->pair.listened->why_closed());
        const Bytes record = sealed(*each->pair.dialler, bytes_of("hello"));
        CHECK(open(*each->pair.listened, record, each->pair.from_listener).plain == bytes_of("hello"));
        const Bytes back = sealed(*each->pair.listened, bytes_of("hello"));
        CHECK(open(*each->pair.dialler, back, each->pair.from_dialler).plain == bytes_of("hello"));
    }
}

TEST_CASE("dtls handshake: nobody answers") {
    Mail mail;
    auto made = Session::dial(Hosts::all()("hv1"), "hv2", 1200, mail);
    REQUIRE(made.ok());
    Session& session = **made;
    const int64_t start = monotonic_ns();
    std::vector<int64_t> sent{0};
    mail.take();
    while (session.state() == State::handshaking && sent.size() < 4) {
        const int64_t wait = session.timer_due() - monotonic_ns();
        CHECK(wait <= handshake_retry_max_ns);
        if (wait > 0) ::poll(nullptr, 0, static_cast<int>((wait + ms - 1) / ms));
        session.on_timer(mail);
        if (!mail.take().empty()) sent.push_back(monotonic_ns() - start);
    }
    REQUIRE(sent.size() == 4);
    // 250 ms, doubled to 1 s; OpenSSL may be 15 ms early.
    CHECK(sent[1] - sent[0] >= 235 * ms);
    CHECK(sent[2] - sent[1] >= 485 * ms);
    CHECK(sent[3] - sent[2] >= 985 * ms);
    CHECK(sent[3] < 3'000 * ms);
}

TEST_CASE("dtls handshake: the last flight is sent again when it was lost") {
    Pair pair;
    // All is delivered until hv2 is up; what it said last is lost.
    std::vector<Bytes> lost;
    for (int round = 0; lost.empty(); ++round) {
        REQUIRE(round < 20);
        for (const auto& each : pair.from_dialler.take()) pair.deliver(each, true);
        auto answers = pair.from_listener.take();
        if (pair.listened && pair.listened->state() == State::up)
            lost = std::move(answers);
        else
            for (const auto& each : answers) pair.deliver(each, false);
    }
    CHECK(pair.dialler->state() == State::handshaking);
    // A record that was sealed meanwhile comes too early.
    CHECK(open(*pair.dialler, sealed(*pair.listened, bytes_of("early")), pair.from_dialler) ==
          Opened{{}, Refusal::malformed});
    SUBCASE("by handshake datagrams") {
        for (int again = 0; pair.dialler->state() == State::handshaking; ++again) {
            REQUIRE(again < 3);
            while (pair.from_dialler.out.empty()) {
                REQUIRE(pair.dialler->state() == State::handshaking);
                const int64_t wait = pair.dialler->timer_due() - monotonic_ns();
                if (wait > 0) ::poll(nullptr, 0, static_cast<int>((wait + ms - 1) / ms));
                pair.dialler->on_timer(pair.from_dialler);
            }
            const auto repeated = pair.from_dialler.take();
            for (const auto& each : repeated) pair.deliver(each, true);
            CHECK_FALSE(pair.from_listener.out.empty());
            // The same again, by the road: nothing is said twice to a copy.
            const size_t said = pair.from_listener.out.size();
            for (const auto& each : repeated) pair.deliver(each, true);
            CHECK(pair.from_listener.out.size() == said);
            for (const auto& each : pair.from_listener.take()) pair.deliver(each, false);
        }
    }
    SUBCASE("what was lost arrives late after all") {
        for (const auto& each : lost) pair.deliver(each, false);
    }
    REQUIRE(pair.dialler->state() == State::up);
    for (const auto& each : lost) pair.deliver(each, false);  // late, or a copy
    CHECK(pair.dialler->state() == State::up);
    CHECK(pair.from_dialler.out.empty());
    CHECK(open(*pair.dialler, sealed(*pair.listened, bytes_of("x")), pair.from_dialler).plain == bytes_of("x"));
    CHECK(open(*pair.listened, sealed(*pair.dialler, bytes_of("x")), pair.from_listener).plain == bytes_of("x"));
}

TEST_CASE("dtls handshake: in datagrams of the least size") {
    Mail from_dialler, from_listener;
    Listener listener(Hosts::all()("hv2"), 1);  // is raised to the least
    auto dialler = Session::dial(Hosts::all()("hv1"), "hv2", handshake_datagram_min, from_dialler);
    REQUIRE(dialler.ok());
    std::unique_ptr<Session> listened;
    size_t most = 0, largest = 0;
    for (int round = 0; !from_dialler.out.empty() || !from_listener.out.empty(); ++round) {
        REQUIRE(round < 20);
        for (const auto& each : from_dialler.take()) {
            largest = std::max(largest, each.size());
            if (listened)
                listened->on_handshake(each, from_listener);
            else
                listened = listener.on_hello(each, bytes_of("s"), from_listener);
        }
        most = std::max(most, from_listener.out.size());
        for (const auto& each : from_listener.take()) {
            largest = std::max(largest, each.size());
            (*dialler)->on_handshake(each, from_dialler);
        }
    }
    CHECK((*dialler)->state() == State::up);
    CHECK(most > 2);
    CHECK(largest <= handshake_datagram_min);
}

TEST_CASE("dtls handshake: a certificate that will not do is refused, and both ends know why") {
    const struct {
        const char* bearer;
        const char* verdict;  // of the end that refuses
        const char* told;     // at the end that bears it
    } table[] = {
        {"foreign", "certificate 'CN=hv2' of issuer 'CN=banana CA' is not signed by this cluster's CA",
         "it is not signed by the CA in use there"},
        {"expired", "certificate 'CN=hv2' expired on", "it has expired"},
        {"early", "certificate 'CN=hv2' is not yet valid, not before", "it is not valid there"},
        {"controller", "certificate 'CN=hv2' has role 'controller'; DTLS wires need role 'tunnel'",
         "it has not the role 'tunnel'"},
    };
    for (const auto& row : table) {
        CAPTURE(row.bearer);
        for (const bool dials : {true, false}) {
            CAPTURE(dials);
            const Why why = dials ? refusal(row.bearer, "hv1", "hv1") : refusal("hv1", row.bearer);
            const auto& refuser = dials ? why.listener : why.dialler;
            const auto& bearer = dials ? why.dialler : why.listener;
            CHECK_MESSAGE(has(refuser, row.verdict), refuser);
            CHECK_MESSAGE(has(bearer, "the other end refused this host's certificate ("), bearer);
            CHECK_MESSAGE(has(bearer, row.told), bearer);
        }
    }
}

TEST_CASE("dtls handshake: a valid host that is not the one dialled") {
    const Why why = refusal("hv1", "hv2", "hv3");
    CHECK(why.dialler == "certificate 'CN=hv2' is of host 'hv2'; 'hv3' was expected");
    CHECK_MESSAGE(has(why.listener, "it does not name the host that was expected"), why.listener);
}

TEST_CASE("dtls handshake: data before its end is dropped, and ends nothing") {
    Pair pair;
    const Bytes data{23, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 9, 0, 4, 'd', 'a', 't', 'a'};
    const Bytes sealed_data{23, 0xfe, 0xfd, 0, 1, 0, 0, 0, 0, 0, 9, 0, 4, 'd', 'a', 't', 'a'};
    for (int round = 0; !pair.from_dialler.out.empty() || !pair.from_listener.out.empty(); ++round) {
        REQUIRE(round < 20);
        for (const auto& noise : {data, sealed_data}) {
            pair.dialler->on_handshake(noise, pair.from_dialler);
            if (pair.listened) pair.listened->on_handshake(noise, pair.from_listener);
        }
        for (const auto& each : pair.from_dialler.take()) pair.deliver(each, true);
        for (const auto& each : pair.from_listener.take()) pair.deliver(each, false);
    }
    CHECK(pair.dialler->state() == State::up);
    REQUIRE(pair.listened);
    CHECK(pair.listened->state() == State::up);
}
