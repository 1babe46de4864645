// What the cross-connect's and the VXLAN filter's namespace tests share: a private world, shell, raw frames.
//
// A test body runs in a thread of its own in new network and mount namespaces, with tmpfs on /run (so that named
// namespaces of ip(8) are private too) and a bpffs on /sys/fs/bpf: all of it goes with the thread, even by SIGKILL.
#pragma once

#include <doctest/doctest.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/fd.h"
#include "xconnect/crossconnect.h"

namespace banana::testlab {

using namespace banana::xconnect;

// Runs `body` so; a failed REQUIRE in it fails the test case.
void isolated(const std::function<void()>& body);

// /bin/sh -e in the thread's namespaces; REQUIREs status 0.
void sh(const std::string& script);

// A named network namespace, made on construction (IPv6 off unless asked for), for the rest of the world's life.
class Ns {
public:
    explicit Ns(std::string name, bool ipv6 = false);
    void enter() const;  // this thread goes there and stays
    uint32_t ifindex(const std::string& device) const;
    const std::string& name() const { return name_; }

private:
    std::string name_;
};

// A packet socket on one device: sends whole frames, receives those of one ethertype.
class Wiretap {
public:
    Wiretap(const Ns& ns, const std::string& device, uint16_t ethertype);
    bool send(const std::vector<uint8_t>& frame);
    // Frames until `count` are there or `deadline_ms` has passed.
    std::vector<std::vector<uint8_t>> receive(size_t count, int deadline_ms = 5000);
    int fd() const { return socket_.get(); }

private:
    Fd socket_;
};

inline constexpr uint16_t data_ethertype = 0x88B6;  // local experimental 2

Mac mac(const char* text);
// An Ethernet frame of `size` bytes with a sequence number behind the header.
std::vector<uint8_t> frame(const Mac& to, const Mac& from, uint32_t sequence = 0, size_t size = 100,
                           uint16_t ethertype = data_ethertype);
uint32_t sequence_of(const std::vector<uint8_t>& frame);

// `count` frames numbered from 0, one each `interval_us`, by absolute deadlines.
void send_paced(Wiretap& tap, const Mac& to, const Mac& from, uint32_t count, int interval_us);

// Reads until `count` different sequence numbers were seen, or nothing came for 3 s.
struct Tally {
    uint32_t distinct = 0, duplicates = 0;
};
Tally tally(Wiretap& tap, uint32_t count);

// Waits until `condition` holds, 5 s at most.
bool eventually(const std::function<bool()>& condition);

template <class T>
T must(Result<T> result) {
    if (!result) FAIL(result.error().message());
    return std::move(*result);
}
inline void must(const Status& status) {
    if (!status) FAIL(status.error().message());
}

}  // namespace banana::testlab
