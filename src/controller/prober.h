// AsyncProber: round trips over a wire, awaited (xconnect/prober.h is the socket, this is who waits for which reply).
//
// Threading: the io_context's single thread.
#pragma once

#include <asio/io_context.hpp>
#include <asio/posix/stream_descriptor.hpp>
#include <asio/steady_timer.hpp>
#include <chrono>
#include <map>
#include <memory>
#include <optional>

#include "base/result.h"
#include "peer/coroutine.h"
#include "xconnect/prober.h"

namespace banana::controller {

class AsyncProber {
public:
    explicit AsyncProber(asio::io_context& io) : io_(io), descriptor_(io) {}
    Status start();
    void stop();

    // Sends frames of `frame_size` bytes (Ethernet header included) over wire device `ifindex` until one comes back or
    // `patience` is over; a frame may be lost, so it is repeated. The round-trip time in ns, or Errc::timeout.
    asio::awaitable<Result<int64_t>> round_trip(uint32_t ifindex, size_t frame_size,
                                                std::chrono::milliseconds patience);

private:
    struct Waiter {
        uint32_t ifindex = 0;
        std::shared_ptr<asio::steady_timer> timer;
        std::optional<xconnect::ProbeReply> reply;
    };
    asio::awaitable<void> read_loop();

    asio::io_context& io_;
    asio::posix::stream_descriptor descriptor_;
    std::optional<xconnect::Prober> prober_;
    std::map<uint64_t, Waiter*> waiters_;  // by nonce
};

}  // namespace banana::controller
