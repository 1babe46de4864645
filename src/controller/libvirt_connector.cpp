// The connector: one thread that opens the connection, keeps watch over it, and opens it again.
//
// Why nothing is missed or seen twice: events are enrolled for before on_connected is posted, and count only from then
// on (LibvirtConnection::live); whoever looks at all domains in on_connected has seen every earlier change.
#include <algorithm>

#include "controller/libvirt_events.h"

namespace banana::controller {

namespace {

using std::chrono::milliseconds;

constexpr milliseconds shortest_pause{200}, longest_pause{5000};
// A libvirtd that answers nothing for 4 s × (3 + 1) is given up, and with it every call that waits for it.
constexpr int keepalive_seconds = 4;
constexpr unsigned keepalive_count = 3;

}  // namespace

void LibvirtCore::connect_forever() {
    milliseconds next = shortest_pause;
    do {
        auto opened = open();
        if (!opened) {
            outbox_.post([self = shared_from_this(), why = opened.error().message()] { self->failed(why); });
            continue;
        }
        const auto since = std::chrono::steady_clock::now();
        serve(*opened);
        // One that ends at once, again and again, is no reason to try more often.
        if (std::chrono::steady_clock::now() - since > longest_pause) next = shortest_pause;
    } while (pause(std::exchange(next, std::min(2 * next, longest_pause))));
}

Result<LibvirtCore::Connection> LibvirtCore::open() {
    const std::string what = "connect to libvirt at " + uri_;
    if (auto loop = LibvirtEvents::start_loop(); !loop) return loop.error().context(what);
    {
        std::lock_guard lock(mutex_);
        ended_.reset();
    }
    ConnectionOwner owner(virConnectOpen(uri_.c_str()));
    if (!owner) return last_error(what);
    auto connection = std::make_shared<LibvirtConnection>(std::move(owner));
    // Drivers without a daemon (test:///) have no keepalive, and need none.
    virConnectSetKeepAlive(connection->get(), keepalive_seconds, keepalive_count);
    if (auto enrolled = LibvirtEvents::enrol(shared_from_this(), *connection); !enrolled) {
        LibvirtEvents::withdraw(*connection);
        return enrolled.error().context(what);
    }
    return connection;
}

// From on_connected to on_disconnected, or to stop().
void LibvirtCore::serve(const Connection& connection) {
    std::unique_lock lock(mutex_);
    if (!ended_ && !stopping_) {
        connection_ = connection;
        *connection->live = true;
        outbox_.post([self = shared_from_this()] { self->went_up(); });
        changed_.wait(lock, [this] { return stopping_ || ended_; });
        *connection->live = false;
        connection_.reset();
        const std::string why = ended_.value_or("");
        outbox_.post([self = shared_from_this(), why] { self->went_down(why); });
    }
    lock.unlock();
    LibvirtEvents::withdraw(*connection);
}

void LibvirtCore::connection_ended(const std::string& why) {
    std::lock_guard lock(mutex_);
    ended_ = why;
    changed_.notify_all();
}

// False: stop() was called.
bool LibvirtCore::pause(milliseconds time) {
    std::unique_lock lock(mutex_);
    return !changed_.wait_for(lock, time, [this] { return stopping_; });
}

}  // namespace banana::controller
