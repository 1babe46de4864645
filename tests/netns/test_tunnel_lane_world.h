// A lane, and a peer that speaks the real protocol but says what it likes:
//
//   queue 7 (hv2's wire) --- [ lane of hv1 ] 127.0.0.1:4790 === loopback === 127.0.0.1:any [ peer: hv2, or who says so
//   ] queue 8 (hv3's wire) ---/
//
// A queue is a pair of sockets in the place of a tap's. The namespace has no name: it goes with the process.
#pragma once

#include <doctest/doctest.h>
#include <poll.h>
#include <sys/socket.h>

#include <cstdlib>
#include <functional>
#include <memory>

#include "base/clock.h"
#include "test_netlink_world.h"
#include "tests/unit/tunnel_dtls_parties.h"
#include "tunnel/lane.h"
#include "tunnel/octets.h"

namespace banana::tunnel::lane_test {

using banana::tunnel::testing::Bytes;
using banana::tunnel::testing::Hosts;
using netlink::ip;
using netlink::why;

inline constexpr uint16_t port = 4790;
inline constexpr uint32_t own_wire = 7, foreign_wire = 8;
inline constexpr int64_t patience_ns = 20'000'000'000;

inline bool within(const std::function<bool()>& condition) {
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

inline Bytes entry_of(const Entry& header, const Bytes& data) {
    Bytes out(entry_bytes + slice_bytes + data.size());
    const size_t head = write_entry(out.data(), header, data.size());
    std::copy(data.begin(), data.end(), out.begin() + static_cast<long>(head));
    out.resize(head + data.size());
    return out;
}

inline Bytes frame_of(size_t bytes, uint8_t fill = 0x5a) {
    Bytes frame(bytes, fill);
    if (bytes >= ethernet_bytes) put16(&frame[12], 0x88b5);
    return frame;
}

inline Bytes on_wire(uint32_t wire, const Bytes& frame, const Offload& offload = {}) {
    Entry header;
    header.connector = wire;
    header.offload = offload;
    return entry_of(header, frame);
}

}  // namespace banana::tunnel::lane_test
