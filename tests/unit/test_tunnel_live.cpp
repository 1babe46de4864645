// A session's own messages, byte by byte (doc/dtls-wire.md, "The session's own messages"), and what a session and a
// channel of several take for a sign of life, for a reason to dial, and for a refusal. And the lane's budget.
//
//   hv1 (dials; its Live sends to a socket of ours) ==== in memory ==== hv2 (listens)
#include <arpa/inet.h>
#include <sys/socket.h>

#include <algorithm>

#include "base/clock.h"
#include "tests/fuzz/frames.h"
#include "tests/unit/tunnel_dtls_parties.h"
#include "tunnel/lane.h"

using namespace banana;
using namespace banana::tunnel;
using namespace banana::tunnel::testing;

namespace {

// A socket that is sent to by itself.
struct Loopback {
    Fd socket{::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
    Endpoint here;

    Loopback() {
        sockaddr_in bound{};
        bound.sin_family = AF_INET;
        bound.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        socklen_t size = sizeof(bound);
        REQUIRE(::bind(socket.get(), reinterpret_cast<const sockaddr*>(&bound), size) == 0);
        REQUIRE(::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&bound), &size) == 0);
        here = Endpoint::of(*IpAddress::parse("127.0.0.1"), ntohs(bound.sin_port));
    }
};

struct Ends : Loopback {
    Pair pair;
    SendBatch batch{false};
    std::unique_ptr<Live> live;

    Ends() {
        pair.connect();
        live = std::make_unique<Live>(batch, Place{socket.get(), here, 1, 3, 0x0203, 0x0102});
        live->session = std::move(pair.dialler);
    }

    // The datagram that the Live has sent, empty: none.
    Bytes sent() {
        batch.flush();
        Bytes datagram(65536);
        const ssize_t size = ::recv(socket.get(), datagram.data(), datagram.size(), 0);
        datagram.resize(size > 0 ? static_cast<size_t>(size) : 0);
        return datagram;
    }

    Bytes opened(const Bytes& datagram) {
        REQUIRE(datagram.size() > data_header_bytes);
        CHECK(Bytes(datagram.begin(), datagram.begin() + 4) == Bytes{0x22, 0x03, 0x01, 0x02});
        return open(*pair.listened, std::span(datagram).subspan(data_header_bytes), pair.from_listener).plain;
    }
};

const Bytes entry_header{0, 0, 0, 0, 0, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
const Bytes ping{1, 0, 0x05, 0xdc, 0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef};
const Bytes answer{2, 0, 0x05, 0xdc, 0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef};

Bytes joined(const Bytes& a, const Bytes& b) {
    Bytes both = a;
    both.insert(both.end(), b.begin(), b.end());
    return both;
}

constexpr int64_t second = 1'000'000'000;

// A channel of hv1's to hv2. What its sessions send comes to the socket that they send by, is handed to hv2's end of
// each, and answered at once. Time is the test's, from when it began.
struct Dialled final : Loopback, ChannelHost {
    struct Other final : Sink {  // hv2's end of a session
        std::vector<Bytes> out;
        std::unique_ptr<Session> session;
        void put(std::span<const uint8_t> record) override { out.emplace_back(record.begin(), record.end()); }
    };

    SendBatch sends{false};
    RekeyLimits limits;
    bool full = false;     // of sessions
    bool closes = false;   // hv2 closes what is new as soon as it is up
    uint16_t dialled = 0;  // sessions so far
    unsigned changes = 0;
    std::map<uint16_t, Live*> lives;
    std::map<uint16_t, Other> others;
    std::unique_ptr<Listener> listener;
    std::unique_ptr<Channel> channel;
    int64_t now = monotonic_ns();

    Dialled() {
        listen("hv2");
        channel = std::make_unique<Channel>(*this, "hv2", here);
    }

    SendBatch& batch() override { return sends; }
    ContextPtr context() const override { return Hosts::all()("hv1"); }
    const RekeyLimits& rekey_limits() const override { return limits; }
    Place dialling_place(const Endpoint& to) override {
        return {socket.get(), to, 0, 0, full ? uint16_t{0} : ++dialled, 0};
    }
    void keep(Live& live) override { lives[live.place.own_index] = &live; }
    void forget(Live& live) override { lives.erase(live.place.own_index); }
    void changed(Channel&) override { changes++; }
    void switched(Channel&) override {}

    void listen(const std::string& certificate) {
        listener = std::make_unique<Listener>(Hosts::all()(certificate), 1200);
    }

    void hand_over(std::span<uint8_t> datagram) {
        const auto header = read_header(datagram);
        REQUIRE(header);
        const auto records = datagram.subspan(header->bytes());
        const uint16_t index = header->kind == DatagramKind::data ? header->index : header->from_index;
        Other& other = others[index];
        if (header->kind == DatagramKind::data) {
            Refusal refusal;
            other.session->open(records, refusal, other);
            return;
        }
        const auto* sender = reinterpret_cast<const uint8_t*>(&index);
        if (other.session)
            other.session->on_handshake(records, other);
        else
            other.session = listener->on_hello(records, {sender, sizeof index}, other);
        for (const auto& record : std::exchange(other.out, {}))
            if (lives.contains(index)) {
                if (other.session) lives[index]->place.peer_index = index;
                channel->handshake(*lives[index], record, now);
            }
        if (closes && other.session && other.session->state() == Session::State::up) {
            other.session->close(other);
            hv2_says(index, other.out.at(0));
        }
    }

    void hv2_says(uint16_t index, Bytes record) {
        const auto live = lives.find(index);
        if (live == lives.end() || !live->second->up()) return;
        if (!live->second->open(record, here, now).empty()) channel->opened(*live->second, now);
    }

    // What is to be done at a time. hv2 keeps all of its sessions alive.
    void pass(int64_t ns) {
        now += ns;
        for (auto& [index, other] : others)
            if (other.session && other.session->state() == Session::State::up)
                hv2_says(index, sealed(*other.session, entry_header));
        channel->tick(now);
        settle();
    }
    void settle() {
        Bytes datagram(65536);
        for (sends.flush();; sends.flush()) {
            const ssize_t size = ::recv(socket.get(), datagram.data(), datagram.size(), 0);
            if (size <= 0) return;
            hand_over({datagram.data(), static_cast<size_t>(size)});
        }
    }
    bool is_up() const { return channel->state() == ChannelState::up; }
};

}  // namespace

