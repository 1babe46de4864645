#include "controller/keylock.h"

#include <asio/redirect_error.hpp>
#include <asio/use_awaitable.hpp>

namespace banana::controller {

asio::awaitable<KeyLock::Guard> KeyLock::acquire(std::string key) {
    const auto [it, free] = held_->try_emplace(key);
    if (!free) {
        // The timer never fires; cancelling it hands the lock over.
        auto turn = std::make_shared<asio::steady_timer>(io_, asio::steady_timer::time_point::max());
        it->second.push_back(turn);
        asio::error_code ignored;
        co_await turn->async_wait(asio::redirect_error(asio::use_awaitable, ignored));
    }
    co_return Guard(held_, std::move(key));
}

KeyLock::Guard::~Guard() {
    if (!held_) return;
    const auto it = held_->find(key_);
    if (it == held_->end()) return;
    if (it->second.empty()) {
        held_->erase(it);
        return;
    }
    const auto next = it->second.front();
    it->second.pop_front();
    next->cancel();
}

}  // namespace banana::controller
