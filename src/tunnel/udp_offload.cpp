// The self-test of UDP segmentation and gathering. Two shapes, as the kernel's code differs for them: all segments
// equal, and the last one shorter. Two receivers: one without UDP_GRO, for which the kernel must really cut the
// segments; one with it, for which it must say where the datagrams begin.
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "base/clock.h"
#include "tunnel/udp.h"

namespace banana::tunnel {

namespace {
constexpr size_t segment = 1400;
constexpr size_t segments = 20;
constexpr int64_t deadline_ns = 500'000'000;

struct Pair {
    Fd from, to;
    Endpoint target;
};

Result<Pair> open_pair(const char* loopback) {
    TRY_SET(IpAddress address, IpAddress::parse(loopback));
    Pair pair{Fd(::socket(address.family, SOCK_DGRAM | SOCK_CLOEXEC, 0)),
              Fd(::socket(address.family, SOCK_DGRAM | SOCK_CLOEXEC, 0)), Endpoint::of(address, 0)};
    if (!pair.from || !pair.to) return errno_error(errno, "open UDP socket");
    if (::bind(pair.to.get(), reinterpret_cast<const sockaddr*>(&pair.target.raw), pair.target.size()) != 0)
        return errno_error(errno, "bind UDP " + pair.target.text());
    socklen_t size = sizeof pair.target.raw;
    if (::getsockname(pair.to.get(), reinterpret_cast<sockaddr*>(&pair.target.raw), &size) != 0)
        return errno_error(errno, "read UDP port");
    return pair;
}

uint8_t pattern(size_t datagram, size_t byte) { return static_cast<uint8_t>(datagram * 37 + byte * 11 + (byte >> 8)); }

// Sends `segments` datagrams, the last of `last` bytes, as one message where `gso`; true: all came as they were sent.
bool passes(const Pair& pair, bool gso, bool gro, size_t last) {
    SendBatch batch(gso);
    Receiver receiver(pair.to.get(), gro);
    for (size_t i = 0; i < segments; ++i) {
        size_t bytes = i + 1 < segments ? segment : last;
        uint8_t* to = batch.reserve(bytes);
        for (size_t at = 0; at < bytes; ++at) to[at] = pattern(i, at);
        batch.commit(pair.from.get(), pair.target, bytes);
    }
    batch.flush();
    if (batch.counters().datagrams != segments || (gso && batch.counters().messages != 1)) return false;
    size_t came = 0;
    for (int64_t end = monotonic_ns() + deadline_ns, now; came < segments && (now = monotonic_ns()) < end;) {
        pollfd one{pair.to.get(), POLLIN, 0};
        if (::poll(&one, 1, static_cast<int>((end - now) / 1'000'000) + 1) <= 0) continue;
        for (const Receiver::Datagram& datagram : receiver.receive()) {
            size_t bytes = came + 1 < segments ? segment : last;
            if (datagram.bytes.size() != bytes || came == segments) return false;
            for (size_t at = 0; at < bytes; ++at)
                if (datagram.bytes[at] != pattern(came, at)) return false;
            came++;
        }
    }
    return came == segments;
}

// A pair of sockets a trial: what one leaves behind must not spoil the next.
bool trial(bool gso, bool gro) {
    for (size_t last : {segment, segment / 3}) {
        auto pair = open_pair("127.0.0.1");
        if (!pair) pair = open_pair("::1");
        if (!pair || !passes(*pair, gso, gro, last)) return false;
    }
    return true;
}
}  // namespace

UdpCapabilities test_udp_offload() {
    UdpCapabilities found;
    // Twice, as one moment off the CPU must not cost the offload for the life of the process.
    found.gso = trial(true, false) || trial(true, false);
    found.gro = trial(found.gso, true) || trial(found.gso, true);
    return found;
}

}  // namespace banana::tunnel
