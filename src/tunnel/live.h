// Live: one DTLS session at its place: whom it reaches, by which socket, how large a path, whether it is alive.
//
// Concepts: a session's datagrams bear the peer's lane and index (wire_format.h). Pings are one mechanism for three
// things: the peer lives (an answer, or anything else that opens), the path carries a size (the ping is padded to it),
// an address is the peer's (an answer that comes from there). A record that opens but came from another address makes
// that one a candidate; it becomes the session's when a ping that was sent there is answered from there (as RFC 9146,
// section 6). Small frames are gathered into one record (pack()) until it is full or the lane's round ends
// (flush_pack()).
//
//   control message: connector id 0, then   type (1: ping, 2: answer), 0, bytes (2: the packet's size), token (8)
//
// Threading: the lane's thread. Errors: counted.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "tunnel/dtls.h"
#include "tunnel/path_mtu.h"
#include "tunnel/segment.h"
#include "tunnel/udp.h"
#include "tunnel/wire_format.h"

namespace banana::tunnel {

class Channel;

struct Place {
    int socket = -1;
    Endpoint to;
    uint8_t own_lane = 0, peer_lane = 0;
    uint16_t own_index = 0, peer_index = 0;  // peer_index 0: not known yet
};

class Live final : public Sink {
public:
    static constexpr int64_t ping_ns = 250'000'000;          // while the peer is silent though it is spoken to
    static constexpr int64_t doubt_ns = 300'000'000;         // from a ping on, or three round trips if that is longer
    static constexpr int64_t keepalive_ns = 10'000'000'000;  // of an idle session, to keep NATs open
    static constexpr int64_t dead_ns = 5'000'000'000;        // from a ping on, without anything from the peer
    static constexpr int64_t busy_ns = 1'000'000'000;        // after the last frame, either way
    static constexpr size_t plain_max = 16384;               // of a TLS record

    Live(SendBatch& batch, const Place& place);
    ~Live() override;

    // What the handshake sends, or an alert: puts the header before it; into the batch.
    void put(std::span<const uint8_t> record) override;
    bool up() const { return session && session->state() == Session::State::up; }
    bool closed() const { return !session || session->state() == Session::State::closed; }

    size_t capacity() const;  // plaintext bytes of a record
    // Adds a small frame to the record under way; the caller has checked that it fits into capacity().
    void pack(const Entry& header, std::span<const uint8_t> frame);
    bool packing() const { return packed_ != 0; }
    void flush_pack();
    void seal(std::span<const uint8_t> plain);  // one record, of one frame, after what is packed

    // Opens a data datagram's record in place: its plaintext, if there is one. `from`: where it came from.
    std::span<uint8_t> open(std::span<uint8_t> record, const Endpoint& from, int64_t now);
    void on_control(std::span<const uint8_t> message, const Endpoint& from, int64_t now);
    void tick(int64_t now);
    int64_t due(int64_t now) const;
    void too_big(size_t datagram_bytes, int64_t now);
    bool dead(int64_t now) const { return up() && unanswered_since_ != 0 && now - unanswered_since_ > dead_ns; }
    bool in_doubt(int64_t now) const;  // the peer may be gone: time for a session beside this one
    void greet(int64_t now);           // a session that has just come up: pings until the other end has told that it is

    std::unique_ptr<Session> session;
    Channel* channel = nullptr;  // once its peer is known
    Place place;
    Joiner joiner;
    uint32_t frame_number = 0;
    int64_t created = 0, up_since = 0, last_opened = 0;
    int64_t superseded = 0;  // since when another session is the channel's
    bool carried = false;    // a wire's frames came since the last tick
    int64_t round_trip_ns = 0;
    PathMtu path;
    std::array<uint64_t, static_cast<size_t>(Refusal::count_)> refused{};
    uint64_t bad_control = 0, moved = 0;
    uint64_t unsent = 0;  // frames that the session did not take any more

private:
    void ask_candidate(int64_t now);
    void ping(int64_t now, uint32_t packet_bytes, const Endpoint& to);
    void control(uint8_t type, uint16_t packet_bytes, uint64_t token, size_t data_bytes, const Endpoint& to);
    size_t overhead() const;  // bytes of a packet besides the plaintext
    DatagramHeader header(DatagramKind kind) const;
    bool send(std::span<const uint8_t> plain, const Endpoint& to);

    SendBatch& batch_;
    std::vector<uint8_t> pack_;
    size_t packed_ = 0, packed_frames_ = 0;
    bool sent_ = false;  // since the last tick
    int64_t last_busy_ = 0;
    int64_t unanswered_since_ = 0;  // the first ping that nothing followed; 0: none
    int64_t last_ping_ = 0;
    uint64_t secret_;  // a ping's token is its time, under this
    Endpoint candidate_, unasked_;
    uint64_t candidate_token_ = 0;
    int64_t candidate_since_ = 0;  // when the last was asked
};

}  // namespace banana::tunnel