TEST_CASE("live: the answer to a ping") {
    Ends ends;
    Bytes padded = ping;
    padded.resize(1419);  // zeros behind it count for nothing
    for (const Bytes& message : {ping, padded}) {
        ends.live->on_control(message, ends.here, monotonic_ns());
        CHECK(ends.opened(ends.sent()) == joined(entry_header, answer));
    }
}

TEST_CASE("live: messages that are none") {
    Ends ends;
    const Bytes too_short(ping.begin(), ping.end() - 1);
    Bytes unknown = ping;
    unknown[0] = 3;
    for (const Bytes& message : {too_short, unknown, Bytes{}})
        ends.live->on_control(message, ends.here, monotonic_ns());
    CHECK(ends.sent().empty());
    CHECK(ends.live->bad_control == 3);
    // An answer to no ping of ours is none either, but may be an old one.
    ends.live->on_control(answer, ends.here, monotonic_ns());
    CHECK(ends.sent().empty());
    CHECK(ends.live->round_trip_ns == 0);
}

TEST_CASE("live: a ping that probes the path is as large as it says") {
    Ends ends;
    const int64_t now = monotonic_ns();
    ends.live->tick(now);
    const Bytes datagram = ends.sent();
    CHECK(datagram.size() == 1500 - 28);
    const Bytes plain = ends.opened(datagram);
    REQUIRE(plain.size() == datagram.size() - data_header_bytes - record_overhead);
    CHECK(Bytes(plain.begin(), plain.begin() + 4) == Bytes{0, 0, 0, 0});
    CHECK(size_t{plain[4]} * 256 + plain[5] == plain.size() - entry_bytes);
    CHECK(Bytes(plain.begin() + 16, plain.begin() + 20) == Bytes{1, 0, 0x05, 0xdc});
    CHECK(std::all_of(plain.begin() + 28, plain.end(), [](uint8_t byte) { return byte == 0; }));
    CHECK(ends.live->path.current() == PathMtu::floor_bytes);
    // Its answer: the size is known to pass, and the round trip.
    Bytes back(plain.begin() + 16, plain.begin() + 28);
    back[0] = 2;
    ends.live->on_control(back, ends.here, now + 7'000'000);
    CHECK(ends.live->path.current() == 1500);
    CHECK(ends.live->round_trip_ns == 7'000'000);
}

