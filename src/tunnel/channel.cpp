#include "tunnel/channel.h"

#include <algorithm>
#include <string_view>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/log.h"

namespace banana::tunnel {

namespace {

constexpr std::string_view untried = "not tried yet";
constexpr size_t handshake_datagram_bytes = PathMtu::floor_bytes - 48 - handshake_header_bytes;

}  // namespace

const char* channel_state_name(ChannelState state) {
    switch (state) {
        case ChannelState::connecting: return "connecting";
        case ChannelState::up: return "up";
    }
    return "?";
}

Channel::Channel(ChannelHost& host, std::string name, const Endpoint& address)
    : host_(host), name_(std::move(name)), address_(address), reason_(untried) {}

Channel::~Channel() {
    for (auto& live : lives_) {
        live->session->close(*live);
        host_.forget(*live);
    }
}

void Channel::set(ChannelState state, const std::string& reason) {
    if (state_ == state && reason_ == reason) return;
    if (state_ != state)
        log::info("tunnel to {}: {} -> {}{}", name_, channel_state_name(state_), channel_state_name(state),
                  reason.empty() ? "" : ": " + reason);
    else if (reason.empty())
        log::info("tunnel to {}: rekeyed", name_);
    else if (reason_ != untried)  // that the first answer is still to come is no news
        log::warning("tunnel to {}: {}", name_, reason);
    state_ = state;
    reason_ = reason;
    host_.changed(*this);
}

bool Channel::is_at(const Endpoint& from) const {
    return from.same_host(address_) || from.same_host(last_place_) ||
           std::any_of(lives_.begin(), lives_.end(),
                       [&](const auto& live) { return live->up_since != 0 && from.same_host(live->place.to); });
}

Live* Channel::dialling() const {
    for (const auto& live : lives_)
        if (live->session->state() == Session::State::handshaking) return live.get();
    return nullptr;
}

void Channel::dial(int64_t now, bool rekeying) {
    make_room(now);
    rekeying_ = rekeying;
    const Place place = host_.dialling_place(address_);
    if (place.own_index == 0) return dial_failed("no place for a session is left in this lane", now);
    next_dial_ = now + dial_pause_ + handshake_deadline_ns;
    auto live = std::make_unique<Live>(host_.batch(), place);
    live->channel = this;
    auto session = Session::dial(host_.context(), name_, handshake_datagram_bytes, *live);
    if (!session) return dial_failed(session.error().message(), now);
    live->session = std::move(*session);
    host_.keep(*live);
    lives_.push_back(std::move(live));
    if (reason_ == untried) set(ChannelState::connecting, "no answer from " + address_.text() + " yet");
}

// Another attempt follows, later each time. A session that is up goes on.
void Channel::dial_failed(const std::string& why, int64_t now) {
    dial_pause_ = std::min(dial_pause_ * 2, dial_max_ns);
    next_dial_ = now + dial_pause_;
    if (current_ == nullptr)
        set(ChannelState::connecting, why);
    else if (rekeying_)
        set(ChannelState::up, "rekey: " + why);
}

void Channel::rekey(int64_t now) {
    if (dialling() == nullptr) dial(now, current_ != nullptr);
}

void Channel::adopt(std::unique_ptr<Live> accepted) {
    accepted->channel = this;
    accepted->up_since = monotonic_ns();
    make_room(accepted->up_since);
    lives_.push_back(std::move(accepted));
    // Sending by it waits for its first record, see opened().
}

// How many sessions a peer begins is its own choice; how many are kept is ours.
void Channel::make_room(int64_t now) {
    if (lives_.size() < sessions_max) return;
    const auto oldest = std::find_if(lives_.begin(), lives_.end(),
                                     [&](const auto& live) { return live.get() != current_ && live->up(); });
    if (oldest == lives_.end()) return;
    (*oldest)->session->close(**oldest);
    sweep(now);
}

void Channel::handshake(Live& live, std::span<const uint8_t> records, int64_t now) {
    const bool was_up = live.up();
    live.session->on_handshake(records, live);
    if (!was_up && live.up()) went_up(live, now);
}

// A session that this end dialled.
void Channel::went_up(Live& live, int64_t now) {
    live.up_since = live.last_opened = now;
    next_dial_ = now + dial_pause_;
    make_current(&live, now);
    live.greet(now);
}

void Channel::opened(Live& live, int64_t now) {
    if (current_ == &live) return;
    if (current_ != nullptr && live.up_since <= current_->up_since) return;
    rekeying_ = false;  // the other end was first
    make_current(&live, now);
}

void Channel::make_current(Live* live, int64_t now) {
    if (live == current_) return;
    if (current_ != nullptr) {
        current_->flush_pack();
        if (live != nullptr) rekeys_++;
    }
    if (current_ != nullptr && !current_->closed()) current_->superseded = now;
    current_ = live;
    if (live == nullptr) {
        host_.changed(*this);
        return;
    }
    live->superseded = 0;
    host_.switched(*this);
    set(ChannelState::up, "");
    host_.changed(*this);
}

void Channel::sweep(int64_t now) {
    for (size_t i = 0; i < lives_.size();) {
        Live& live = *lives_[i];
        if (live.dead(now)) live.session->fail("no answer for " + std::to_string(Live::dead_ns / 1'000'000'000) + " s");
        if (live.superseded != 0 && now - std::max(live.superseded, live.last_opened) > drain_ns)
            live.session->close(live);
        if (!live.closed()) {
            ++i;
            continue;
        }
        const bool failed_handshake = live.up_since == 0;
        const std::string why = live.session->why_closed();
        for (size_t r = 0; r < refused_.size(); r++) refused_[r] += live.refused[r];
        bad_control_ += live.bad_control;
        if (current_ == &live) {
            // The one that was heard last: the peer may have been started again since the others.
            Live* other = nullptr;
            for (const auto& l : lives_)
                if (l.get() != &live && l->up() && (other == nullptr || l->last_opened > other->last_opened))
                    other = l.get();
            make_current(other, now);
            // What was closed as soon as it was up (by a host that does not know us yet, say) would be so again.
            const bool lasted = now - live.up_since > dial_max_ns;
            if (!lasted) {
                dial_failed(why, now);
            } else {
                dial_pause_ = dial_first_ns;
                next_dial_ = now;
                if (other == nullptr) set(ChannelState::connecting, why);
            }
        } else if (failed_handshake && live.session->dialled()) {
            dial_failed(why, now);
        }
        if (!failed_handshake) last_place_ = live.place.to;
        host_.forget(live);
        lives_.erase(lives_.begin() + static_cast<long>(i));
    }
}

void Channel::tick(int64_t now) {
    for (const auto& live : lives_) live->tick(now);
    sweep(now);
    if (current_ == nullptr) {
        if (dialling() == nullptr && now >= next_dial_) dial(now);
        return;
    }
    const bool in_doubt = current_->in_doubt(now);
    if (in_doubt && dialling() == nullptr && now >= next_dial_) {
        dial_pause_ = std::min(dial_pause_ * 2, dial_max_ns);  // of what is up, and soon in doubt again
        dial(now, rekeying_ && !reason_.empty());              // to a rekey that failed, one more attempt
        return;
    }
    // It lasts, and is not one that is left over from a rekey that failed.
    if (!in_doubt && reason_.empty() && now - current_->up_since > dial_max_ns) dial_pause_ = dial_first_ns;
    const auto& limits = host_.rekey_limits();
    // The end that was dialled waits a little longer, or both would rekey at once.
    const int64_t age = current_->session->dialled() ? limits.age_ns : limits.age_ns + limits.age_ns / 16;
    const uint64_t records = current_->session->records_sealed();
    const int64_t since = now - current_->up_since;
    const bool has_failed = rekeying_ && !reason_.empty();
    if ((since > age || (records > limits.records && since > rekey_pause_ns) || has_failed) && now >= next_dial_)
        rekey(now);
}

int64_t Channel::due(int64_t now) const {
    int64_t at = current_ == nullptr && dialling() == nullptr ? std::max(next_dial_, now) : now + 1'000'000'000;
    for (const auto& live : lives_) {
        if (live->closed()) return now;  // to be swept away: its peer said goodbye
        if (const int64_t due = live->due(now); due != 0) at = std::min(at, due);
    }
    return at;
}

// How often this happens is others' choice.
void Channel::note_refusal(const std::string& why, int64_t now) {
    constexpr int64_t pause_ns = 1'000'000'000;
    if (current_ != nullptr || (refusal_noted_ != 0 && now - refusal_noted_ < pause_ns)) return;
    refusal_noted_ = now;
    set(ChannelState::connecting, why);
}

void Channel::note_foreign(uint32_t connector, const std::string& owner, int64_t now) {
    constexpr int64_t pause_ns = 1'000'000'000;
    foreign_++;
    if (foreign_logged_ != 0 && now - foreign_logged_ < pause_ns) return;
    foreign_logged_ = now;
    log::warning("tunnel to {}: dropped its frame for wire {}, which is host '{}'s; {} such frames so far", name_,
                 hex32(connector), owner, foreign_);
    host_.changed(*this);
}

uint64_t Channel::bad_control() const {
    uint64_t sum = bad_control_;
    for (const auto& live : lives_) sum += live->bad_control;
    return sum;
}

uint64_t Channel::moved() const {
    uint64_t sum = 0;
    for (const auto& live : lives_) sum += live->moved;
    return sum;
}

}  // namespace banana::tunnel
