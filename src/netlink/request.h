// Request: one change to the kernel's network configuration, built now and sent by a Socket later.
//
// Concepts: a Request is a netlink message, or a write to a file below /proc/sys/net, together with what it does in
// words ("create vxlan bnx0000002a"); those words open its error. Builders stand in create.h, change.h, address.h and
// fdb.h. They do no I/O and cannot fail: bad input (a name of 20 characters) makes a Request that is never sent and
// whose result is that error. What the kernel cannot do in one message is a Requests: steps in their order.
// Threading: a value, move-only; it may be sent any number of times.
// Errors: "<what>: <strerror> (<the kernel's own text>)", with the errno's meaning as Errc.
#pragma once

#include <linux/netlink.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

struct nl_msg;

namespace banana::netlink {

struct MessageFree {
    void operator()(nl_msg* message) const;
};
using MessageOwner = std::unique_ptr<nl_msg, MessageFree>;

class Request {
public:
    Request(std::string what, MessageOwner message) : what_(std::move(what)), message_(std::move(message)) {}
    // A request that is never sent; its result is "<what>: <why>".
    static Request invalid(const std::string& what, const std::string& why);
    // Writes `value` to /proc/sys/net/<path> of the sending thread's network namespace. `absent_ok`: a kernel or a
    // device without that file (no IPv6, no br_netfilter) counts as done.
    static Request sysctl(const std::string& path, const std::string& value, bool absent_ok);

    const std::string& what() const { return what_; }
    // This errno counts as success: ENODEV when deleting, EEXIST when adding what may be there.
    Request&& accept(int err) &&;

private:
    friend class Socket;
    explicit Request(std::string what) : what_(std::move(what)) {}
    Status write_sysctl() const;
    nlmsghdr* header() const;

    std::string what_;
    MessageOwner message_;
    std::optional<Error> invalid_;
    std::string path_, value_;  // of a sysctl
    bool absent_ok_ = false;
    std::vector<int> accepted_;
};

using Requests = std::vector<Request>;

// Appends `more` to `all`: the steps of several objects become one batch.
void append(Requests& all, Requests&& more);

// A link in a request: by index, or by name when it was only just made and its index is not known yet.
struct LinkRef {
    LinkRef(uint32_t ifindex) : index(ifindex) {}
    LinkRef(const char* ifname) : name(ifname) {}
    LinkRef(std::string ifname) : name(std::move(ifname)) {}
    LinkRef(std::string_view ifname) : name(ifname) {}

    std::string text() const;  // "veth0" or "#12"

    uint32_t index = 0;
    std::string name;
};

// Why `name` cannot be a device's name, or nothing: 1 to 15 bytes, none of them '/', ':' or blank, not "." or "..".
std::optional<std::string> bad_name(std::string_view name);

}  // namespace banana::netlink
