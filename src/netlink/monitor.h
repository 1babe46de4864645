// Monitor: what happens to links, as it happens.
//
// Concepts: the monitor tells changes, not states: open it first, dump links() then, and apply its events to that.
// The kernel does not tell a new link from a changed one reliably, nor does this: whoever keeps a table sees it.
// What is lost when: when events come faster than they are read, the kernel throws some away and says so; that is one
// Event of kind `resync`: what is known is void, dump again. Events after it are good. One storm makes one resync, or a
// few. Threading: one thread; it hears of the namespace of the thread that opened it.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "base/result.h"
#include "netlink/address.h"
#include "netlink/link.h"

namespace banana::netlink {

struct Event {
    enum class Kind { link_set, link_deleted, address_set, address_deleted, resync };
    Kind kind = Kind::resync;
    std::optional<Link> link = {};        // link_*
    std::optional<Address> address = {};  // address_*
};

class Monitor {
public:
    struct Options {
        bool addresses = false;
        int receive_buffer = 4 << 20;  // bytes; an event takes about 4 KiB of it
    };
    static Result<Monitor> open(const Options& options);
    static Result<Monitor> open() { return open(Options()); }

    // Readable when there are events; for poll(2).
    int fd() const;
    // All events there are; empty when there are none. Never waits.
    Result<std::vector<Event>> read();

private:
    explicit Monitor(std::unique_ptr<nl_sock, SocketFree> socket) : socket_(std::move(socket)) {}
    std::unique_ptr<nl_sock, SocketFree> socket_;
};

}  // namespace banana::netlink
