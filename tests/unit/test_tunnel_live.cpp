// A session's own messages, byte by byte (doc/dtls-wire.md, "The session's own messages").
//
//   hv1 (dials; its Live sends to a socket of ours) ==== in memory ==== hv2 (listens)
#include <arpa/inet.h>
#include <sys/socket.h>

#include <algorithm>

#include "base/clock.h"
#include "tests/unit/tunnel_dtls_parties.h"
#include "tunnel/live.h"

using namespace banana;
using namespace banana::tunnel;
using namespace banana::tunnel::testing;

namespace {

struct Ends {
    Fd socket{::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
    Endpoint here;
    Pair pair;
    SendBatch batch{false};
    std::unique_ptr<Live> live;

    Ends() {
        sockaddr_in bound{};
        bound.sin_family = AF_INET;
        bound.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        socklen_t size = sizeof(bound);
        REQUIRE(::bind(socket.get(), reinterpret_cast<const sockaddr*>(&bound), size) == 0);
        REQUIRE(::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&bound), &size) == 0);
        here = Endpoint::of(*IpAddress::parse("127.0.0.1"), ntohs(bound.sin_port));
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