TEST_CASE("live: what does not authenticate is no sign of life") {
    Ends ends;
    const int64_t start = monotonic_ns();
    ends.live->greet(start);
    ends.live->last_opened = start;
    const int64_t late = start + Live::dead_ns + 1;
    uint64_t refused = 0;
    for (const uint8_t type : {20, 21, 22, 23})
        for (const uint8_t epoch : {0, 1, 2}) {
            CAPTURE(int(type));
            CAPTURE(int(epoch));
            Bytes record{type, 0xfe, 0xfd, 0, epoch, 0, 0, 0, 0, 0, 0, 0, 64};
            record.resize(13 + 64, 0x41);
            CHECK(ends.live->open(record, ends.here, late).empty());
            uint64_t sum = 0;
            for (const uint64_t count : ends.live->refused) sum += count;
            CHECK(sum == ++refused);
        }
    CHECK(ends.live->last_opened == start);
    CHECK(ends.live->dead(late));
    // What does is one.
    Bytes record = sealed(*ends.pair.listened, entry_header);
    CHECK_FALSE(ends.live->open(record, ends.here, late).empty());
    CHECK(ends.live->last_opened == late);
    CHECK_FALSE(ends.live->dead(late));
}

TEST_CASE("live: one address is asked in a second, from however many records come") {
    Ends ends;
    const int64_t start = monotonic_ns();
    const auto asked = [&](int64_t at, uint16_t port) {
        const uint64_t before = ends.batch.counters().datagrams;
        Bytes record = sealed(*ends.pair.listened, entry_header);
        CHECK_FALSE(ends.live->open(record, Endpoint::of(*IpAddress::parse("127.0.0.1"), port), start + at).empty());
        ends.batch.flush();
        return ends.batch.counters().datagrams - before;
    };
    CHECK(asked(0, 9) == 1);
    for (uint16_t port = 10; port < 100; port++) CHECK(asked(second / 100 * port, port) == 0);
    CHECK(asked(second + 1, 100) == 1);
    CHECK(asked(second + 2, 9) == 0);
}

TEST_CASE("live: an address that could not be asked is asked later, and who has answered may move again at once") {
    Ends ends;
    const int64_t start = monotonic_ns();
    const Endpoint elsewhere = Endpoint::of(*IpAddress::parse("127.0.0.1"), 9);
    const auto record_from = [&](const Endpoint& from, int64_t at) {
        Bytes record = sealed(*ends.pair.listened, entry_header);
        CHECK_FALSE(ends.live->open(record, from, at).empty());
    };
    const auto answered = [&](int64_t at) {
        const Bytes plain = ends.opened(ends.sent());
        REQUIRE(plain.size() == entry_bytes + ping.size());
        Bytes back(plain.begin() + entry_bytes, plain.end());
        back[0] = 2;
        ends.live->on_control(back, ends.here, at);
    };
    ends.live->place.to = elsewhere;
    record_from(Endpoint::of(*IpAddress::parse("127.0.0.1"), 10), start);  // asked in vain
    record_from(ends.here, start + second / 2);
    CHECK(ends.sent().empty());
    ends.live->superseded = start;  // nothing but that ping
    ends.live->tick(start + second + 1);
    answered(start + second + 2);
    CHECK(ends.live->moved == 1);
    CHECK(ends.live->place.to == ends.here);
    ends.live->place.to = elsewhere;
    for (int i = 0; i < 3; i++) record_from(ends.here, start + second + 3);
    answered(start + second + 4);
    CHECK(ends.live->moved == 2);
    ends.live->tick(start + 3 * second);
    CHECK(ends.sent().empty());
}

TEST_CASE("live: frames that a session cannot take any more are counted") {
    Ends ends;
    ends.live->session->limit_records(1);
    const Bytes frame(60, 0x5a);
    Entry header;
    header.connector = 7;
    const auto pack = [&](size_t frames) {
        for (size_t i = 0; i < frames; i++) ends.live->pack(header, frame);
        ends.live->flush_pack();
    };
    pack(3);
    CHECK(ends.live->up());
    CHECK(ends.live->unsent == 0);
    pack(4);
    CHECK(ends.live->closed());
    CHECK(ends.live->unsent == 4);
    ends.live->seal(frame);
    CHECK(ends.live->unsent == 5);
}

TEST_CASE("channel: however often it dials, its sessions are of a bounded number, the one in use among them") {
    Dialled at;
    at.pass(0);
    REQUIRE(at.is_up());
    for (size_t i = 0; i < 3 * Channel::sessions_max; i++) {
        at.channel->rekey(at.now);
        at.settle();
        at.pass(second);
        CHECK(at.channel->sessions().size() <= Channel::sessions_max);
        REQUIRE(at.channel->current() != nullptr);
        CHECK(at.channel->current()->place.own_index == at.dialled);
    }
}

