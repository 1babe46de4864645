// UDP in batches: many datagrams a system call, out of and into one arena.
//
// Concepts: SendBatch gathers equal-size datagrams to one address into one buffer, for one sendmsg with UDP_SEGMENT
// (up to 64 segments and 65 507 bytes; only the last may be shorter); commit() starts a new message by itself when size
// or address change, flush() sends all messages by sendmmsg. Without segmentation offload (self-tested at start, or EIO
// later) the same datagrams go out one by one, in the same sendmmsg. Receiver: recvmmsg with UDP_GRO, buffers of 64 KB,
// each message split into its datagrams again. Threading: a socket's receiving and sending side belong to one thread.
// Errors: send errors are counted and told by kind; EMSGSIZE (a smaller local MTU) is told so that the path MTU is
// looked for again. What is lost when: a full socket buffer is waited for, 5 ms a flush at most, then datagrams are
// dropped (no_room). Source: udp(7), Linux Documentation/networking (UDP_SEGMENT, UDP_GRO, SO_REUSEPORT with a classic
// BPF program).
#pragma once

#include <netinet/in.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/fd.h"
#include "base/result.h"

namespace banana::tunnel {

// An address and port, ready for the kernel. Comparable; text() is "192.0.2.1:4790" or "[2001:db8::1]:4790".
struct Endpoint {
    sockaddr_in6 raw{};  // or a sockaddr_in in its place
    static Endpoint of(const IpAddress& address, uint16_t port);
    int family() const { return raw.sin6_family; }
    socklen_t size() const { return family() == AF_INET6 ? sizeof(sockaddr_in6) : sizeof(sockaddr_in); }
    uint16_t port() const;
    std::string host_text() const;  // the address alone
    bool same_host(const Endpoint& other) const;
    std::string text() const;
    bool operator==(const Endpoint& other) const;
};

struct UdpCapabilities {
    bool gso = false, gro = false;
};
// Sends a batch over loopback by UDP_SEGMENT, receives it by UDP_GRO and compares every byte, for batches whose last
// segment is shorter and for such of equal segments (Linux 7.0 cuts those wrongly). What does not hold is off.
UdpCapabilities test_udp_offload();

// The sockets of a tunnel: for each lane one that listens on `port` (SO_REUSEPORT, in the order of the lanes) and one
// that dials from a port of its own, so that the lanes of a host pair differ in their ports and a NIC spreads them over
// its queues. Path MTU discovery is on without the kernel's cache (IP_PMTUDISC_PROBE), buffers are `buffer_bytes` by
// force where CAP_NET_ADMIN allows, else as much as may be had. `address` unset: any, of both families. A port that
// another process holds is refused (Errc::busy), as is an address that this host does not have (Errc::not_found).
inline constexpr size_t lanes_max = 256;  // a lane's number is a byte
struct LaneSockets {
    Fd listening, dialling;
};
Result<std::vector<LaneSockets>> open_lane_sockets(const IpAddress& address, uint16_t port, size_t lanes,
                                                   size_t buffer_bytes);
// The listening sockets' filter: byte 1 of a datagram is the number of its socket in the group. Attached to any one.
// A number past the last lane goes to any of them (the kernel's hash), a datagram without byte 1 to lane 0. A run that
// a kernel carries as one packet (UDP_SEGMENT there, UDP_GRO here) is steered by its first datagram: what one socket
// sends to one address must be for one lane, and a lane looks at the number again.
Status steer_by_lane(int socket);

inline constexpr size_t datagram_max = 65507;  // the largest datagram over IPv4, and the most that a message holds

struct SendCounters {
    uint64_t datagrams = 0, messages = 0, calls = 0;  // sent; in so many messages and system calls
    uint64_t errors = 0, too_big = 0, no_room = 0;    // datagrams not sent: for other causes, their size, full buffers
};

class SendBatch {
public:
    explicit SendBatch(bool gso);
    ~SendBatch();
    // Room for one datagram of at most `bytes` (datagram_max), good until the next call of any kind; a commit() makes
    // a datagram of it, another reserve() gives it up. Sends what is gathered first when there is no room left.
    uint8_t* reserve(size_t bytes);
    // The datagram at the last reserve() is `bytes` long and goes to `to`.
    void commit(int socket, const Endpoint& to, size_t bytes);
    void flush();
    bool empty() const;
    bool gso() const;  // false from the first EIO on
    const SendCounters& counters() const;
    // Of the datagrams that the kernel refused for their size since the last call, the smallest.
    struct TooBig {
        size_t bytes = 0;  // 0: none
        Endpoint to;
    };
    TooBig take_too_big();

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

class Receiver {
public:
    Receiver(int socket, bool gro);
    ~Receiver();
    struct Datagram {
        std::span<uint8_t> bytes;  // in the receiver's buffers, to be overwritten; until the next receive()
        const Endpoint* from;
    };
    // One recvmmsg, without waiting. What came, in order; empty: nothing. ECONNREFUSED and the like are skipped.
    std::span<const Datagram> receive();
    uint64_t calls() const;

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace banana::tunnel
