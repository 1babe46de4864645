// One direction of a bad network: what becomes of each datagram that is put into it.
//
// Concepts: a datagram may be lost (percent), refused for its size (mtu: of the IP packet), held back until `hold`
// others have passed it (reorder, percent), sent twice (duplicate, percent); a copy of every flip-th goes with one bit
// changed, of every truncate-th cut short, after the original. All leave `delay_ms` later. replay() sends what passed
// before again, at `rate` a second and as it was. Pure: time is an argument, chance comes from the seed alone, so that
// a run can be repeated. Threading: one thread. Errors: none; what is lost is counted.
#pragma once

#include <cstdint>
#include <deque>
#include <limits>
#include <map>
#include <random>
#include <string>
#include <vector>

namespace banana::relay {

struct Rules {
    double loss = 0, reorder = 0, duplicate = 0;  // percent of the datagrams
    uint32_t hold = 100;                          // more than DTLS's replay window of 64
    uint32_t delay_ms = 0;
    uint32_t mtu = 0;                 // 0: any
    uint32_t flip = 0, truncate = 0;  // every so many; 0: none
    uint32_t rate = 50'000;           // of replay(), datagrams a second
};

struct Packet {
    size_t client = 0;  // whose it is
    std::vector<uint8_t> bytes;
};

struct Counts {
    uint64_t received = 0, sent = 0, lost = 0, too_big = 0, reordered = 0, duplicated = 0, flipped = 0, truncated = 0,
             replayed = 0, failed = 0;  // failed: the kernel would not send it
    std::string json() const;
};

inline constexpr int64_t never = std::numeric_limits<int64_t>::max();

class Path {
public:
    Path(const Rules& rules, uint64_t seed, size_t ip_udp_bytes);
    void put(Packet packet, int64_t now);
    bool next(int64_t now, Packet& packet);  // what leaves by now, one at a time
    int64_t due() const;                     // when next() has something
    void replay(uint64_t datagrams, int64_t now);
    bool replaying() const { return replay_left_ != 0; }

    Counts counts;

private:
    struct Held {
        Packet packet;
        uint64_t passed;   // leaves when so many have passed,
        int64_t deadline;  // or by then: a flow that stops must not keep it
    };
    static constexpr int64_t held_max_ns = 100'000'000;
    static constexpr size_t memory_max = 1024;

    bool chance(double percent);
    void remember(const Packet& packet);
    void release(int64_t now);
    void leave(Packet packet, int64_t now);
    void copies(const Packet& packet, int64_t now);

    const Rules& rules_;
    std::mt19937_64 random_;
    size_t ip_udp_bytes_;
    std::multimap<int64_t, Packet> leaving_;  // by time; those of one time in order
    std::deque<Held> held_;
    uint64_t passed_ = 0;
    std::vector<Packet> memory_;  // a ring of what passed
    size_t memory_at_ = 0, replay_at_ = 0;
    uint64_t replay_left_ = 0;
    int64_t replay_due_ = 0;
};

}  // namespace banana::relay
