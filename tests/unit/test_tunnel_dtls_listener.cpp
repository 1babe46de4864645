// What strangers get from a listener: a challenge that is no larger than what they sent, or nothing, and no memory.
//
//   strangers, hv1 ----> listener of hv2
#include <malloc.h>

#include <algorithm>

#include "tests/unit/tunnel_dtls_parties.h"

using namespace banana;
using namespace banana::tunnel;
using namespace banana::tunnel::testing;

namespace {

constexpr size_t challenge_bytes = 60;
constexpr size_t cookie_length_at = 13 + 12 + 2 + 32 + 1;

Bytes first_hello() {
    Mail mail;
    auto session = Session::dial(Hosts::all()("hv1"), "hv2", 1200, mail);
    REQUIRE(session.ok());
    REQUIRE(mail.out.size() == 1);
    return mail.out[0];
}

bool is_challenge(const Bytes& datagram) {
    constexpr uint8_t handshake = 22, hello_verify_request = 3;
    return datagram.size() == challenge_bytes && datagram[0] == handshake && datagram[13] == hello_verify_request;
}

// hv1's second hello, which bears the cookie that `listener` gave to `sender`.
Bytes hello_with_cookie(Listener& listener, const Bytes& sender) {
    Mail asks, answers;
    auto session = Session::dial(Hosts::all()("hv1"), "hv2", 1200, asks);
    REQUIRE(session.ok());
    CHECK(listener.on_hello(asks.take().at(0), sender, answers) == nullptr);
    (*session)->on_handshake(answers.take().at(0), asks);
    const auto hello = asks.take();
    REQUIRE(hello.size() == 1);
    CHECK(hello[0][cookie_length_at] == 32);
    return hello[0];
}

}  // namespace

