#include "tunnel/path_mtu.h"

#include <algorithm>

namespace banana::tunnel {

namespace {
constexpr uint32_t usual_sizes[] = {1500, PathMtu::ceiling_bytes, 1400};
}

// 0: the search is at its end.
uint32_t PathMtu::next_size() const {
    for (const uint32_t bytes : usual_sizes)
        if (bytes > current_ && bytes < refused_) return bytes;
    if (refused_ <= current_ + precision_bytes) return 0;
    return current_ + (refused_ - current_) / 2;
}

void PathMtu::start(uint32_t bytes, bool proof) {
    size_ = bytes;
    proving_ = proof;
    tries_ = 0;
    next_try_ = 0;
}

void PathMtu::gave_up(int64_t now) {
    refused_ = size_;
    if (proving_) current_ = floor_bytes;
    size_ = 0;
    proving_ = false;
    next_search_ = now;
}

std::optional<uint32_t> PathMtu::probe(int64_t now, bool busy, int64_t round_trip_ns) {
    if (size_ != 0 && tries_ >= tries_max && now >= next_try_) gave_up(now);
    // A search of many steps must not keep a path that shrinks from being noticed: between two of them the size in use
    // is proved. Not within one, which would begin anew each time and never end.
    if (size_ == 0 && busy && now >= next_proof_ && current_ > floor_bytes) {
        start(current_, true);
    } else if (size_ == 0 && now >= next_search_) {
        if (const uint32_t bytes = next_size(); bytes != 0) {
            start(bytes, false);
        } else {
            next_search_ = now + search_again_ns;
            refused_ = ceiling_bytes + 1;  // what does not pass now may pass by then
        }
    }
    if (size_ == 0 || now < next_try_ || tries_ >= tries_max) return {};
    tries_++;
    next_try_ = now + std::max(retry_ns, 2 * round_trip_ns);
    return size_;
}

void PathMtu::answered(uint32_t bytes, int64_t now) {
    if (bytes > ceiling_bytes) return;
    if (bytes >= current_) {
        current_ = bytes;
        next_proof_ = now + proof_ns;
        if (refused_ <= bytes) refused_ = ceiling_bytes + 1;
    }
    if (size_ == 0 || bytes < size_) return;
    if (!proving_) next_search_ = now;  // on with the search
    size_ = 0;
    proving_ = false;
}

void PathMtu::too_big(uint32_t bytes, int64_t now) {
    refused_ = std::min(refused_, std::max(bytes, floor_bytes + 1));
    if (current_ >= refused_) current_ = floor_bytes;
    if (size_ >= refused_) {
        size_ = 0;
        proving_ = false;
    }
    next_search_ = std::min(next_search_, now);
}

}  // namespace banana::tunnel