TEST_CASE("channel: without a place for a session none is made, and it says so") {
    Dialled at;
    at.full = true;
    at.pass(0);
    CHECK(at.channel->sessions().empty());
    CHECK_FALSE(at.is_up());
    CHECK(at.channel->reason() == "no place for a session is left in this lane");
    at.full = false;
    for (int i = 0; i < 60 && !at.is_up(); i++) at.pass(second / 10);
    CHECK(at.is_up());
    CHECK(at.channel->reason() == "");
}

TEST_CASE("channel: one whose records are used up is dialled anew at once") {
    Dialled at;
    at.pass(0);
    REQUIRE(at.is_up());
    Live* const first = at.channel->current();
    at.pass(6 * second);
    first->session->limit_records(first->session->records_sealed());
    first->seal(entry_header);
    CHECK(first->unsent == 1);
    at.pass(second / 100);
    CHECK(at.is_up());
    CHECK(at.dialled == 2);
    CHECK(at.channel->current()->place.own_index == 2);
}

// Twice: the certificate is expired; hv2 takes the session and closes it.
TEST_CASE("channel: a rekey that fails is tried again every 5 s, and told; the session goes on") {
    for (const bool closes : {false, true}) {
        CAPTURE(closes);
        Dialled at;
        at.limits.age_ns = 6 * second;
        at.pass(0);
        REQUIRE(at.is_up());
        Live* const first = at.channel->current();
        if (closes)
            at.closes = true;
        else
            at.listen("expired");
        for (int i = 0; i < 700; i++) {
            at.pass(second / 10);
            REQUIRE(at.is_up());
            REQUIRE_FALSE(first->closed());
        }
        CHECK(at.dialled > 64 / 5);
        CHECK(at.dialled < 64 / 5 + 8);
        const std::string reason = at.channel->reason();
        CHECK_MESSAGE(reason.find("rekey: ") == 0, reason);
        CHECK_MESSAGE(reason.find(closes ? "closed by the other end" : "expired") != std::string::npos, reason);
        // As soon as it can be, it is.
        at.closes = false;
        at.listen("hv2");
        for (int i = 0; i < 51; i++) at.pass(second / 10);
        CHECK(at.is_up());
        CHECK(at.channel->current() != first);
        CHECK(at.channel->reason() == "");
        const uint16_t before = at.dialled;
        for (int i = 0; i < 120; i++) at.pass(second / 10);
        CHECK(at.dialled <= before + 2);
    }
}

TEST_CASE("channel: refusals of what comes from its peer's address are told once a second") {
    Dialled at;
    for (int i = 0; i < 1000; i++) at.channel->note_refusal(std::to_string(i), at.now + i * (second / 1000));
    CHECK(at.changes == 1);
    CHECK(at.channel->reason() == "0");
    at.channel->note_refusal("later", at.now + second);
    CHECK(at.changes == 2);
    CHECK(at.channel->reason() == "later");
}

TEST_CASE("lane: the budget for handshakes") {
    Budget budget(50, 64);
    const auto taken = [&](int64_t at, int wanted) {
        int got = 0;
        for (; got < wanted && budget.left(at); got++) budget.take(at);
        return got;
    };
    CHECK(taken(7 * second, 1000) == 64);
    CHECK(taken(7 * second + second / 100, 1000) == 0);
    CHECK(taken(7 * second + second / 50, 1000) == 1);
    CHECK(taken(8 * second, 1000) == 49);
    CHECK(taken(9 * second, 10) == 10);
    CHECK(taken(9 * second, 1000) == 40);
    CHECK(taken(100 * second, 1000) == 64);
}

TEST_CASE("live: of a TCP frame whose end was lost, what came is due at once") {
    Ends ends;
    Shape shape;
    shape.payload = 3000;
    shape.gso_size = 1000;
    const auto records = cut(make_frame(shape), slice_headroom + 54 + 1000);
    REQUIRE(records.size() == 3);
    size_t delivered = 0;
    const Deliver deliver = [&](uint32_t, const Offload&, std::span<uint8_t>) { ++delivered; };
    const int64_t now = monotonic_ns();
    CHECK(ends.live->due(now) > now);
    for (const size_t i : {0, 1}) {
        std::span<const uint8_t> rest = records[i];
        CHECK_FALSE(ends.live->joiner.add(*next_entry(rest), deliver));
    }
    CHECK(delivered == 0);
    CHECK(ends.live->due(now) == now);
    ends.live->joiner.flush(deliver);
    CHECK(delivered == 1);
    CHECK(ends.live->due(now) > now);
}
