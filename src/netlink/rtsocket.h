// Socket: the rtnetlink socket of one network namespace.
//
// Concepts: the kernel does all of a request's work inside sendmsg(2) and leaves the answer in the receive buffer, so
// a request is two system calls and never waits for anything but the RTNL lock. Answers are matched by sequence number.
// An answer that is not there after the send was lost to a full receive buffer: that request fails, saying so.
//
//   request()   one message, one answer.
//   batch()     many messages a send. netlink has no transactions: the kernel works through ALL of them, also past one
//               that failed. Use it for independent things, or where a later step cannot work without an earlier one
//               (it names a device that was not made) and the caller undoes what came out half.
//   sequence()  stops at the first failure; one send per message. It costs 2 us a message more than a batch, against
//               30 us to some ms of work in the kernel: the one to use for the dependent steps of one object.
//
// Threading: one thread at a time; it belongs to the namespace of the thread that opened it (sysctl requests, however,
// go to the namespace of the thread that sends them: use both from the same one).
// Errors: Status per request; nothing is retried but a dump that the kernel reports as interrupted.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/result.h"
#include "netlink/request.h"

struct nl_sock;

namespace banana::netlink {

struct SocketFree {
    void operator()(nl_sock* socket) const;
};

class Socket {
public:
    static Result<Socket> open();
    Socket(Socket&&) noexcept;
    Socket& operator=(Socket&&) noexcept;
    ~Socket();

    Status request(const Request& request);
    Status request(Request&& request) { return this->request(static_cast<const Request&>(request)); }
    std::vector<Status> batch(std::span<const Request> requests);
    Status sequence(std::span<const Request> requests);

    // A device's index, by the one system call that takes no lock. Errors: not_found.
    Result<uint32_t> index(const std::string& name);

    // Called with each message that the kernel answers besides the acknowledgement, and the request's place in the
    // span.
    using OnReply = std::function<void(size_t index, const nlmsghdr& reply)>;
    std::vector<Status> batch(std::span<const Request> requests, const OnReply& on_reply);

    // One pass of a dump. `interrupted`: the table changed on the way; what was seen may lack or repeat entries.
    using OnEntry = std::function<void(const nlmsghdr& entry)>;
    Status dump(const Request& request, const OnEntry& on_entry, bool& interrupted);

private:
    struct Buffers;
    explicit Socket(std::unique_ptr<nl_sock, SocketFree> socket);
    size_t run(std::span<const Request> requests, size_t from, const OnReply& on_reply, std::vector<Status>& results);
    void collect(std::span<const Request> requests, size_t from, uint32_t first_sequence, const OnReply& on_reply,
                 std::vector<Status>& results, size_t expected);
    Status answer(const Request& request, const nlmsghdr& header) const;

    std::unique_ptr<nl_sock, SocketFree> socket_;
    std::unique_ptr<Buffers> buffers_;
    int fd_ = -1;
    uint32_t next_sequence_ = 1;
};

// The first error among the results, if any.
Status first_failure(std::span<const Status> results);

// A dump as values: `parse` gives std::optional<T> for each entry. An interrupted dump is repeated a few times; when
// links come and go without a pause, the last pass is taken as it is: whoever must know listens to a Monitor as well.
template <class T, class Parse>
Result<std::vector<T>> dump_all(Socket& socket, const Request& request, Parse parse) {
    std::vector<T> entries;
    bool interrupted = true;
    for (int pass = 0; interrupted && pass < 4; ++pass) {
        entries.clear();
        TRY(socket.dump(
            request,
            [&](const nlmsghdr& entry) {
                if (auto value = parse(entry)) entries.push_back(std::move(*value));
            },
            interrupted));
    }
    return entries;
}

}  // namespace banana::netlink
