// A lane, and a peer that speaks the real protocol but says what it likes:
//
//   queue 7 (hv2's wire) --- [ lane of hv1 ] 127.0.0.1:4790 === loopback === 127.0.0.1:any [ peer: hv2, or who says so
//   ] queue 8 (hv3's wire) ---/
//
// A queue is a pair of sockets in the place of a tap's. The namespace has no name: it goes with the process.
#include <doctest/doctest.h>
#include <poll.h>
#include <sys/socket.h>

#include <cstdlib>
#include <random>

#include "base/clock.h"
#include "test_netlink_world.h"
#include "tests/unit/tunnel_dtls_parties.h"
#include "tunnel/lane.h"
#include "tunnel/octets.h"

using namespace banana;
using namespace banana::tunnel;
using banana::tunnel::testing::Bytes;
using banana::tunnel::testing::Hosts;
using netlink::ip;
using netlink::why;

namespace {

constexpr uint16_t port = 4790;
constexpr uint32_t own_wire = 7, foreign_wire = 8;
constexpr int64_t patience_ns = 20'000'000'000;

bool within(const std::function<bool()>& condition) {
    for (const int64_t end = monotonic_ns() + patience_ns; monotonic_ns() < end;)
        if (condition()) return true;
    return false;
}

struct Queue {
    Fd ours, handed;
    Queue() {
        int ends[2];
        REQUIRE(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) == 0);
        ours.reset(ends[0]);
        handed.reset(ends[1]);
    }
    // The next frame; empty: none came for `ms`.
    Bytes read(int ms) const {
        pollfd one{ours.get(), POLLIN, 0};
        if (::poll(&one, 1, ms) != 1) return {};
        Bytes bytes(70'000);
        const ssize_t got = ::recv(ours.get(), bytes.data(), bytes.size(), 0);
        REQUIRE(got >= static_cast<ssize_t>(vnet_bytes));
        return {bytes.begin() + vnet_bytes, bytes.begin() + got};
    }
    void write(const Bytes& frame) const {
        Bytes bytes(vnet_bytes);
        bytes.insert(bytes.end(), frame.begin(), frame.end());
        REQUIRE(::send(ours.get(), bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()));
    }
};

struct Listening {
    netlink::Bench bench;
    Queue own, foreign;
    std::unique_ptr<Lane> lane;

    Listening() {
        bench.make(netlink::set_up("lo"));
        auto sockets = open_lane_sockets(ip("127.0.0.1"), port, 1, 1 << 20);
        REQUIRE_MESSAGE(sockets.ok(), why(sockets));
        lane = std::make_unique<Lane>(Hosts::all()("hv1"), std::move(sockets->front()), LaneConfig{}, [](auto&&...) {});
        lane->run([&] {
            lane->set_peer("hv2", Endpoint::of(ip("127.0.0.1"), 9));  // nobody is there: only the peer dials
            lane->set_peer("hv3", Endpoint::of(ip("127.0.0.2"), 9));
            lane->add_wire(own_wire, "own", "hv2", 1500, std::move(own.handed), true);
            lane->add_wire(foreign_wire, "foreign", "hv3", 1500, std::move(foreign.handed), true);
        });
    }

