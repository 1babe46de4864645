// KeyLock: one coroutine at a time for each key (a Spike, a Corm), others wait in order of arrival.
//
// Concepts: everything runs on one thread, but a coroutine that awaits a peer lets others run between; what must not be
// interleaved for one object is done under its lock. Locks are taken in the order Corm, Spike, wire, never the other
// way round.
// Threading: the io_context's single thread. The KeyLock must outlive its guards.
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
public:
    class Guard {
    public:
        Guard(KeyLock& lock, std::string key) : lock_(&lock), key_(std::move(key)) {}
        Guard(Guard&& other) noexcept : lock_(std::exchange(other.lock_, nullptr)), key_(std::move(other.key_)) {}
        Guard& operator=(Guard&&) = delete;
        Guard(const Guard&) = delete;
        ~Guard() {
            if (lock_ != nullptr) lock_->release(key_);
        }

    private:
        KeyLock* lock_;
        std::string key_;
    };

    explicit KeyLock(asio::io_context& io) : io_(io) {}
    asio::awaitable<Guard> acquire(std::string key);
    bool held(const std::string& key) const { return held_.contains(key); }

private:
    void release(const std::string& key);

    asio::io_context& io_;
    std::map<std::string, std::deque<std::shared_ptr<asio::steady_timer>>> held_;  // key -> who waits
};

}  // namespace banana::controller
