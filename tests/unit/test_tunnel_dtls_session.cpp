// Records of a session that is up: opened once, in any order within the window, or refused with the reason.
//
//   hv1 (dials) ==== in memory ==== hv2 (listens)
#include <algorithm>

#include "tests/unit/tunnel_dtls_parties.h"

using namespace banana;
using namespace banana::tunnel;
using namespace banana::tunnel::testing;

namespace {

const Bytes payload = bytes_of("a frame, or several");

Opened refused(Refusal why) { return {{}, why}; }

}  // namespace

TEST_CASE("dtls session: both ends know each other and carry data both ways") {
    Pair pair;
    CHECK(pair.dialler->dialled());
    CHECK(pair.dialler->state() == Session::State::handshaking);
    CHECK(pair.dialler->timer_due() > 0);
    CHECK_FALSE(seal(*pair.dialler, payload));
    pair.connect();
    CHECK_FALSE(pair.listened->dialled());
    CHECK(pair.dialler->peer() == "hv2");
    CHECK(pair.listened->peer() == "hv1");
    CHECK(pair.dialler->cipher() == "AES-128-GCM");
    CHECK(pair.listened->cipher() == "AES-128-GCM");
    CHECK(pair.dialler->timer_due() == 0);
    CHECK(pair.listened->timer_due() == 0);

    const Bytes record = sealed(*pair.dialler, payload);
    CHECK(record.size() == payload.size() + record_overhead);
    CHECK(std::search(record.begin(), record.end(), payload.begin(), payload.end()) == record.end());
    CHECK(open(*pair.listened, record, pair.from_listener) == Opened{payload, Refusal::none});
    CHECK(open(*pair.dialler, sealed(*pair.listened, payload), pair.from_dialler) == Opened{payload, Refusal::none});
    const Bytes largest(16384, 0x5a);
    CHECK(open(*pair.dialler, sealed(*pair.listened, largest), pair.from_dialler).plain == largest);
    CHECK(pair.dialler->records_sealed() == 1);
    CHECK(pair.dialler->records_opened() == 2);
    CHECK(pair.from_dialler.out.empty());
    CHECK(pair.from_listener.out.empty());
}