TEST_CASE("dtls listener: 100 000 spoofed hellos are answered with challenges and forgotten") {
    Listener listener(Hosts::all()("hv2"), 1200);
    const Bytes hello = first_hello();
    struct Counting final : Sink {
        size_t largest = 0, challenges = 0;
        void put(std::span<const uint8_t> record) override {
            largest = std::max(largest, record.size());
            challenges += is_challenge({record.begin(), record.end()});
        }
    } sink;
    const auto flood = [&](uint32_t from, uint32_t to) {
        size_t sessions = 0;
        for (uint32_t i = from; i < to; ++i) {
            const auto* bytes = reinterpret_cast<const uint8_t*>(&i);
            sessions += listener.on_hello(hello, {bytes, sizeof i}, sink) != nullptr;
        }
        return sessions;
    };
    CHECK(flood(0, 1'000) == 0);  // what is allocated once
    const auto before = mallinfo2();
    CHECK(flood(1'000, 101'000) == 0);
    const auto after = mallinfo2();
    CHECK(after.uordblks <= before.uordblks + 4096);
    CHECK(after.arena + after.hblkhd <= before.arena + before.hblkhd + 256 * 1024);
    CHECK(sink.challenges == 101'000);
    CHECK(sink.largest <= hello.size());
    CHECK(listener.challenges() == 101'000);
    CHECK(listener.ignored() == 0);
}

TEST_CASE("dtls listener: a cookie is its sender's") {
    Mail mail;
    Listener listener(Hosts::all()("hv2"), 1200), another(Hosts::all()("hv2"), 1200);
    const Bytes sender = bytes_of("192.0.2.1:4790/0/1"), thief = bytes_of("192.0.2.9:4790/0/1");
    const Bytes hello = hello_with_cookie(listener, sender);

    CHECK(listener.on_hello(hello, thief, mail) == nullptr);
    CHECK(another.on_hello(hello, sender, mail) == nullptr);
    REQUIRE(mail.out.size() == 2);
    for (const auto& each : mail.take()) CHECK(is_challenge(each));

    Bytes guessed = hello;
    guessed[cookie_length_at + 1] ^= 1;
    CHECK(listener.on_hello(guessed, sender, mail) == nullptr);
    REQUIRE(mail.out.size() == 1);
    CHECK(is_challenge(mail.take()[0]));

    const auto session = listener.on_hello(hello, sender, mail);
    REQUIRE(session);
    CHECK(session->state() == Session::State::handshaking);
    CHECK(session->timer_due() > 0);
    CHECK_FALSE(mail.out.empty());
    CHECK(listener.challenges() == 3);  // the honest one, the thief's and the guess
    CHECK(another.challenges() == 1);
}

TEST_CASE("dtls listener: when no more are to be accepted, a good cookie is met with silence, as long as that lasts") {
    Mail mail;
    Listener listener(Hosts::all()("hv2"), 1200);
    const Bytes sender = bytes_of("192.0.2.1:4790/0/1");
    const Bytes hello = hello_with_cookie(listener, sender);
    for (uint64_t i = 1; i <= 3; ++i) {
        CHECK(listener.on_hello(hello, sender, mail, false) == nullptr);
        CHECK(mail.out.empty());
        CHECK(listener.turned_away() == i);
    }
    CHECK(listener.on_hello(first_hello(), sender, mail, false) == nullptr);  // challenges cost next to nothing
    REQUIRE(mail.out.size() == 1);
    CHECK(is_challenge(mail.take()[0]));
    CHECK(listener.challenges() == 2);
    CHECK(listener.ignored() == 0);
    CHECK(listener.on_hello(hello, sender, mail, true));
    CHECK_FALSE(mail.out.empty());
    CHECK(listener.turned_away() == 3);
}

TEST_CASE("dtls listener: anything but a whole ClientHello is met with silence") {
    Mail mail;
    Listener listener(Hosts::all()("hv2"), 1200);
    const Bytes sender = bytes_of("192.0.2.1:4790/0/1"), hello = first_hello();
    uint64_t silent = 0;
    const auto ignored = [&](const Bytes& datagram) {
        CHECK(listener.on_hello(datagram, sender, mail) == nullptr);
        CHECK(mail.out.empty());
        CHECK(listener.ignored() == ++silent);
    };
    for (size_t size = 0; size < hello.size(); ++size) ignored(Bytes(hello.begin(), hello.begin() + ptrdiff_t(size)));
    for (const auto& [at, value] : std::initializer_list<std::pair<size_t, uint8_t>>{{0, 21},
                                                                                     {0, 23},
                                                                                     {0, 60},
                                                                                     {1, 3},
                                                                                     {4, 1},
                                                                                     {13, 2},
                                                                                     {13, 16},
                                                                                     {14, 1},
                                                                                     {18, 9},
                                                                                     {21, 1},
                                                                                     {24, 0},
                                                                                     {60, 255}}) {
        CAPTURE(at);
        Bytes other = hello;
        other[at] = value;
        ignored(other);
    }
    ignored(bytes_of(std::string(1400, 'x')));
    CHECK(listener.challenges() == 0);
    CHECK(listener.on_hello(hello, sender, mail) == nullptr);
    CHECK(listener.challenges() == 1);
}

TEST_CASE("dtls listener: the smallest hello is not answered with more") {
    Mail mail;
    Listener listener(Hosts::all()("hv2"), 1200);
    const Bytes hello = first_hello(), sender = bytes_of("s");
    size_t answered = 0;
    for (size_t size = 0; size <= hello.size(); ++size) {
        CAPTURE(size);
        Bytes cut(hello.begin(), hello.begin() + static_cast<ptrdiff_t>(size));
        if (size >= 25) {  // mends the lengths of record, message and fragment
            const size_t record = size - 13, message = size - 25;
            cut[11] = static_cast<uint8_t>(record >> 8);
            cut[12] = static_cast<uint8_t>(record);
            for (const size_t at : {14, 22}) {
                cut[at] = 0;
                cut[at + 1] = static_cast<uint8_t>(message >> 8);
                cut[at + 2] = static_cast<uint8_t>(message);
            }
        }
        CHECK(listener.on_hello(cut, sender, mail) == nullptr);
        for (const auto& each : mail.take()) {
            ++answered;
            CHECK(each.size() <= cut.size());
        }
    }
    CHECK(answered > 1);
}

TEST_CASE("dtls listener: noise of all kinds") {
    Mail mail;
    Listener listener(Hosts::all()("hv2"), 1200);
    const Bytes sender = bytes_of("192.0.2.1:4790/0/1");
    const Bytes good = hello_with_cookie(listener, sender);
    uint32_t random = 5;
    const auto next = [&] { return (random = random * 1664525 + 1013904223) >> 8; };
    for (int i = 0; i < 3'000; ++i) {
        Bytes noise = good;
        if (next() % 4 == 0) noise.resize(next() % (good.size() + 40));
        for (auto flips = next() % 6; flips > 0 && !noise.empty(); --flips)
            noise[next() % noise.size()] = static_cast<uint8_t>(next());
        const auto session = listener.on_hello(noise, sender, mail);
        // A good cookie with nonsense behind it is answered by OpenSSL, with an alert or a flight of the handshake.
        if (session) CHECK(session->state() != Session::State::up);
        if (session && session->state() == Session::State::closed) CHECK(session->why_closed() != "");
        mail.take();
    }
    CHECK(listener.on_hello(good, sender, mail));
}

TEST_CASE("dtls listener: goes on listening after a session came of it") {
    Mail mail;
    Listener listener(Hosts::all()("hv2"), 1200);
    std::vector<std::unique_ptr<Session>> sessions;
    for (int i = 0; i < 5; ++i) {
        const Bytes sender = bytes_of("192.0.2.1:4790/0/" + std::to_string(i));
        sessions.push_back(listener.on_hello(hello_with_cookie(listener, sender), sender, mail));
        CHECK(sessions.back());
    }
    CHECK(listener.challenges() == 5);
    CHECK(listener.ignored() == 0);
}
