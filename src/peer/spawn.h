// Starts a coroutine that nobody waits for. An exception out of it is a bug; it is logged, not lost.
#pragma once

#include <asio/co_spawn.hpp>
#include <exception>
#include <string>

#include "base/log.h"
#include "peer/coroutine.h"

namespace banana::rpc {

template <class Executor>
void spawn(const Executor& executor, asio::awaitable<void> coroutine, const char* what) {
    asio::co_spawn(executor, std::move(coroutine), [what](const std::exception_ptr& thrown) {
        if (!thrown) return;
        try {
            std::rethrow_exception(thrown);
        } catch (const std::exception& e) {
            log::error("bug: {} ended by an exception: {}", what, e.what());
        }
    });
}

}  // namespace banana::rpc
