#include "path.h"

#include <fmt/core.h>

#include <algorithm>

namespace banana::relay {

std::string Counts::json() const {
    return fmt::format(
        R"({{"received":{},"sent":{},"lost":{},"too_big":{},"reordered":{},"duplicated":{},"flipped":{},)"
        R"("truncated":{},"replayed":{},"failed":{}}})",
        received, sent, lost, too_big, reordered, duplicated, flipped, truncated, replayed, failed);
}

Path::Path(const Rules& rules, uint64_t seed, size_t ip_udp_bytes)
    : rules_(rules), random_(seed), ip_udp_bytes_(ip_udp_bytes) {}

bool Path::chance(double percent) {
    if (percent <= 0) return false;  // what is off draws nothing: other rules' draws stay the same
    return static_cast<double>(random_() % 1'000'000) < percent * 10'000;
}

void Path::put(Packet packet, int64_t now) {
    counts.received++;
    if (rules_.mtu != 0 && packet.bytes.size() + ip_udp_bytes_ > rules_.mtu) {
        counts.too_big++;
        return;
    }
    if (chance(rules_.loss)) {
        counts.lost++;
        return;
    }
    remember(packet);
    passed_++;
    if (chance(rules_.reorder)) {
        counts.reordered++;
        held_.push_back({std::move(packet), passed_ + rules_.hold, now + held_max_ns});
        return;
    }
    copies(packet, now);
    leave(std::move(packet), now);
    release(now);
}

void Path::copies(const Packet& packet, int64_t now) {
    if (chance(rules_.duplicate)) {
        counts.duplicated++;
        leave(packet, now);
    }
    if (packet.bytes.empty()) return;
    if (rules_.flip != 0 && passed_ % rules_.flip == 0) {
        Packet copy = packet;
        uint64_t bit = random_() % (copy.bytes.size() * 8);
        copy.bytes[bit / 8] ^= static_cast<uint8_t>(1U << (bit % 8));
        counts.flipped++;
        leave(std::move(copy), now);
    }
    if (rules_.truncate != 0 && passed_ % rules_.truncate == 0) {
        Packet copy = packet;
        copy.bytes.resize(random_() % copy.bytes.size());
        counts.truncated++;
        leave(std::move(copy), now);
    }
}

void Path::leave(Packet packet, int64_t now) {
    leaving_.emplace(now + int64_t{rules_.delay_ms} * 1'000'000, std::move(packet));
}

void Path::release(int64_t now) {
    while (!held_.empty() && (held_.front().passed <= passed_ || held_.front().deadline <= now)) {
        leave(std::move(held_.front().packet), now);
        held_.pop_front();
    }
}

void Path::remember(const Packet& packet) {
    if (memory_.size() < memory_max) {
        memory_.push_back(packet);
        return;
    }
    memory_[memory_at_] = packet;
    memory_at_ = (memory_at_ + 1) % memory_max;
}

void Path::replay(uint64_t datagrams, int64_t now) {
    replay_left_ = memory_.empty() ? 0 : datagrams;
    replay_due_ = now;
}

bool Path::next(int64_t now, Packet& packet) {
    release(now);
    if (!leaving_.empty() && leaving_.begin()->first <= now) {
        packet = std::move(leaving_.begin()->second);
        leaving_.erase(leaving_.begin());
        return true;
    }
    if (replay_left_ == 0 || replay_due_ > now) return false;
    replay_left_--;
    replay_due_ += 1'000'000'000 / std::max<uint32_t>(rules_.rate, 1);
    counts.replayed++;
    packet = memory_[replay_at_++ % memory_.size()];
    return true;
}

int64_t Path::due() const {
    int64_t when = never;
    if (!leaving_.empty()) when = leaving_.begin()->first;
    if (!held_.empty()) when = std::min(when, held_.front().deadline);
    if (replay_left_ != 0) when = std::min(when, replay_due_);
    return when;
}

}  // namespace banana::relay
