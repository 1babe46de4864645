// PlanQueue: plans that come at about the same time are realised together.
//
// Concepts: a plan waits for one turn of the loop, in which others may join it (Engine::realise_each()). A lone one
// waits for nothing; when many wires are wanted at once, the kernel, nftables and this thread do much of the work once
// for several. `together_max` bounds how long a turn takes: a hand-over that is due meanwhile waits for its end.
// The caller holds the lock of what the plan is about (KeyLock), and has stored it: others run between.
// Threading: the io_context's single thread.
#pragma once

#include <asio/io_context.hpp>
#include <deque>
#include <memory>

#include "peer/coroutine.h"
#include "wiring/engine.h"

namespace banana::controller {

class PlanQueue {
public:
    PlanQueue(asio::io_context& io, wiring::Engine& engine) : io_(io), engine_(engine) {}

    static constexpr size_t together_max = 8;  // about 10 ms
    asio::awaitable<Status> realise(wiring::Plan plan);

private:
    struct Item;
    void run();

    asio::io_context& io_;
    wiring::Engine& engine_;
    std::deque<std::shared_ptr<Item>> waiting_;
};

}  // namespace banana::controller
