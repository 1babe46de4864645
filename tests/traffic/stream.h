// One numbered stream of datagrams: its sender and its receiver, each with a thread of its own.
//
// The sender is open-loop: datagram k is due at start + k / rate, an absolute deadline; it never waits for an answer,
// and when it falls behind it sends what is due at once and counts what was late. So a pause of the network shows as
// loss or as a gap at the receiver, and never as fewer datagrams sent.
#pragma once

#include <netinet/in.h>

#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <thread>

#include "accounting.h"
#include "sockets.h"

namespace traffic {

// The start of each datagram; both ends are x86-64 little-endian, so it goes as it lies in memory.
struct Header {
    static constexpr uint32_t kMagic = 0x42547266;
    uint32_t magic = kMagic;
    uint32_t stream = 0;
    uint64_t sequence = 0;
    int64_t sent_ns = 0;
};
static_assert(sizeof(Header) == 24);
constexpr int kMinSize = kIpUdpHeaders + static_cast<int>(sizeof(Header));
constexpr int kMaxSize = 65535;

struct Flow {
    uint32_t stream = 0;
    uint64_t rate = 1000;  // datagrams a second; 0: as fast as they go
    uint64_t count = 0;    // 0: until stopped
    int size = 128;        // of the IP packet
};

class Sender {
public:
    Sender(const sockaddr_in& to, const Flow& flow);
    ~Sender() { stop(); }
    Sender(const Sender&) = delete;
    Sender& operator=(const Sender&) = delete;

    bool good() const { return static_cast<bool>(fd_); }
    bool done() const { return done_; }
    void stop();
    // Sender's half of a report: sent, late_sends, longest_late_ns, send_errors.
    Report sent() const;

private:
    void loop();

    Fd fd_;
    sockaddr_in to_;
    Flow flow_;
    std::atomic<bool> stopping_ = false, done_ = false;
    std::atomic<uint64_t> sent_ = 0, late_ = 0, errors_ = 0;
    std::atomic<int64_t> longest_late_ = 0;
    std::thread thread_;
};

class Receiver {
public:
    // Port 0: any; see port().
    explicit Receiver(uint16_t port);
    ~Receiver();
    Receiver(const Receiver&) = delete;
    Receiver& operator=(const Receiver&) = delete;

    bool good() const { return static_cast<bool>(fd_); }
    uint16_t port() const { return local_port(fd_); }
    void open(uint32_t stream);  // begin to count, from nothing
    void close(uint32_t stream);
    // Of a stream that is not open: all lost. `sent` 0: what the receiver alone can know.
    Report report(uint32_t stream, uint64_t sent) const;
    uint64_t received(uint32_t stream) const;

private:
    void loop();
    void take(const char* data, size_t length, int64_t now);

    Fd fd_;
    std::atomic<bool> stopping_ = false;
    mutable std::mutex mutex_;
    std::map<uint32_t, Account> streams_;
    std::thread thread_;
};

}  // namespace traffic
