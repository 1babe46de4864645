#include "controller/prober.h"

#include <unistd.h>

#include <asio/redirect_error.hpp>
#include <asio/use_awaitable.hpp>

#include "base/bytes.h"
#include "base/clock.h"
#include "peer/spawn.h"

namespace banana::controller {

using std::chrono::milliseconds;

namespace {
constexpr milliseconds first_wait{20};
constexpr milliseconds longest_wait{200};
}  // namespace

Status AsyncProber::start() {
    TRY_SET(prober_, xconnect::Prober::open());
    const int fd = dup(prober_->fd());
    if (fd < 0) return errno_error(errno, "duplicate the probe socket");
    descriptor_.assign(fd);
    rpc::spawn(io_.get_executor(), read_loop(), "probe reader");
    return {};
}

void AsyncProber::stop() {
    asio::error_code ignored;
    descriptor_.close(ignored);
}

asio::awaitable<void> AsyncProber::read_loop() {
    for (;;) {
        asio::error_code error;
        co_await descriptor_.async_wait(asio::posix::stream_descriptor::wait_read,
                                        asio::redirect_error(asio::use_awaitable, error));
        if (error) co_return;
        const auto replies = prober_->read();
        if (!replies) {
            log::warning("{}", replies.error().message());
            continue;
        }
        for (const auto& reply : *replies) {
            const auto it = waiters_.find(reply.nonce);
            if (it == waiters_.end() || it->second->ifindex != reply.ifindex) continue;
            it->second->reply = reply;
            it->second->timer->cancel();
        }
    }
}

asio::awaitable<Result<int64_t>> AsyncProber::round_trip(uint32_t ifindex, size_t frame_size, milliseconds patience) {
    const int64_t deadline = monotonic_ns() + std::chrono::nanoseconds(patience).count();
    milliseconds wait = first_wait;
    Status sent;
    while (monotonic_ns() < deadline) {
        Waiter waiter{ifindex, std::make_shared<asio::steady_timer>(io_, wait), std::nullopt};
        const uint64_t nonce = uint64_t{random_u32()} << 32 | random_u32();
        waiters_[nonce] = &waiter;
        sent = prober_->send(ifindex, nonce, frame_size);
        asio::error_code ignored;
        co_await waiter.timer->async_wait(asio::redirect_error(asio::use_awaitable, ignored));
        waiters_.erase(nonce);
        if (waiter.reply) co_return waiter.reply->rtt_ns;
        wait = std::min(wait * 2, longest_wait);
    }
    if (!sent) co_return sent.error();
    co_return Error(Errc::timeout,
                    fmt::format("no answer to frames of {} B within {} ms", frame_size, patience.count()));
}

}  // namespace banana::controller
