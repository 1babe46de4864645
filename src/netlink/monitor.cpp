#include "netlink/monitor.h"

#include <linux/rtnetlink.h>
#include <netlink/netlink.h>
#include <netlink/socket.h>
#include <sys/socket.h>

#include <cerrno>

#include "netlink/message.h"
#include "netlink/parse.h"

namespace banana::netlink {

namespace {
constexpr size_t event_size = 64 * 1024;       // a link with hundreds of virtual functions
constexpr size_t events_per_read = 16 * 1024;  // then others get their turn; fd() stays readable

void resync(std::vector<Event>& events) {
    // What came before the gap is void with the rest.
    events.clear();
    events.emplace_back();
}

void take(const nlmsghdr& header, std::vector<Event>& events) {
    Event event;
    if (header.nlmsg_type == RTM_NEWLINK || header.nlmsg_type == RTM_DELLINK) {
        event.kind = header.nlmsg_type == RTM_NEWLINK ? Event::Kind::link_set : Event::Kind::link_deleted;
        event.link = parse_link(header);
    } else if (header.nlmsg_type == RTM_NEWADDR || header.nlmsg_type == RTM_DELADDR) {
        event.kind = header.nlmsg_type == RTM_NEWADDR ? Event::Kind::address_set : Event::Kind::address_deleted;
        event.address = parse_address(header);
    }
    if (event.link || event.address) events.push_back(std::move(event));
}
}  // namespace

Result<Monitor> Monitor::open(const Options& options) {
    std::unique_ptr<nl_sock, SocketFree> socket(nl_socket_alloc());
    if (!socket) return errno_error(ENOMEM, "open link monitor");
    if (int err = nl_connect(socket.get(), NETLINK_ROUTE); err < 0)
        return Error("open link monitor: " + std::string(nl_geterror(err)));
    int fd = nl_socket_get_fd(socket.get());
    if (::setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &options.receive_buffer, sizeof options.receive_buffer) < 0)
        return errno_error(errno, "open link monitor: set its receive buffer");
    int err = nl_socket_add_memberships(socket.get(), RTNLGRP_LINK, 0);
    if (err >= 0 && options.addresses)
        err = nl_socket_add_memberships(socket.get(), RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR, 0);
    if (err < 0) return Error("open link monitor: join its groups: " + std::string(nl_geterror(err)));
    return Monitor(std::move(socket));
}

int Monitor::fd() const { return nl_socket_get_fd(socket_.get()); }

Result<std::vector<Event>> Monitor::read() {
    std::vector<Event> events;
    auto memory = std::make_unique_for_overwrite<char[]>(event_size);
    while (events.size() < events_per_read) {
        ssize_t size = ::recv(fd(), memory.get(), event_size, MSG_DONTWAIT | MSG_TRUNC);
        if (size < 0) {
            if (errno == EINTR) continue;
            if (errno == EAGAIN) break;
            if (errno != ENOBUFS) return errno_error(errno, "read link events");
            resync(events);
            continue;
        }
        if (static_cast<size_t>(size) > event_size) {
            resync(events);
            continue;
        }
        auto* header = reinterpret_cast<nlmsghdr*>(memory.get());
        int left = static_cast<int>(size);
        for (; nlmsg_ok(header, left); header = nlmsg_next(header, &left)) take(*header, events);
    }
    return events;
}

}  // namespace banana::netlink
