// A private network namespace for the length of a test: the calling thread is in it until the object goes. Nothing
// names it, so that it vanishes with the process at the latest.
#pragma once

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sched.h>

#include <string>

#include "base/fd.h"
#include "base/result.h"
#include "netlink/change.h"
#include "netlink/create.h"
#include "netlink/link.h"
#include "netlink/rtsocket.h"

namespace banana::netlink {

class World {
public:
    World() : before_(::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC)) {
        REQUIRE(before_.get() >= 0);
        REQUIRE(::unshare(CLONE_NEWNET) == 0);
    }
    World(const World&) = delete;
    World& operator=(const World&) = delete;
    ~World() {
        if (::setns(before_.get(), CLONE_NEWNET) != 0) std::abort();  // never go on in the wrong namespace
    }

private:
    Fd before_;
};

inline std::string why(const Status& status) { return status ? "" : status.error().message(); }
template <class T>
std::string why(const Result<T>& result) {
    return result ? "" : result.error().message();
}

// A world with a socket of its own in it.
struct Bench {
    World world;
    Socket socket = open();

    static Socket open() {
        auto opened = Socket::open();
        REQUIRE_MESSAGE(opened.ok(), why(opened));
        return std::move(*opened);
    }
    void make(const Requests& steps) {
        Status made = socket.sequence(steps);
        REQUIRE_MESSAGE(made.ok(), why(made));
    }
    void make(Request step) {
        Status made = socket.request(step);
        REQUIRE_MESSAGE(made.ok(), why(made));
    }
    Link get(const LinkRef& which) {
        auto found = link(socket, which);
        REQUIRE_MESSAGE(found.ok(), why(found));
        return *found;
    }
    bool has(const LinkRef& which) {
        auto there = link_exists(socket, which);
        REQUIRE_MESSAGE(there.ok(), why(there));
        return *there;
    }
};

inline IpAddress ip(const char* text) { return *IpAddress::parse(text); }
inline Mac mac(const char* text) { return *Mac::parse(text); }

}  // namespace banana::netlink
