#include "tunnel/live.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/bytes.h"
#include "base/clock.h"

namespace banana::tunnel {

namespace {

constexpr uint8_t ping_type = 1, answer_type = 2;
constexpr size_t control_bytes = 12;
constexpr uint8_t alert_content = 21;  // RFC 5246, 6.2.1
constexpr int64_t candidate_retry_ns = 1'000'000'000;

uint64_t random_u64() { return uint64_t{random_u32()} << 32 | random_u32(); }

}  // namespace

Live::Live(SendBatch& batch, const Place& where)
    : place(where), batch_(batch), pack_(plain_max), secret_(random_u64()) {
    created = last_opened = monotonic_ns();
}
Live::~Live() = default;

DatagramHeader Live::header(DatagramKind kind) const {
    return {kind, place.peer_lane, place.peer_index, place.own_lane, place.own_index};
}

void Live::put(std::span<const uint8_t> record) {
    const bool is_alert = !record.empty() && record[0] == alert_content && up();
    const auto header = this->header(is_alert                ? DatagramKind::data
                                     : place.peer_index == 0 ? DatagramKind::hello
                                                             : DatagramKind::handshake);
    uint8_t* to = batch_.reserve(header.bytes() + record.size());
    const size_t head = write_header(to, header);
    std::memcpy(to + head, record.data(), record.size());
    batch_.commit(place.socket, place.to, head + record.size());
}

// One record, sealed where the batch sends it from. False: the session is closed.
bool Live::send(std::span<const uint8_t> plain, const Endpoint& endpoint) {
    const size_t bytes = session->overhead() + plain.size();
    uint8_t* to = batch_.reserve(data_header_bytes + bytes);
    uint8_t* record = to + write_header(to, header(DatagramKind::data));
    std::memcpy(record + session->head(), plain.data(), plain.size());
    if (!session->seal({record, bytes})) return false;
    batch_.commit(place.socket, endpoint, data_header_bytes + bytes);
    return true;
}

size_t Live::overhead() const {
    const size_t ip_udp = place.to.family() == AF_INET6 ? 48 : 28;
    return ip_udp + data_header_bytes + record_overhead;
}

size_t Live::capacity() const { return std::min<size_t>(path.current() - overhead(), plain_max); }

void Live::pack(const Entry& header, std::span<const uint8_t> frame) {
    if (packed_ + entry_bytes + frame.size() > capacity()) flush_pack();
    packed_ += write_entry(pack_.data() + packed_, header, frame.size());
    std::memcpy(pack_.data() + packed_, frame.data(), frame.size());
    packed_ += frame.size();
    packed_frames_++;
}

void Live::flush_pack() {
    if (packed_ == 0) return;
    if (!send({pack_.data(), packed_}, place.to)) unsent += packed_frames_;
    packed_ = packed_frames_ = 0;
    sent_ = true;
}

void Live::seal(std::span<const uint8_t> plain) {
    flush_pack();
    if (!send(plain, place.to)) unsent++;
    sent_ = true;
}

std::span<uint8_t> Live::open(std::span<uint8_t> record, const Endpoint& from, int64_t now) {
    Refusal refusal = Refusal::none;
    const auto plain = session->open(record, refusal, *this);
    if (refusal != Refusal::none) {
        refused[static_cast<size_t>(refusal)]++;
        return {};
    }
    last_opened = now;
    unanswered_since_ = 0;
    if (!(from == place.to) && !plain.empty()) {
        unasked_ = from;
        ask_candidate(now);
    }
    return plain;
}

// One in a second, from however many addresses records come; the last of them waits for its turn.
void Live::ask_candidate(int64_t now) {
    if (unasked_ == Endpoint{} || now - candidate_since_ <= candidate_retry_ns) return;
    candidate_ = std::exchange(unasked_, {});
    candidate_since_ = now;
    candidate_token_ = random_u64();
    control(ping_type, 0, candidate_token_, control_bytes, candidate_);
}

// A message of `data_bytes`, at least control_bytes, padded with zeros. What is packed goes first: it shares the
// buffer.
void Live::control(uint8_t type, uint16_t packet_bytes, uint64_t token, size_t data_bytes, const Endpoint& to) {
    flush_pack();
    const size_t head = write_entry(pack_.data(), Entry{}, data_bytes);
    uint8_t* message = pack_.data() + head;
    std::memset(message, 0, data_bytes);
    message[0] = type;
    message[2] = static_cast<uint8_t>(packet_bytes >> 8);
    message[3] = static_cast<uint8_t>(packet_bytes);
    std::memcpy(message + 4, &token, sizeof(token));
    send({pack_.data(), head + data_bytes}, to);
}

// Its token is the time, so that the answer tells the round trip.
void Live::ping(int64_t now, uint32_t packet_bytes, const Endpoint& to) {
    const size_t least = entry_bytes + control_bytes;
    const size_t room = packet_bytes > overhead() + least ? packet_bytes - overhead() : least;
    const size_t plain = std::min(room, plain_max);
    control(ping_type, static_cast<uint16_t>(packet_bytes), static_cast<uint64_t>(now) ^ secret_, plain - entry_bytes,
            to);
}

void Live::on_control(std::span<const uint8_t> message, const Endpoint& from, int64_t now) {
    if (message.size() < control_bytes) {
        bad_control++;
        return;
    }
    const auto packet_bytes = static_cast<uint16_t>(message[2] << 8 | message[3]);
    uint64_t token = 0;
    std::memcpy(&token, message.data() + 4, sizeof(token));
    if (message[0] == ping_type) {
        control(answer_type, packet_bytes, token, control_bytes, from);
    } else if (message[0] == answer_type) {
        if (candidate_token_ != 0 && token == candidate_token_) {
            if (from == candidate_) {
                place.to = from;
                moved++;
                unasked_ = {};
                candidate_since_ = 0;  // who answers may move again at once
            }
            candidate_token_ = 0;
            candidate_ = {};
            return;
        }
        const uint64_t age = static_cast<uint64_t>(now) - (token ^ secret_);
        if (age > dead_ns * 2) return;  // no token of ours
        round_trip_ns = static_cast<int64_t>(age);
        if (packet_bytes != 0) path.answered(packet_bytes, now);
    } else {
        bad_control++;
    }
}

void Live::tick(int64_t now) {
    if (session && session->state() == Session::State::handshaking) {
        if (const int64_t at = session->timer_due(); at != 0 && now >= at) session->on_timer(*this);
        return;
    }
    if (!up()) return;
    flush_pack();
    ask_candidate(now);
    const bool sent = std::exchange(sent_, false), got = std::exchange(carried, false);
    if (sent || got) last_busy_ = now;
    const bool busy = last_busy_ != 0 && now - last_busy_ < busy_ns;
    if (superseded == 0)
        if (const auto bytes = path.probe(now, busy, round_trip_ns)) ping(now, *bytes, place.to);
    const int64_t silence = now - last_opened;
    const int64_t patience = busy || unanswered_since_ != 0 ? ping_ns : keepalive_ns;
    if (superseded == 0 && silence > patience && now - last_ping_ > ping_ns) {
        last_ping_ = now;
        if (unanswered_since_ == 0) unanswered_since_ = now;
        ping(now, 0, place.to);
    }
}

bool Live::in_doubt(int64_t now) const {
    return up() && unanswered_since_ != 0 && now - unanswered_since_ > std::max(doubt_ns, 3 * round_trip_ns);
}

// Small, as the path's size is not known yet.
void Live::greet(int64_t now) {
    last_ping_ = unanswered_since_ = now;
    ping(now, 0, place.to);
}

int64_t Live::due(int64_t now) const {
    if (session && session->state() == Session::State::handshaking) return session->timer_due();
    if (!up()) return 0;
    if (joiner.holds_run()) return now;  // its end was lost, and the guest waits for what came
    return now + (path.searching() || unanswered_since_ != 0 ? PathMtu::retry_ns / 2 : ping_ns);
}

void Live::too_big(size_t datagram_bytes, int64_t now) {
    path.too_big(static_cast<uint32_t>(datagram_bytes + (place.to.family() == AF_INET6 ? 48 : 28)), now);
}

}  // namespace banana::tunnel
