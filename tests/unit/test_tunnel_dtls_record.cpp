// Record headers, the replay window and cookies: no OpenSSL session in sight.
#include "tunnel/dtls_record.h"

#include <doctest/doctest.h>

#include <random>
#include <set>
#include <string_view>
#include <vector>

#include "tunnel/dtls_cookie.h"

using namespace banana::tunnel;

namespace {

using Place = ReplayWindow::Place;

std::vector<uint8_t> record(uint8_t type, uint16_t version, uint16_t length, size_t present) {
    std::vector<uint8_t> out{type, uint8_t(version >> 8), uint8_t(version), 0, 1, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6};
    out.push_back(static_cast<uint8_t>(length >> 8));
    out.push_back(static_cast<uint8_t>(length));
    out.resize(13 + present);
    return out;
}

std::vector<uint8_t> text(std::string_view from) { return {from.begin(), from.end()}; }

}  // namespace

TEST_CASE("dtls record: the header") {
    const auto whole = record(23, 0xfefd, 0x0102, 0x0102 + 5);
    const auto header = read_record(whole);
    REQUIRE(header);
    CHECK(header->type == ContentType::application);
    CHECK(header->epoch == 1);
    CHECK(header->number == 0xa1a2a3a4a5a6);
    CHECK(header->record_bytes == 13 + 0x0102);
    CHECK(read_record(record(20, 0xfefd, 0, 0)));
    CHECK(read_record(record(22, 0xfeff, 9, 9)));
    CHECK_FALSE(read_record(record(19, 0xfefd, 9, 9)));
    CHECK_FALSE(read_record(record(24, 0xfefd, 9, 9)));
    CHECK_FALSE(read_record(record(22, 0xfefc, 9, 9)));
    CHECK_FALSE(read_record(record(22, 0xfefe, 9, 9)));
    CHECK_FALSE(read_record(record(22, 0x0303, 9, 9)));
    CHECK_FALSE(read_record(record(22, 0xfefd, 9, 8)));
    for (size_t size = 0; size < 13; ++size) CHECK_FALSE(read_record(std::span(whole).first(size)));
}

TEST_CASE("dtls record: the window, against a list of all that came") {
    std::mt19937 random(7);
    ReplayWindow window;
    std::set<uint64_t> seen;
    uint64_t highest = 0, base = 0;
    for (int i = 0; i < 200'000; ++i) {
        base += random() % 4;
        if (random() % 1000 == 0) base += random() % 200;
        const uint64_t number = base - std::min<uint64_t>(base, random() % 80);
        Place expected = Place::fresh;
        if (seen.contains(number)) expected = Place::replayed;
        if (number + ReplayWindow::width <= highest) expected = Place::too_old;
        REQUIRE(window.place(number) == expected);
        if (expected != Place::fresh || random() % 8 == 0) continue;  // some do not authenticate: no mark
        window.mark(number);
        seen.insert(number);
        highest = std::max(highest, number);
    }
    constexpr uint64_t last = (uint64_t{1} << 48) - 1;
    CHECK(window.place(last) == Place::fresh);
    window.mark(last);
    CHECK(window.place(last) == Place::replayed);
    CHECK(window.place(last - 63) == Place::fresh);
    CHECK(window.place(last - 64) == Place::too_old);
    CHECK(window.place(highest) == Place::too_old);
}

TEST_CASE("dtls record: the first number is 0, once") {
    ReplayWindow window;
    CHECK(window.place(0) == Place::fresh);
    window.mark(0);
    CHECK(window.place(0) == Place::replayed);
    CHECK(window.place(1) == Place::fresh);
}

TEST_CASE("dtls cookie: good for its sender, under this key and the next") {
    constexpr int64_t life = Cookies::lifetime_ns;
    const auto alice = text("192.0.2.1:4790/0/1"), mallory = text("192.0.2.1:4790/0/2");
    int64_t now = 1'000;
    Cookies cookies(now), others(now);
    const auto cookie = cookies.make(alice, now);
    CHECK(cookies.good(cookie, alice, now));
    CHECK(cookies.make(alice, now) == cookie);
    CHECK_FALSE(cookies.good(cookie, mallory, now));
    CHECK_FALSE(others.good(cookie, alice, now));
    for (size_t at = 0; at < cookie.size(); ++at) {
        auto flipped = cookie;
        flipped[at] ^= 1;
        CHECK_FALSE(cookies.good(flipped, alice, now));
        CHECK_FALSE(cookies.good(std::span(cookie).first(at), alice, now));
    }
    now += life;
    CHECK(cookies.good(cookie, alice, now));
    const auto newer = cookies.make(alice, now);
    CHECK(newer != cookie);
    now += life;
    CHECK_FALSE(cookies.good(cookie, alice, now));
    CHECK(cookies.good(newer, alice, now));
    now += 2 * life;  // nobody came meanwhile
    CHECK_FALSE(cookies.good(newer, alice, now));
}
