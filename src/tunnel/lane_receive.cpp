// A frame's way in: socket, session by index, open, entries, join, check, tap queue. And what strangers send.

#include <fmt/core.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "base/clock.h"
#include "base/log.h"
#include "tunnel/lane.h"
#include "tunnel/udp_split.h"

namespace banana::tunnel {

namespace {

constexpr int batches_before_max = 8;

}  // namespace

// By the socket that dials, or the one that listens. Where both have a peer's sessions, what is in the older one's now
// was sent before what has just been read; what a stranger puts there meanwhile does not keep us.
void Lane::receive(bool dialling) {
    const auto of = [this](bool dials) -> Receiver& { return dials ? from_dialling_ : from_listening_; };
    const auto datagrams = of(dialling).receive();
    if (datagrams.empty()) return;
    for (int i = 0; i < batches_before_max && overlapping(dialling); ++i) {
        const auto before = of(!dialling).receive();
        if (before.empty()) break;
        take(before, !dialling);
    }
    take(datagrams, dialling);
}

void Lane::take(std::span<const Receiver::Datagram> datagrams, bool dialling) {
    const int socket = dialling ? sockets_.dialling.get() : sockets_.listening.get();
    const int64_t now = monotonic_ns();
    for (const auto& datagram : datagrams) on_datagram(datagram, socket, now);
    flush_run();
    // A frame may go on in the next batch; tick() passes on what does not.
}

// A peer has a new session beside an old one. Where they have different sockets, frames of the old one come first. The
// last such change counts, be it this peer's or another's: it matters until what was on its way has come, and a socket
// cannot be both the first and the second.
void Lane::overlap(bool newer_is_dialled) {
    overlap_until_ = monotonic_ns() + Channel::drain_ns;
    newer_is_dialled_ = newer_is_dialled;
}

bool Lane::overlapping(bool newer_is_dialled) {
    if (overlap_until_ != 0 && monotonic_ns() > overlap_until_) overlap_until_ = 0;
    return overlap_until_ != 0 && newer_is_dialled_ == newer_is_dialled;
}

void Lane::on_datagram(const Receiver::Datagram& datagram, int socket, int64_t now) {
    const auto header = read_header(datagram.bytes);
    if (!header || header->lane != config_.number) {
        counters_.strangers++;
        return;
    }
    const auto records = datagram.bytes.subspan(header->bytes());
    if (header->index == 0) {
        if (header->kind == DatagramKind::hello)
            on_hello(*header, records, *datagram.from, socket, now);
        else
            counters_.strangers++;
        return;
    }
    Live* live = by_index_[header->index];
    if (live == nullptr) {
        counters_.no_session++;
        return;
    }
    if (header->kind == DatagramKind::data)
        on_data(*live, records, *datagram.from, now);
    else
        on_handshake(*header, records, *datagram.from, now);
}

// Somebody dials. Nothing is kept before the listener has seen the cookie come back.
void Lane::on_hello(const DatagramHeader& header, std::span<const uint8_t> records, const Endpoint& from, int socket,
                    int64_t now) {
    if (header.from_index == 0) return;
    // Half of the places are kept for where peers are.
    const bool known =
        std::any_of(channels_.begin(), channels_.end(), [&](const auto& c) { return c.second->is_at(from); });
    std::array<uint8_t, sizeof(from.raw) + 3> sender{};
    std::memcpy(sender.data(), &from.raw, from.size());
    sender[sizeof(from.raw)] = header.from_lane;
    sender[sizeof(from.raw) + 1] = static_cast<uint8_t>(header.from_index >> 8);
    sender[sizeof(from.raw) + 2] = static_cast<uint8_t>(header.from_index);
    size_t of_this_host = 0;
    for (const auto& live : pending_) {
        // A hello that is repeated, as its answer was lost, is for the session that was made for it.
        if (live->place.to == from && live->place.peer_index == header.from_index &&
            live->place.peer_lane == header.from_lane)
            return;
        if (live->place.to.same_host(from)) of_this_host++;
    }
    if (of_this_host >= handshakes_of_host_max || !has_place(known, now)) {
        turned_away_++;
        return;
    }
    struct Held final : Sink {
        std::vector<std::vector<uint8_t>> records;
        void put(std::span<const uint8_t> record) override { records.emplace_back(record.begin(), record.end()); }
    } held;
    Budget& budget = known ? peers_ : strangers_;
    auto session = listener_.on_hello(records, sender, held, budget.left(now));
    if (session) budget.take(now);
    const uint16_t index = session ? free_index() : 0;
    if (session && index == 0) {  // no place is left: silence
        counters_.no_session++;
        return;
    }
    for (const auto& record : held.records) {
        const DatagramHeader out{session ? DatagramKind::handshake : DatagramKind::hello, header.from_lane,
                                 header.from_index, config_.number, index};
        uint8_t* to = batch_.reserve(handshake_header_bytes + record.size());
        const size_t head = write_header(to, out);
        std::memcpy(to + head, record.data(), record.size());
        batch_.commit(socket, from, head + record.size());
    }
    if (!session) return;
    auto live =
        std::make_unique<Live>(batch_, Place{socket, from, config_.number, header.from_lane, index, header.from_index});
    live->session = std::move(session);
    keep(*live);
    pending_.push_back(std::move(live));
}

// Whether one more handshake may begin. Where all places are taken, one is given up that has said nothing since it
// brought its cookie back.
bool Lane::has_place(bool known, int64_t now) {
    if (pending_.size() < (known ? handshakes_max : handshakes_max / 2)) return true;
    const auto silent = std::find_if(pending_.begin(), pending_.end(), [&](const auto& live) {
        return live->last_opened == live->created && now - live->created > silent_max_ns;
    });
    if (silent == pending_.end()) return false;
    forget(**silent);
    pending_.erase(silent);
    return true;
}

void Lane::on_handshake(const DatagramHeader& header, std::span<const uint8_t> records, const Endpoint& from,
                        int64_t now) {
    Live& live = *by_index_[header.index];
    if (!live.session || !(from == live.place.to)) return;
    // The dialled end names its session in its first answer after the challenge.
    if (live.place.peer_index == 0 && header.kind == DatagramKind::handshake) {
        live.place.peer_index = header.from_index;
        live.place.peer_lane = header.from_lane;
    }
    if (live.channel != nullptr) {
        live.channel->handshake(live, records, now);
        return;
    }
    live.last_opened = now;
    live.session->on_handshake(records, live);
    settle_pending(live, now);
}

// An accepted session that is up belongs to the peer that its certificate names, if that is one of ours.
void Lane::settle_pending(Live& live, int64_t now) {
    if (live.session->state() == Session::State::handshaking) return;
    const auto it = std::find_if(pending_.begin(), pending_.end(), [&](const auto& p) { return p.get() == &live; });
    if (it == pending_.end()) return;
    std::unique_ptr<Live> settled = std::move(*it);
    pending_.erase(it);
    if (settled->closed()) {
        const std::string why = settled->session->why_closed();
        log_refusal(*settled, why, now);
        for (const auto& [name, channel] : channels_)
            if (channel->is_at(settled->place.to)) channel->note_refusal(why, now);
        forget(*settled);
        return;
    }
    const auto channel = channels_.find(settled->session->peer());
    if (channel == channels_.end()) {
        log_refusal(*settled, fmt::format("host '{}' is no peer of this host", settled->session->peer()), now);
        settled->session->close(*settled);
        forget(*settled);
        return;
    }
    channel->second->adopt(std::move(settled));
    if (channel->second->sessions().size() > 1) overlap(false);
}

// How often this happens is others' choice, and so is how long the log gets.
void Lane::log_refusal(const Live& live, const std::string& why, int64_t now) {
    constexpr int64_t pause_ns = 10'000'000'000;
    if (refusal_logged_ != 0 && now - refusal_logged_ < pause_ns) {
        refusals_not_logged_++;
        return;
    }
    const uint64_t others = std::exchange(refusals_not_logged_, 0);
    refusal_logged_ = now;
    log::warning("tunnel: refused {}: {}{}", live.place.to.text(), why,
                 others != 0 ? fmt::format(" ({} others before it are not logged)", others) : "");
}

void Lane::sweep_pending(int64_t now) {
    for (size_t i = 0; i < pending_.size();) {
        Live& live = *pending_[i];
        live.tick(now);
        const size_t before = pending_.size();
        settle_pending(live, now);
        if (pending_.size() == before) ++i;
    }
}

void Lane::on_data(Live& live, std::span<uint8_t> record, const Endpoint& from, int64_t now) {
    if (!live.up() || live.channel == nullptr) {
        counters_.no_session++;
        return;
    }
    const auto plain = live.open(record, from, now);
    if (live.closed()) {  // its peer said goodbye: another sends from now on, or frames wait
        receiving_ = &live;
        live.joiner.flush(deliver_);
        receiving_ = nullptr;
        live.channel->sweep(now);
        return;
    }
    if (plain.empty()) return;
    live.channel->opened(live, now);
    receiving_ = &live;
    std::span<const uint8_t> rest = plain;
    while (const auto entry = next_entry(rest)) {
        if (entry->connector == session_id) {
            live.on_control(entry->data, from, now);
            continue;
        }
        live.carried = true;
        on_entry(live, *entry, plain);
    }
    if (!rest.empty()) drop(nullptr, Drop::bad_entry);
    receiving_ = nullptr;
}

void Lane::on_entry(Live& live, const Entry& entry, std::span<uint8_t> plain) {
    if (entry.is_slice) {
        if (live.joiner.add(entry, deliver_) == Drop::bad_entry) drop(nullptr, Drop::bad_entry);
        for (const uint32_t connector : live.joiner.lost()) {
            const auto it = wires_.find(connector);
            drop(it == wires_.end() ? nullptr : it->second.get(), Drop::incomplete);
        }
        return;
    }
    live.joiner.flush(deliver_);  // a run whose end was lost came before
    // Its bytes are the receiver's, good until the batch ends, and the entry's header before them is the vnet header's
    // room.
    uint8_t* const data = plain.data() + (entry.data.data() - plain.data());
    deliver_in_run(entry.connector, entry.offload, {data, entry.data.size()});
}

void Lane::flush_joiners() {
    for (const auto& [name, channel] : channels_)
        for (const auto& live : channel->sessions()) {
            receiving_ = live.get();
            live->joiner.flush(deliver_);
        }
    receiving_ = nullptr;
}

// The wire that a frame may go to. The id alone gives no right: the wire must be the sending host's.
LaneWire* Lane::admitted(uint32_t connector, const Offload& offload, std::span<const uint8_t> frame) {
    LaneWire* wire = last_wire_;
    if (wire == nullptr || wire->connector != connector) {
        const auto it = wires_.find(connector);
        if (it == wires_.end()) {
            drop(nullptr, Drop::unknown_wire);
            return nullptr;
        }
        wire = last_wire_ = it->second.get();
    }
    if (wire->channel == nullptr || receiving_ == nullptr || wire->channel != receiving_->channel) {
        drop(wire, Drop::foreign_wire);
        if (receiving_ != nullptr && receiving_->channel != nullptr)
            receiving_->channel->note_foreign(connector, wire->peer, last_tick_);
        return nullptr;
    }
    if (const auto bad = check_frame(offload, frame, wire->mtu)) {
        drop(wire, *bad);
        return nullptr;
    }
    counters_.frames++;
    wire->received.frames++;
    wire->received.bytes += frame.size();
    return wire;
}

// From the joiner, whose buffer is used again. `frame` has vnet_bytes of room before it, here and below.
void Lane::deliver(uint32_t connector, const Offload& offload, std::span<uint8_t> frame) {
    LaneWire* const wire = admitted(connector, offload, frame);
    if (wire == nullptr) return;
    flush_run();  // came before
    write(*wire, offload, frame);
}

void Lane::deliver_in_run(uint32_t connector, const Offload& offload, std::span<uint8_t> frame) {
    LaneWire* const wire = admitted(connector, offload, frame);
    if (wire == nullptr) return;
    if (run_wire_ == wire && run_.add(offload, frame)) return;
    flush_run();
    if (wire->udp_gso && run_.add(offload, frame))
        run_wire_ = wire;
    else
        write(*wire, offload, frame);
}

void Lane::write(LaneWire& wire, const Offload& offload, std::span<uint8_t> frame) {
    if (offload.gso_type == Offload::udp_l4 && !wire.udp_gso) {
        UdpSplit split(offload, frame);
        for (auto one = split.next(); !one.empty(); one = split.next()) write(wire, split.offload(), one);
        return;
    }
    uint8_t* const start = frame.data() - vnet_bytes;
    const bool gso = offload.gso_type != Offload::none;
    write_vnet(start, offload, gso ? static_cast<uint16_t>(gso_header_bytes(offload, frame)) : uint16_t{0});
    if (::write(wire.tap.get(), start, vnet_bytes + frame.size()) < 0) drop(&wire, Drop::tap_full);
}

void Lane::flush_run() {
    if (run_.empty()) return;
    const size_t frames = run_.frames();
    const auto pieces = run_.take();
    LaneWire* const wire = std::exchange(run_wire_, nullptr);
    if (wire == nullptr) return;  // removed meanwhile
    if (::writev(wire->tap.get(), pieces.data(), static_cast<int>(pieces.size())) < 0)
        wire->drops[static_cast<size_t>(Drop::tap_full)] += frames;
}

}  // namespace banana::tunnel
