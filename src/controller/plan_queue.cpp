#include "controller/plan_queue.h"

#include <asio/post.hpp>
#include <asio/redirect_error.hpp>
#include <asio/steady_timer.hpp>
#include <asio/use_awaitable.hpp>

namespace banana::controller {

struct PlanQueue::Item {
    asio::steady_timer done;  // never fires; it is cancelled when `result` is there
    wiring::Plan plan;
    Status result;
};

asio::awaitable<Status> PlanQueue::realise(wiring::Plan plan) {
    asio::steady_timer never(io_, asio::steady_timer::time_point::max());
    const auto item = std::make_shared<Item>(Item{std::move(never), std::move(plan), {}});
    if (waiting_.empty()) asio::post(io_, [this] { run(); });
    waiting_.push_back(item);
    asio::error_code ignored;
    co_await item->done.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
    co_return item->result;
}

void PlanQueue::run() {
    std::vector<std::shared_ptr<Item>> items;
    std::vector<wiring::Plan> plans;
    while (!waiting_.empty() && items.size() < together_max) {
        plans.push_back(std::move(waiting_.front()->plan));
        items.push_back(std::move(waiting_.front()));
        waiting_.pop_front();
    }
    const auto results = engine_.realise_each(plans);
    for (size_t i = 0; i < items.size(); ++i) {
        items[i]->result = results[i];
        items[i]->done.cancel();
    }
    if (!waiting_.empty()) asio::post(io_, [this] { run(); });
}

}  // namespace banana::controller
