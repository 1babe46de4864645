// Prober: asks the far end of a wire whether frames of a given size come through, by the path that the guest's will
// take.
//
// Concepts: a probe leaves by a wire device as an ordinary Ethernet frame (abi.h, struct xc_probe); the cross-connect
// at the far end of that wire turns it round; the cross-connect at this end hands the reply up to this socket. One
// socket serves all wires of the network namespace. It is open to whoever can put frames on any device of the host: a
// reply counts only if the caller finds its nonce (64 random bits) outstanding on that very ifindex.
// Lost probes: no answer comes; repeat it, give up by a deadline of the caller's.
// Threading: one thread; the network namespace is that of the thread which opens it.
// Errors: send says EMSGSIZE in words when the wire device's own MTU is too small.
#pragma once

#include <cstdint>
#include <vector>

#include "base/fd.h"
#include "base/result.h"

namespace banana::xconnect {

struct ProbeReply {
    uint32_t ifindex = 0;  // the wire device that it came in by
    uint64_t nonce = 0;
    size_t frame_size = 0;  // with the Ethernet header, as given to send()
    int64_t rtt_ns = 0;     // by this host's monotonic clock
};

class Prober {
public:
    static constexpr size_t min_frame = 60;

    static Result<Prober> open();
    int fd() const { return socket_.get(); }  // poll for input

    // Sends one request of `frame_size` bytes, Ethernet header included (MTU + 14 probes full size).
    Status send(uint32_t ifindex, uint64_t nonce, size_t frame_size);
    // Takes what replies are there, 256 at most; never blocks. What is no reply of our version does not come.
    Result<std::vector<ProbeReply>> read();

private:
    explicit Prober(Fd socket) : socket_(std::move(socket)) {}
    Fd socket_;
};

}  // namespace banana::xconnect
