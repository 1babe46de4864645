// Why it cannot hang: the io thread never calls libvirt, and what it waits for is a timer. Every thread here is
// detached and holds the core by shared_ptr. libvirt has no time-outs of its own, so a thread may stay in a call until
// libvirtd answers, dies, or keepalive gives it up (connector); its deadline has then long ended the wait. Why workers
// are four: libvirtd serves at most five requests of one client at once and stops reading, keepalive included, beyond
// that.
#include "controller/libvirt_core.h"

#include <pthread.h>
#include <signal.h>

#include <thread>

namespace banana::controller {

namespace {

constexpr int max_workers = 4;
constexpr std::chrono::milliseconds stop_patience{300};

}  // namespace

// A detached thread that handles no signal and keeps the core alive. Called with the mutex held.
bool LibvirtCore::spawn(void (LibvirtCore::*body)()) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    bool made = true;
    try {
        std::thread([self = shared_from_this(), body] {
            (self.get()->*body)();
            std::lock_guard lock(self->mutex_);
            --self->threads_;
            self->changed_.notify_all();
        }).detach();
        ++threads_;
    } catch (const std::system_error&) {
        made = false;  // out of threads: what is queued waits for the workers there are, or for its deadline
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return made;
}

void LibvirtCore::start(LibvirtHandlers handlers) {
    handlers_ = std::move(handlers);
    if (!used()) {
        problem_ = "[libvirt] uri in bananad.toml is empty";
        return;
    }
    problem_ = "not connected yet";
    std::lock_guard lock(mutex_);
    if (!spawn(&LibvirtCore::connect_forever)) problem_ = "cannot start a thread for libvirt";
}

void LibvirtCore::stop() {
    if (std::exchange(stopped_, true)) return;
    up_ = false;
    problem_ = "stopped";
    outbox_.shut();
    for (asio::steady_timer* timer : waiting_) timer->cancel();
    handlers_ = {};
    std::unique_lock lock(mutex_);
    stopping_ = true;
    queue_.clear();
    changed_.notify_all();
    queued_.notify_all();
    changed_.wait_for(lock, stop_patience, [this] { return threads_ == 0; });
}

std::optional<Error> LibvirtCore::refusal(const std::string& what) const {
    if (up_ && !stopped_) return std::nullopt;
    return Error(Errc::unreachable, what + ": libvirt: " + problem_);
}

void LibvirtCore::submit(std::shared_ptr<LibvirtTask> task) {
    std::lock_guard lock(mutex_);
    queue_.push_back(std::move(task));
    if (idle_ < static_cast<int>(queue_.size()) && workers_ < max_workers && spawn(&LibvirtCore::work)) ++workers_;
    queued_.notify_one();
}

void LibvirtCore::work() {
    std::unique_lock lock(mutex_);
    for (;;) {
        ++idle_;
        queued_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
        --idle_;
        if (stopping_) return;
        auto task = std::move(queue_.front());
        queue_.pop_front();
        Connection connection = connection_;
        lock.unlock();
        if (!task->abandoned) task->work(connection ? connection->get() : nullptr);
        task.reset();
        connection.reset();
        lock.lock();
    }
}

void LibvirtCore::went_up() {
    if (stopped_) return;
    up_ = true;
    problem_.clear();
    tell(handlers_.on_connected);
}

void LibvirtCore::went_down(const std::string& why) {
    if (stopped_) return;
    up_ = false;
    problem_ = why;
    tell(handlers_.on_disconnected, why);
}

void LibvirtCore::failed(const std::string& why) {
    if (!stopped_) problem_ = why;
}

Libvirt::Libvirt(asio::io_context& io, std::string uri) : core_(std::make_shared<LibvirtCore>(io, std::move(uri))) {}
Libvirt::~Libvirt() { core_->stop(); }
void Libvirt::start(LibvirtHandlers handlers) { core_->start(std::move(handlers)); }
void Libvirt::stop() { core_->stop(); }
bool Libvirt::used() const { return core_->used(); }
bool Libvirt::connected() const { return core_->connected(); }
std::string Libvirt::problem() const { return core_->problem(); }

}  // namespace banana::controller
