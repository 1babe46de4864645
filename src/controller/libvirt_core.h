// LibvirtCore: what stands behind Libvirt. Nobody else includes this.
//
// Concepts: the threads own the core together with the Libvirt object (shared_ptr), so that a thread that hangs with
// libvirtd can be left behind. Outbox is the only way from them to the io_context, and it can be shut for ever.
//
//   calls   run<T>() → queue → worker → Outbox → the awaiting coroutine
//   events  libvirt's event loop → on_..() → Outbox → handler
//   state   down → connecting → up → down ...; only the connector changes it (libvirt_connector.cpp)
//
// Threading: members below `mutex` belong to whoever holds it; those marked io to the io_context's thread. The mutex is
// never held while libvirt is called.
#pragma once

// The standard library before Asio: Asio 1.22 looks for a macro of it to choose its allocator, and two choices in one
// program do not go together.
#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <set>
#include <utility>

#include <asio/post.hpp>
#include <asio/redirect_error.hpp>
#include <asio/steady_timer.hpp>
#include <asio/use_awaitable.hpp>

#include "controller/libvirt.h"
#include "controller/libvirt_handle.h"

namespace banana::controller {

// Posts to the io_context until it is shut; afterwards what is posted is dropped.
class Outbox {
public:
    explicit Outbox(asio::io_context& io) : io_(&io) {}
    template <class F>
    void post(F&& task) {
        std::lock_guard lock(mutex_);
        if (io_) asio::post(*io_, std::forward<F>(task));
    }
    void shut() {
        std::lock_guard lock(mutex_);
        io_ = nullptr;
    }

private:
    std::mutex mutex_;
    asio::io_context* io_;
};

// One connection to libvirtd. Workers share it; the last one to let go closes it.
struct LibvirtConnection {
    explicit LibvirtConnection(ConnectionOwner opened) : owner(std::move(opened)) {}
    virConnectPtr get() const { return owner.get(); }

    ConnectionOwner owner;
    // Between on_connected and on_disconnected: events count. Shared by the callbacks, which must not own the
    // connection.
    const std::shared_ptr<std::atomic<bool>> live = std::make_shared<std::atomic<bool>>(false);
    // What is registered; the connector's.
    std::vector<int> domain_events, qmp_events, network_events;
    std::shared_ptr<void> closing;  // the close callback's argument
};

// A call as workers see it. `work` gets a null pointer when there is no connection any more.
struct LibvirtTask {
    std::atomic<bool> abandoned = false;  // nobody waits any more
    std::function<void(virConnectPtr)> work;
};

// The result of one call, and who waits for it; both touched on the io thread only.
template <class T>
struct LibvirtReply {
    std::optional<Result<T>> result;
    asio::steady_timer* waiting = nullptr;
};

class LibvirtCore : public std::enable_shared_from_this<LibvirtCore> {
public:
    LibvirtCore(asio::io_context& io, std::string uri) : io_(io), uri_(std::move(uri)), outbox_(io) {}

    void start(LibvirtHandlers handlers);
    void stop();
    bool used() const { return !uri_.empty(); }
    bool connected() const { return up_; }
    const std::string& problem() const { return problem_; }

    // Carries out `work` on a worker and gives back what it returned, or why not within the deadline.
    // `what`: operation and object, which open the errors that arise here.
    template <class T>
    static asio::awaitable<Result<T>> run(std::shared_ptr<LibvirtCore> self, std::string what,
                                          std::chrono::milliseconds deadline,
                                          std::function<Result<T>(virConnectPtr)> work);

private:
    friend class LibvirtEvents;
    using Connection = std::shared_ptr<LibvirtConnection>;

    // io thread
    std::optional<Error> refusal(const std::string& what) const;
    void submit(std::shared_ptr<LibvirtTask> task);
    void went_up();
    void went_down(const std::string& why);
    void failed(const std::string& why);
    // Calls a handler, if there is one; a copy of it, because it may call stop(), which drops them all.
    template <class... Types, class... Args>
    void tell(const std::function<void(Types...)>& handler, const Args&... args) {
        if (auto copy = handler; copy && !stopped_) copy(args...);
    }

    // worker threads
    void work();

    // connector thread (libvirt_connector.cpp)
    void connect_forever();
    Result<Connection> open();
    void serve(const Connection& connection);
    bool pause(std::chrono::milliseconds time);
    // libvirt's event loop
    void connection_ended(const std::string& why);

    bool spawn(void (LibvirtCore::*body)());

    asio::io_context& io_;  // io: threads go through outbox_
    const std::string uri_;
    Outbox outbox_;
    LibvirtHandlers handlers_;               // io
    std::set<asio::steady_timer*> waiting_;  // io
    std::string problem_;                    // io
    bool up_ = false;                        // io
    bool stopped_ = false;                   // io

    std::mutex mutex_;
    std::condition_variable changed_;  // for the connector and stop()
    std::condition_variable queued_;   // for workers
    std::deque<std::shared_ptr<LibvirtTask>> queue_;
    Connection connection_;
    std::optional<std::string> ended_;  // why the present connection ended
    bool stopping_ = false;
    int threads_ = 0, workers_ = 0, idle_ = 0;
};

template <class T>
asio::awaitable<Result<T>> LibvirtCore::run(std::shared_ptr<LibvirtCore> self, std::string what,
                                            std::chrono::milliseconds deadline,
                                            std::function<Result<T>(virConnectPtr)> work) {
    if (auto refused = self->refusal(what)) co_return *refused;
    auto reply = std::make_shared<LibvirtReply<T>>();
    auto task = std::make_shared<LibvirtTask>();
    asio::steady_timer timer(self->io_, deadline);
    // The frame may also be destroyed while it waits: nothing must point into it then.
    struct Waiting {
        LibvirtCore& core;
        LibvirtReply<T>& reply;
        LibvirtTask& task;
        asio::steady_timer* timer;
        Waiting(LibvirtCore& c, LibvirtReply<T>& r, LibvirtTask& t, asio::steady_timer* w)
            : core(c), reply(r), task(t), timer(w) {
            reply.waiting = timer;
            core.waiting_.insert(timer);
        }
        Waiting(const Waiting&) = delete;
        ~Waiting() {
            reply.waiting = nullptr;
            task.abandoned = true;
            core.waiting_.erase(timer);
        }
    } waiting(*self, *reply, *task, &timer);
    task->work = [core = self.get(), reply, what, work = std::move(work)](virConnectPtr connection) {
        const Error lost(Errc::unreachable, what + ": libvirt: the connection is lost");
        core->outbox_.post([reply, result = connection ? work(connection) : Result<T>(lost)]() mutable {
            if (!reply->waiting) return;
            reply->result = std::move(result);
            reply->waiting->cancel();
        });
    };
    self->submit(task);
    asio::error_code ignored;
    co_await timer.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
    if (reply->result) co_return std::move(*reply->result);
    if (self->stopped_) co_return Error(Errc::unreachable, what + ": libvirt is not used any more: stopping");
    co_return Error(Errc::timeout,
                    what + ": no answer from libvirt within " + std::to_string(deadline.count()) + " ms");
}

}  // namespace banana::controller