    uint64_t dropped(Drop reason) {
        uint64_t sum = 0;
        lane->run([&] {
            const auto at = static_cast<size_t>(reason);
            sum = lane->counters().drops[at] + lane->wire(own_wire)->drops[at] + lane->wire(foreign_wire)->drops[at];
        });
        return sum;
    }
    uint64_t dropped() {
        uint64_t sum = 0;
        for (size_t i = 0; i < static_cast<size_t>(Drop::count_); i++) sum += dropped(static_cast<Drop>(i));
        return sum;
    }
    std::string reason() {
        std::string out;
        lane->run([&] { out = lane->channels().at("hv2")->reason(); });
        return out;
    }
    bool up() {
        bool out = false;
        lane->run([&] { out = lane->channels().at("hv2")->state() == ChannelState::up; });
        return out;
    }
};

class Peer final : public Sink {
public:
    explicit Peer(const std::string& certificate = "hv2", uint16_t index = 5, const char* address = "127.0.0.1")
        : index_(index) {
        socket_.reset(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
        const Endpoint own = Endpoint::of(ip(address), 0);
        REQUIRE(::bind(socket_.get(), reinterpret_cast<const sockaddr*>(&own.raw), own.size()) == 0);
        auto made = Session::dial(Hosts::all()(certificate), "hv1", 1200, *this);
        REQUIRE_MESSAGE(made.ok(), why(made));
        session = std::move(*made);
    }

    void put(std::span<const uint8_t> record) override {
        const bool data = session && session->state() == Session::State::up;
        const auto kind = data ? DatagramKind::data : (theirs_ == 0 ? DatagramKind::hello : DatagramKind::handshake);
        const DatagramHeader header{kind, 0, theirs_, 0, index_};
        Bytes bytes(handshake_header_bytes + record.size());
        const size_t head = write_header(bytes.data(), header);
        std::copy(record.begin(), record.end(), bytes.begin() + static_cast<long>(head));
        bytes.resize(head + record.size());
        if (kind == DatagramKind::hello) hello_ = bytes;
        send(bytes);
    }
    // Its last hello, which bears a cookie, comes anew.
    void repeat_hello() const { send(hello_); }
    // Ends by an alert what the lane has begun for it. False: it has begun nothing new within `ms`.
    bool abort(int ms) {
        while (waiting(ms)) {
            Bytes bytes(65536);
            const ssize_t got = ::recv(socket_.get(), bytes.data(), bytes.size(), 0);
            const auto header = read_header({bytes.data(), static_cast<size_t>(std::max<ssize_t>(got, 0))});
            REQUIRE(header);
            if (header->kind != DatagramKind::handshake || header->from_index == theirs_) continue;
            theirs_ = header->from_index;
            put(Bytes{21, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 9, 0, 2, 2, 40});  // handshake_failure, in the clear
            return true;
        }
        return false;
    }
    void send(std::span<const uint8_t> datagram) const {
        const Endpoint to = Endpoint::of(ip("127.0.0.1"), port);
        REQUIRE(::sendto(socket_.get(), datagram.data(), datagram.size(), 0, reinterpret_cast<const sockaddr*>(&to.raw),
                         to.size()) > 0);
    }

    // Whether there is a datagram within `ms`.
    bool waiting(int ms) const {
        pollfd one{socket_.get(), POLLIN, 0};
        return ::poll(&one, 1, ms) == 1;
    }
    bool take(int ms = 5) {
        if (!waiting(ms)) return false;
        Bytes bytes(65536);
        const ssize_t got = ::recv(socket_.get(), bytes.data(), bytes.size(), 0);
        if (got <= 0) return false;
        const std::span<const uint8_t> datagram(bytes.data(), static_cast<size_t>(got));
        const auto header = read_header(datagram);
        REQUIRE(header);
        if (header->kind == DatagramKind::handshake) theirs_ = header->from_index;
        if (header->kind != DatagramKind::data) session->on_handshake(datagram.subspan(header->bytes()), *this);
        return true;
    }
    bool finished() {
        return within([&] {
            take();
            return session->state() != Session::State::handshaking;
        });
    }
    void seal(const Bytes& plain) {
        Bytes record(session->overhead() + plain.size());
        std::copy(plain.begin(), plain.end(), record.begin() + static_cast<long>(session->head()));
        REQUIRE(session->seal(record));
        put(record);
    }

    std::unique_ptr<Session> session;

private:
    Fd socket_;
    uint16_t index_, theirs_ = 0;
    Bytes hello_;
};

Bytes entry_of(const Entry& header, const Bytes& data) {
    Bytes out(entry_bytes + slice_bytes + data.size());
    const size_t head = write_entry(out.data(), header, data.size());
    std::copy(data.begin(), data.end(), out.begin() + static_cast<long>(head));
    out.resize(head + data.size());
    return out;
}

Bytes frame_of(size_t bytes, uint8_t fill = 0x5a) {
    Bytes frame(bytes, fill);
    if (bytes >= ethernet_bytes) put16(&frame[12], 0x88b5);
    return frame;
}

Bytes on_wire(uint32_t wire, const Bytes& frame, const Offload& offload = {}) {
    Entry header;
    header.connector = wire;
    header.offload = offload;
    return entry_of(header, frame);
}

Bytes slice(uint32_t number, uint32_t offset, uint32_t whole, size_t bytes) {
    Entry header;
    header.connector = own_wire;
    header.is_slice = true;
    header.frame_number = number;
    header.offset = offset;
    header.frame_bytes = whole;
    return entry_of(header, frame_of(bytes));
}

Bytes changed(Bytes bytes, size_t at, uint8_t value) {
    bytes.at(at) = value;
    return bytes;
}

struct Case {
    const char* what;
    Bytes plain;
    Drop reason;
};

std::vector<Case> nonsense() {
    const Bytes good = on_wire(own_wire, frame_of(60));
    const auto with = [&](const Offload& offload) { return on_wire(own_wire, frame_of(60), offload); };
    return {
        {"an entry that is cut", Bytes(good.begin(), good.begin() + 15), Drop::bad_entry},
        {"data that is cut", Bytes(good.begin(), good.end() - 1), Drop::bad_entry},
        {"an unknown flag", changed(good, 6, 0x04), Drop::bad_entry},
        {"bytes 14 and 15 without a slice", changed(good, 15, 1), Drop::bad_entry},
        {"a slice that is cut", changed(good, 6, 0x80), Drop::bad_entry},
        {"no frame at all", on_wire(own_wire, {}), Drop::runt},
        {"13 bytes", on_wire(own_wire, frame_of(13)), Drop::runt},
        {"half a VLAN tag", on_wire(own_wire, changed(changed(frame_of(16), 12, 0x81), 13, 0)), Drop::runt},
        {"over the MTU", on_wire(own_wire, frame_of(1515)), Drop::oversized},
        {"ten times the MTU", on_wire(own_wire, frame_of(15'000)), Drop::oversized},
        {"a checksum outside", with({1, 0, 0, 14, 45}), Drop::bad_offload},
        {"a checksum far outside", with({1, 0, 0, 65535, 65535}), Drop::bad_offload},
        {"a checksum in the link header", with({1, 0, 0, 13, 0}), Drop::bad_offload},
        {"unknown segmentation", with({1, 3, 100, 14, 6}), Drop::bad_offload},
        {"TCP segmentation of what is none", with({1, 1, 100, 34, 16}), Drop::bad_offload},
        {"segmentation without a checksum", with({0, 1, 100, 0, 0}), Drop::bad_offload},
        {"an unknown wire", on_wire(99, frame_of(60)), Drop::unknown_wire},
        {"another host's wire", on_wire(foreign_wire, frame_of(60)), Drop::foreign_wire},
        {"a slice beyond its frame", slice(1, 1000, 1000, 200), Drop::bad_entry},
        {"a slice of too large a frame", slice(2, 0, 1 << 20, 200), Drop::bad_entry},
        {"a slice of no bytes", slice(3, 0, 1000, 0), Drop::bad_entry},
    };
}

}  // namespace

TEST_CASE("lane: what a peer may not send is dropped by its reason, and nothing else is") {
    Listening at;
    Peer peer;
    REQUIRE(peer.finished());
    REQUIRE(peer.session->state() == Session::State::up);
    const Bytes good = frame_of(60);
    peer.seal(on_wire(own_wire, good));
    REQUIRE(at.own.read(5000) == good);
    for (const auto& one : nonsense()) {
        INFO(one.what);
        const uint64_t before = at.dropped(one.reason), all = at.dropped();
        Bytes both = on_wire(own_wire, frame_of(70));  // what stands before it in its record is good
        both.insert(both.end(), one.plain.begin(), one.plain.end());
        peer.seal(both);
        peer.seal(on_wire(own_wire, good));
        CHECK(at.own.read(5000) == frame_of(70));
        CHECK(at.own.read(5000) == good);
        CHECK(at.dropped(one.reason) == before + 1);
        CHECK(at.dropped() == all + 1);
    }
    CHECK(at.own.read(0).empty());
    CHECK(at.foreign.read(0).empty());
}

TEST_CASE("lane: messages of the session that make no sense change nothing") {
    Listening at;
    Peer peer;
    REQUIRE(peer.finished());
    std::mt19937 random(1);
    for (size_t bytes = 0; bytes < 40; bytes++)
        for (const uint8_t type : {0, 1, 2, 3, 255}) {
            Bytes message(bytes);
            for (auto& byte : message) byte = static_cast<uint8_t>(random());
            if (bytes != 0) message[0] = type;
            peer.seal(entry_of(Entry{}, message));
            while (peer.take(0)) {
            }
        }
    peer.seal(on_wire(own_wire, frame_of(60)));
    CHECK(at.own.read(5000) == frame_of(60));
    CHECK(at.up());
    CHECK(at.dropped() == 0);
}

TEST_CASE("lane: random records deliver nothing that the wire may not carry") {
    Listening at;
    Peer peer;
    REQUIRE(peer.finished());
    std::mt19937 random(7);
    const Bytes like[] = {on_wire(own_wire, frame_of(60)), slice(1, 0, 1000, 500), on_wire(foreign_wire, frame_of(60)),
                          on_wire(own_wire, frame_of(1400), {1, 1, 500, 34, 16})};
    for (int round = 0; round < 5000; round++) {
        Bytes plain = like[random() % 4];
        for (size_t i = random() % 4; i > 0; i--)
            plain[random() % std::min<size_t>(plain.size(), 60)] ^= 1 << random() % 8;
        peer.seal(plain);
        while (peer.take(0)) {
        }
        for (Bytes got = at.own.read(0); !got.empty(); got = at.own.read(0)) CHECK(got.size() >= ethernet_bytes);
    }
    CHECK(within([&] {
        peer.seal(on_wire(own_wire, frame_of(61, 1)));
        return at.own.read(20) == frame_of(61, 1);
    }));
    CHECK(at.foreign.read(0).empty());
    CHECK(at.up());
}

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

TEST_CASE("lane: no frame is lost when a peer closes a session") {
    Listening at;
    Peer one;
    REQUIRE(one.finished());
    one.seal(on_wire(own_wire, frame_of(60)));
    REQUIRE(at.own.read(5000) == frame_of(60));
    const auto sent = [&](uint64_t frames) {
        return within([&] {
            uint64_t out = 0;
            at.lane->run([&] { out = at.lane->wire(own_wire)->sent.frames; });
            return out == frames;
        });
    };
    for (uint16_t i = 0; i < 20; i++) {
        Peer newer("hv2", static_cast<uint16_t>(500 + i));
        REQUIRE(newer.finished());
        newer.seal(on_wire(own_wire, frame_of(61)));
        REQUIRE(at.own.read(5000) == frame_of(61));
        newer.session->close(newer);
        at.own.write(frame_of(62));  // by the first, which is up
        REQUIRE(sent(i + 1u));
    }
    one.session->close(one);
    at.own.write(frame_of(63));  // waits
    CHECK(within([&] { return !at.up(); }));
    Peer next("hv2", 600);
    REQUIRE(next.finished());
    next.seal(on_wire(own_wire, frame_of(64)));
    CHECK(sent(21));
    CHECK(at.dropped(Drop::no_session) == 0);
}

TEST_CASE("lane: a peer that sends for another host's wire is told of by name") {
    Listening at;
    Peer peer;
    REQUIRE(peer.finished());
    for (int i = 0; i < 3; i++) peer.seal(on_wire(foreign_wire, frame_of(60)));
    uint64_t foreign = 0;
    CHECK(within([&] {
        at.lane->run([&] { foreign = at.lane->channels().at("hv2")->foreign(); });
        return foreign == 3;
    }));
    CHECK(at.foreign.read(0).empty());
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

// IPv4, don't fragment; `payload` bytes in datagrams of 100 each.
std::pair<Bytes, Offload> udp_gso_frame(size_t payload) {
    Bytes frame(42 + payload);
    for (size_t i = 0; i < payload; i++) frame[42 + i] = static_cast<uint8_t>(i / 100);
    put16(&frame[12], 0x0800);
    frame[14] = 0x45;
    put16(&frame[16], static_cast<uint16_t>(28 + payload));
    put16(&frame[20], 0x4000);
    frame[23] = 17;
    put16(&frame[38], static_cast<uint16_t>(8 + payload));
    return {frame, {Offload::needs_csum, Offload::udp_l4, 100, 34, 6}};
}

TEST_CASE("lane: UDP segmentation for a tap that has none comes as datagrams") {
    Listening at;
    at.lane->run([&] {
        Fd tap = at.lane->remove_wire(own_wire);
        at.lane->add_wire(own_wire, "own", "hv2", 1500, std::move(tap), false);
    });
    Peer peer;
    REQUIRE(peer.finished());
    const auto [frame, offload] = udp_gso_frame(250);
    peer.seal(on_wire(own_wire, frame, offload));
    peer.seal(on_wire(own_wire, frame_of(60)));
    for (const size_t bytes : {142u, 142u, 92u}) {
        const Bytes got = at.own.read(5000);
        REQUIRE(got.size() == bytes);
        CHECK(get16(&got[16]) == bytes - 14);
        CHECK(get16(&got[38]) == bytes - 34);
        CHECK(std::equal(got.begin() + 42, got.end(), frame.begin() + (got[42] == 0 ? 42 : got[42] == 1 ? 142 : 242)));
    }
    CHECK(at.own.read(5000) == frame_of(60));
    CHECK(at.dropped() == 0);
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

TEST_CASE("lane: a tap whose device is gone is let go of") {
    Listening at;
    Peer peer;
    REQUIRE(peer.finished());
    auto tap = netlink::create_tap({.name = "gone0", .multi_queue = true});
    REQUIRE_MESSAGE(tap.ok(), why(tap));
    at.lane->run([&] { at.lane->add_wire(77, "gone0", "hv2", 1500, std::move(*tap), true); });
    peer.seal(on_wire(own_wire, frame_of(60)));  // a session: taps are read from here on
    REQUIRE(at.own.read(5000) == frame_of(60));
    at.bench.make(netlink::delete_link("gone0"));
    bool holds = true;
    CHECK(within([&] {
        at.lane->run([&] { holds = static_cast<bool>(at.lane->wire(77)->tap); });
        return !holds;
    }));
    uint64_t before = 0, after = 0;
    at.lane->run([&] { before = at.lane->counters().wakeups + at.lane->counters().polls; });
    peer.seal(on_wire(own_wire, frame_of(61)));
    CHECK(at.own.read(5000) == frame_of(61));
    at.lane->run([&] { after = at.lane->counters().wakeups + at.lane->counters().polls; });
    CHECK(after - before < 1000);  // it does not spin
}
