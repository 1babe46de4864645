// KeyLock: one coroutine at a time for each key (a Spike, a Corm), others wait in order of arrival.
//
// Concepts: everything runs on one thread, but a coroutine that awaits a peer lets others run between; what must not be
// interleaved for one object is done under its lock. Locks are taken in the order Corm, Spike, VNI, wire, never the
// other way round.
// Threading: the io_context's single thread.
#pragma once

#include <asio/io_context.hpp>
#include <asio/steady_timer.hpp>
#include <deque>
#include <map>
#include <memory>
#include <string>

#include "peer/coroutine.h"

namespace banana::controller {

class KeyLock {
    using Timer = std::shared_ptr<asio::steady_timer>;
    using Held = std::map<std::string, std::deque<Timer>>;  // key -> who waits

public:
    class Guard {
    public:
        Guard(std::shared_ptr<Held> held, std::string key) : held_(std::move(held)), key_(std::move(key)) {}
        Guard(Guard&& other) noexcept : held_(std::move(other.held_)), key_(std::move(other.key_)) {}
        Guard& operator=(Guard&&) = delete;
        Guard(const Guard&) = delete;
        ~Guard();

    private:
        std::shared_ptr<Held> held_;
        std::string key_;
    };

    explicit KeyLock(asio::io_context& io) : io_(io), held_(std::make_shared<Held>()) {}
    asio::awaitable<Guard> acquire(std::string key);
    bool held(const std::string& key) const { return held_->contains(key); }

private:
    asio::io_context& io_;
    // Shared with the guards: those of coroutines that never end are destroyed with the io_context, after this.
    std::shared_ptr<Held> held_;
};

}  // namespace banana::controller
