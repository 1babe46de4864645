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

// All tries bear one nonce and the time at which they were sent: the answer to an early one counts while later ones are
// under way, as on a path that is longer than the wait between them.
asio::awaitable<Result<int64_t>> AsyncProber::round_trip(uint32_t ifindex, size_t frame_size, milliseconds patience) {
    const int64_t deadline = monotonic_ns() + std::chrono::nanoseconds(patience).count();
    const uint64_t nonce = uint64_t{random_u32()} << 32 | random_u32();
    Waiter waiter{ifindex, std::make_shared<asio::steady_timer>(io_), std::nullopt};
    waiters_[nonce] = &waiter;
    std::chrono::nanoseconds wait = first_wait;
    Status sent;
    for (int64_t left = 1; !waiter.reply && left > 0;
         wait = std::min<std::chrono::nanoseconds>(wait * 2, longest_wait)) {
        sent = prober_->send(ifindex, nonce, frame_size);
        left = deadline - monotonic_ns();
        waiter.timer->expires_after(std::min(wait, std::chrono::nanoseconds(left)));
        asio::error_code ignored;
        co_await waiter.timer->async_wait(asio::redirect_error(asio::use_awaitable, ignored));
        left = deadline - monotonic_ns();
    }
    waiters_.erase(nonce);
    if (waiter.reply) co_return waiter.reply->rtt_ns;
    if (!sent) co_return sent.error();
    co_return Error(Errc::timeout,
                    fmt::format("no answer to frames of {} B within {} ms", frame_size, patience.count()));
}

}  // namespace banana::controller
