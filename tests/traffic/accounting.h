// What became of one numbered stream of datagrams, judged at its receiver: pure, no clock and no socket of its own.
//
// A frame is counted once, by its sequence number: `received` are distinct numbers, a second arrival of one is a
// `duplicate`, and an arrival below the highest number seen before it is `reordered` (it still counts as received).
// Times are nanoseconds of the receiver's clock, save `sent_ns`, which is the sender's: the two are only ever compared
// with themselves. Not thread-safe.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace traffic {

// Half-open run of sequence numbers [first, end).
struct Range {
    uint64_t first = 0;
    uint64_t end = 0;
    bool operator==(const Range&) const = default;
};

struct Report {
    uint64_t sent = 0;
    uint64_t received = 0;
    uint64_t lost = 0;
    uint64_t duplicates = 0;
    uint64_t reordered = 0;
    uint64_t late_sends = 0;      // sent more than 1 ms after their deadline
    int64_t longest_late_ns = 0;  // the sender's own worst lateness: a gap of this length is not the network's
    uint64_t send_errors = 0;
    int64_t longest_gap_ns = 0;  // between two arrivals that follow each other
    int64_t gap_at_ns = 0;       // its beginning, from the first arrival on
    int64_t clock_shift_ns = 0;  // receiver's minus sender's clock, end against start: a stopped guest's stands still
    std::vector<Range> missing;  // the first few
    bool operator==(const Report&) const = default;
};

class Account {
public:
    static constexpr uint64_t kMaxSequence = 1ull << 28;  // 32 MiB of bits; what lies beyond is not ours
    static constexpr size_t kMaxRanges = 16;
    static constexpr uint64_t kWindow = 256;  // arrivals over which the least delay is taken

    void arrive(uint64_t sequence, int64_t now_ns, int64_t sent_ns);
    // `sent`: how many the sender says it sent, numbered from 0.
    Report report(uint64_t sent) const;
    uint64_t received() const { return received_; }
    // One more than the highest number seen: what a receiver alone can know of `sent`.
    uint64_t expected() const { return end_; }

private:
    void note_delay(int64_t delay_ns);

    static constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
    std::vector<bool> seen_;
    uint64_t received_ = 0, duplicates_ = 0, reordered_ = 0, arrivals_ = 0, end_ = 0;
    int64_t first_ns_ = 0, last_ns_ = 0, longest_gap_ns_ = 0, gap_at_ns_ = 0;
    int64_t first_least_ = kNone, previous_least_ = kNone, current_least_ = kNone;
};

// One line of key=value words, for the control connection; decode ignores words that it does not know.
std::string encode(const Report& report);
Report decode(const std::string& line);

std::string to_json(const Report& report);
std::string to_text(const Report& report);

}  // namespace traffic