TEST_CASE("dtls session: a record is opened once, however often it comes") {
    Pair pair;
    pair.connect();
    const Bytes record = sealed(*pair.dialler, payload);
    CHECK(open(*pair.listened, record, pair.from_listener).plain == payload);
    size_t replayed = 0;
    for (int i = 0; i < 100'000; ++i)
        replayed += open(*pair.listened, record, pair.from_listener) == refused(Refusal::replayed);
    CHECK(replayed == 100'000);
    CHECK(pair.listened->records_opened() == 1);
    CHECK(pair.from_listener.out.empty());
    CHECK(open(*pair.listened, sealed(*pair.dialler, payload), pair.from_listener).plain == payload);
}

TEST_CASE("dtls session: a bit flipped anywhere, and a record cut anywhere") {
    for (const auto cipher : {CipherPreference::aes, CipherPreference::chacha}) {
        CAPTURE(int(cipher));
        Pair pair(Hosts::all()("hv1", cipher), Hosts::all()("hv2", cipher));
        pair.connect();
        const Bytes record = sealed(*pair.dialler, payload);
        constexpr size_t type = 0, version = 1, epoch = 3, number = 5, length = 11, header = 13;
        for (size_t at = 0; at < record.size(); ++at) {
            for (int bit = 0; bit < 8; ++bit) {
                CAPTURE(at);
                CAPTURE(bit);
                Bytes flipped = record;
                flipped[at] = static_cast<uint8_t>(flipped[at] ^ 1 << bit);
                const Opened got = open(*pair.listened, flipped, pair.from_listener);
                CHECK(got.plain.empty());
                if ((at >= version && at < number) || (at >= length && at < header)) {
                    // 0xfefd and 0xfeff differ in one bit: the header is one of DTLS, the tag does not hold.
                    const bool other_version = at == version + 1 && bit == 1;
                    CHECK(got.refusal == (other_version ? Refusal::forged : Refusal::malformed));
                    static_assert(epoch > version && epoch < number);
                } else if (at == type) {
                    CHECK((got.refusal == Refusal::malformed || got.refusal == Refusal::forged));
                } else {
                    CHECK(got.refusal == Refusal::forged);
                }
            }
        }
        for (size_t size = 0; size < record.size(); ++size) {
            CAPTURE(size);
            CHECK(open(*pair.listened, std::span(record).first(size), pair.from_listener) ==
                  refused(Refusal::malformed));
        }
        Bytes longer = record;
        longer.push_back(0);
        CHECK(open(*pair.listened, longer, pair.from_listener) == refused(Refusal::malformed));
        // All that has not moved the window: the record itself is as good as ever.
        CHECK(pair.listened->state() == Session::State::up);
        CHECK(pair.from_listener.out.empty());
        CHECK(open(*pair.listened, record, pair.from_listener).plain == payload);
    }
}

TEST_CASE("dtls session: a record cut short with its length mended is forged") {
    Pair pair;
    pair.connect();
    const Bytes record = sealed(*pair.dialler, payload);
    for (size_t size = 13; size < record.size(); ++size) {
        CAPTURE(size);
        Bytes cut(record.begin(), record.begin() + static_cast<ptrdiff_t>(size));
        cut[11] = static_cast<uint8_t>((size - 13) >> 8);
        cut[12] = static_cast<uint8_t>(size - 13);
        CHECK(open(*pair.listened, cut, pair.from_listener) == refused(Refusal::forged));
    }
    CHECK(open(*pair.listened, record, pair.from_listener).plain == payload);
}

TEST_CASE("dtls session: records may come late by 63, not by 64") {
    Pair pair;
    pair.connect();
    std::vector<Bytes> records;
    for (uint8_t i = 0; i < 130; ++i) records.push_back(sealed(*pair.dialler, Bytes{i}));
    const auto arrives = [&](size_t i) { return open(*pair.listened, records[i], pair.from_listener); };
    CHECK(arrives(100).plain == Bytes{100});
    CHECK(arrives(36) == refused(Refusal::too_old));
    CHECK(arrives(35) == refused(Refusal::too_old));
    for (uint8_t i = 99; i >= 37; --i) CHECK(arrives(i).plain == Bytes{i});
    for (uint8_t i = 37; i <= 100; ++i) CHECK(arrives(i) == refused(Refusal::replayed));
    CHECK(arrives(129).plain == Bytes{129});
    CHECK(arrives(65) == refused(Refusal::too_old));
    CHECK(arrives(66) == refused(Refusal::replayed));
    CHECK(arrives(101).plain == Bytes{101});
    CHECK(pair.listened->records_opened() == 1 + 63 + 2);
}

TEST_CASE("dtls session: strangers' datagrams change nothing") {
    Pair pair;
    pair.connect();
    uint32_t random = 1;
    for (int i = 0; i < 20'000; ++i) {
        Bytes noise((random >> 8) % 200);
        for (auto& byte : noise) byte = static_cast<uint8_t>((random = random * 1664525 + 1013904223) >> 24);
        random = random * 1664525 + 1013904223;
        if (noise.size() > 13 && i % 2 == 0) {  // half of them with a header in order
            const uint8_t type = static_cast<uint8_t>(20 + i / 2 % 4), epoch = static_cast<uint8_t>(i / 8 % 3);
            const Bytes header{type, 0xfe, 0xfd, 0, epoch, 0, 0, 0, 0, 1, noise[5]};
            std::copy(header.begin(), header.end(), noise.begin());
            noise[11] = 0;
            noise[12] = static_cast<uint8_t>(noise.size() - 13);
        }
        for (Session* session : {pair.listened.get(), pair.dialler.get()}) {
            const Opened got = open(*session, noise, pair.from_listener);
            CHECK(got.plain.empty());
            session->on_handshake(noise, pair.from_listener);
        }
    }
    CHECK(pair.listened->state() == Session::State::up);
    CHECK(pair.dialler->state() == Session::State::up);
    CHECK(pair.from_listener.out.empty());
    CHECK(open(*pair.listened, sealed(*pair.dialler, payload), pair.from_listener).plain == payload);
    CHECK(open(*pair.dialler, sealed(*pair.listened, payload), pair.from_dialler).plain == payload);
}

TEST_CASE("dtls session: a record that claims to be a handshake's opens nothing") {
    Pair pair;
    pair.connect();
    for (Session* session : {pair.dialler.get(), pair.listened.get()})
        for (const size_t size : {0, 1, 23, 24, 64, 1000}) {
            CAPTURE(size);
            Bytes record{22, 0xfe, 0xfd, 0, 1, 0, 0, 0, 0, 0, 0, uint8_t(size >> 8), uint8_t(size)};
            record.resize(record.size() + size, 0x41);
            CHECK(open(*session, record, pair.from_listener) == refused(Refusal::malformed));
            record[0] = 21;  // an alert: it has its place here, but does not authenticate
            CHECK(open(*session, record, pair.from_listener) == refused(Refusal::forged));
        }
    CHECK(pair.from_listener.out.empty());
    CHECK(open(*pair.dialler, sealed(*pair.listened, payload), pair.from_dialler).plain == payload);
    CHECK(open(*pair.listened, sealed(*pair.dialler, payload), pair.from_listener).plain == payload);
}

TEST_CASE("dtls session: rekeyed by a second one beside the first") {
    Pair first, second;
    first.connect();
    second.connect();
    const Bytes before = sealed(*first.dialler, payload), after = sealed(*second.dialler, payload);
    CHECK(open(*first.listened, after, first.from_listener) == refused(Refusal::forged));
    CHECK(open(*second.listened, before, second.from_listener) == refused(Refusal::forged));
    CHECK(open(*second.listened, after, second.from_listener).plain == payload);
    CHECK(open(*first.listened, before, first.from_listener).plain == payload);
    first.dialler->close(first.from_dialler);
    CHECK(open(*second.listened, sealed(*second.dialler, payload), second.from_listener).plain == payload);
}

TEST_CASE("dtls session: close is told once, and replayed it says nothing") {
    Pair pair, other;
    pair.connect();
    other.connect();
    pair.dialler->close(pair.from_dialler);
    CHECK(pair.dialler->state() == Session::State::closed);
    CHECK(pair.dialler->why_closed() == "closed by this host");
    CHECK_FALSE(seal(*pair.dialler, payload));
    REQUIRE(pair.from_dialler.out.size() == 1);
    pair.dialler->close(pair.from_dialler);
    pair.dialler->fail("too late");
    CHECK(pair.dialler->why_closed() == "closed by this host");
    REQUIRE(pair.from_dialler.out.size() == 1);
    const Bytes alert = pair.from_dialler.out[0];
    CHECK(open(*other.listened, alert, other.from_listener) == refused(Refusal::forged));
    CHECK(other.listened->state() == Session::State::up);
    CHECK(open(*pair.listened, alert, pair.from_listener) == refused(Refusal::none));
    CHECK(pair.listened->state() == Session::State::closed);
    CHECK(pair.listened->why_closed() == "closed by the other end");
    CHECK(open(*pair.listened, alert, pair.from_listener) == refused(Refusal::malformed));
    CHECK_FALSE(seal(*pair.listened, payload));

    other.listened->fail("no longer wanted");
    CHECK(other.listened->why_closed() == "no longer wanted");
    CHECK(other.from_listener.out.empty());
}

TEST_CASE("dtls session: ChaCha20 when either end prefers it") {
    constexpr auto aes = CipherPreference::aes, chacha = CipherPreference::chacha;
    const struct {
        CipherPreference dials, listens;
        std::string taken;
        size_t overhead;
    } table[] = {
        {aes, aes, "AES-128-GCM", 37},
        {aes, chacha, "CHACHA20-POLY1305", 29},
        {chacha, aes, "CHACHA20-POLY1305", 29},
        {chacha, chacha, "CHACHA20-POLY1305", 29},
    };
    for (const auto& row : table) {
        CAPTURE(int(row.dials));
        CAPTURE(int(row.listens));
        Pair pair(Hosts::all()("hv1", row.dials), Hosts::all()("hv2", row.listens));
        pair.connect();
        CHECK(pair.dialler->cipher() == row.taken);
        CHECK(pair.listened->cipher() == row.taken);
        const Bytes record = sealed(*pair.dialler, payload);
        CHECK(record.size() == payload.size() + row.overhead);
        CHECK(open(*pair.listened, record, pair.from_listener).plain == payload);
    }
}

TEST_CASE("dtls session: one whose records run out is closed") {
    Pair pair;
    pair.connect();
    pair.dialler->limit_records(3);
    pair.dialler->limit_records(1'000);  // a limit does not grow
    for (int i = 0; i < 3; ++i) sealed(*pair.dialler, payload);
    CHECK(pair.dialler->state() == Session::State::up);
    CHECK_FALSE(seal(*pair.dialler, payload));
    CHECK(pair.dialler->state() == Session::State::closed);
    CHECK(pair.dialler->why_closed() == "its records are used up");
    CHECK(pair.dialler->records_sealed() == 3);
    CHECK(pair.from_dialler.out.empty());
    const Bytes too_long(16385, 1);
    CHECK_FALSE(seal(*pair.listened, too_long));
    CHECK_FALSE(seal(*pair.listened, {}));
    CHECK(pair.listened->state() == Session::State::up);
}

TEST_CASE("dtls session: what is asked wrongly is refused") {
    Mail mail;
    const auto context = Hosts::all()("hv1");
    CHECK(Session::dial(context, "hv 2", 1200, mail).error().code() == Errc::invalid);
    CHECK(Session::dial(context, "hv2", 255, mail).error().message() ==
          "DTLS session: 255 bytes of handshake per datagram; at least 256");
    CHECK(mail.out.empty());
    const auto missing = Context::load({"/nonexistent/ca.crt", "", ""}, CipherPreference::aes);
    CHECK(missing.error().message().find("/nonexistent/ca.crt") != std::string::npos);
    for (size_t i = 0; i < static_cast<size_t>(Refusal::count_); ++i)
        CHECK(std::string_view(refusal_name(static_cast<Refusal>(i))) != "");
}
