// Why acknowledgements are collected without waiting: netlink_sendmsg() calls rtnetlink's handler before it returns,
// and the handler queues each answer on this socket at once. So after the send every answer is either there or was
// dropped for want of buffer space, which the next receive reports as ENOBUFS, once.
//
// Room: an acknowledgement takes about 1 KiB of receive buffer, a link's description about 4 KiB. At most
// `messages_per_send` go out before their answers are taken, which is far below `receive_buffer`.
#include "netlink/rtsocket.h"

#include <net/if.h>
#include <netlink/netlink.h>
#include <netlink/socket.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <array>
#include <cerrno>
#include <cstdlib>

#include "netlink/message.h"

namespace banana::netlink {

namespace {
constexpr size_t messages_per_send = 512;  // IOV_MAX is 1 024
constexpr size_t bytes_per_send = 256 * 1024;
constexpr int send_buffer = 1 << 20;
constexpr int receive_buffer = 8 << 20;
constexpr size_t answers_per_receive = 32;
constexpr size_t answer_size = 16 * 1024;  // a link's description without virtual functions stays below 8 KiB
constexpr size_t dump_size = 64 * 1024;    // the kernel fills at most 32 KiB

void set_option(int fd, int level, int name, int value) {
    // Best effort: an older kernel that lacks one of these still works, with poorer error texts or smaller buffers.
    (void)::setsockopt(fd, level, name, &value, sizeof value);
}

// The kernel's own words on an error, from the extended acknowledgement's attributes.
std::string extended_text(const nlmsghdr& header, const nlmsgerr& error) {
    if (!(header.nlmsg_flags & NLM_F_ACK_TLVS)) return {};
    size_t skip = sizeof(nlmsghdr) + sizeof(nlmsgerr);
    if (!(header.nlmsg_flags & NLM_F_CAPPED)) skip += NLMSG_ALIGN(error.msg.nlmsg_len) - sizeof(nlmsghdr);
    if (header.nlmsg_len < skip) return {};
    nlattr* table[NLMSGERR_ATTR_MAX + 1] = {};
    auto* first = reinterpret_cast<nlattr*>(const_cast<char*>(reinterpret_cast<const char*>(&header)) + skip);
    if (nla_parse(table, NLMSGERR_ATTR_MAX, first, static_cast<int>(header.nlmsg_len - skip), nullptr) < 0) return {};
    nlattr* text = table[NLMSGERR_ATTR_MSG];
    if (!text) return {};
    const char* data = static_cast<const char*>(nla_data(text));
    return {data, strnlen(data, static_cast<size_t>(nla_len(text)))};
}

// The errno (positive) and text of an NLMSG_ERROR or, in a dump, NLMSG_DONE; 0 is an acknowledgement.
struct Verdict {
    int err = 0;
    std::string text;
};
Verdict verdict_of(const nlmsghdr& header) {
    if (header.nlmsg_type == NLMSG_DONE) {
        int value = 0;
        if (header.nlmsg_len >= NLMSG_LENGTH(sizeof value)) std::memcpy(&value, NLMSG_DATA(&header), sizeof value);
        return {value < 0 ? -value : 0, {}};
    }
    if (header.nlmsg_len < NLMSG_LENGTH(sizeof(nlmsgerr))) return {EBADMSG, {}};
    const auto& error = *static_cast<const nlmsgerr*>(NLMSG_DATA(&header));
    return {-error.error, extended_text(header, error)};
}
}  // namespace

struct Socket::Buffers {
    // Plain memory, not zeroed: pages that no answer reaches are never touched.
    std::unique_ptr<char[]> memory = std::make_unique_for_overwrite<char[]>(answers_per_receive * answer_size);
    std::array<mmsghdr, answers_per_receive> headers{};
    std::array<iovec, answers_per_receive> slots{};

    Buffers() {
        for (size_t i = 0; i < answers_per_receive; ++i) {
            slots[i] = {memory.get() + i * answer_size, answer_size};
            headers[i].msg_hdr.msg_iov = &slots[i];
            headers[i].msg_hdr.msg_iovlen = 1;
        }
    }
};

void SocketFree::operator()(nl_sock* socket) const { nl_socket_free(socket); }

Socket::Socket(std::unique_ptr<nl_sock, SocketFree> socket)
    : socket_(std::move(socket)), buffers_(std::make_unique<Buffers>()), fd_(nl_socket_get_fd(socket_.get())) {}
Socket::Socket(Socket&&) noexcept = default;
Socket& Socket::operator=(Socket&&) noexcept = default;
Socket::~Socket() = default;

Result<Socket> Socket::open() {
    std::unique_ptr<nl_sock, SocketFree> socket(nl_socket_alloc());
    if (!socket) return errno_error(ENOMEM, "open rtnetlink socket");
    if (int err = nl_connect(socket.get(), NETLINK_ROUTE); err < 0)
        return Error("open rtnetlink socket: " + std::string(nl_geterror(err)));
    int fd = nl_socket_get_fd(socket.get());
    set_option(fd, SOL_SOCKET, SO_SNDBUFFORCE, send_buffer);
    set_option(fd, SOL_SOCKET, SO_RCVBUFFORCE, receive_buffer);
    set_option(fd, SOL_NETLINK, NETLINK_EXT_ACK, 1);
    set_option(fd, SOL_NETLINK, NETLINK_CAP_ACK, 1);  // errors do not echo the request
    set_option(fd, SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1);
    return Socket(std::move(socket));
}

Result<uint32_t> Socket::index(const std::string& name) {
    const std::string what = "find " + printable(name);
    if (auto why = bad_name(name)) return Error(Errc::invalid, what + ": " + *why);
    ifreq wanted{};
    std::memcpy(wanted.ifr_name, name.c_str(), name.size() + 1);
    if (::ioctl(fd_, SIOCGIFINDEX, &wanted) == 0) return static_cast<uint32_t>(wanted.ifr_ifindex);
    return errno == ENODEV ? Error(Errc::not_found, what + ": No such device") : errno_error(errno, what);
}

Status Socket::request(const Request& request) { return batch({&request, 1})[0]; }

Status Socket::sequence(std::span<const Request> requests) {
    for (const Request& step : requests) TRY(request(step));
    return {};
}

std::vector<Status> Socket::batch(std::span<const Request> requests) { return batch(requests, nullptr); }

std::vector<Status> Socket::batch(std::span<const Request> requests, const OnReply& on_reply) {
    std::vector<Status> results(requests.size());
    size_t at = 0;
    while (at < requests.size()) {
        const Request& next = requests[at];
        if (next.invalid_) {
            results[at++] = *next.invalid_;
        } else if (!next.message_) {
            results[at] = next.write_sysctl();
            ++at;
        } else {
            at = run(requests, at, on_reply, results);
        }
    }
    return results;
}

// Sends the messages from `from` up to the next request that is none, or as many as fit; takes their answers.
// Returns the place of the first request that was not sent.
size_t Socket::run(std::span<const Request> requests, size_t from, const OnReply& on_reply,
                   std::vector<Status>& results) {
    std::vector<iovec> pieces;
    size_t bytes = 0;
    size_t end = from;
    uint32_t first_sequence = next_sequence_;
    for (; end < requests.size() && requests[end].message_ && pieces.size() < messages_per_send; ++end) {
        nlmsghdr* header = requests[end].header();
        size_t size = NLMSG_ALIGN(header->nlmsg_len);
        if (!pieces.empty() && bytes + size > bytes_per_send) break;
        header->nlmsg_seq = next_sequence_++;
        header->nlmsg_pid = nl_socket_get_local_port(socket_.get());
        pieces.push_back({header, size});
        bytes += size;
    }
    sockaddr_nl kernel{};
    kernel.nl_family = AF_NETLINK;
    msghdr message{};
    message.msg_name = &kernel;
    message.msg_namelen = sizeof kernel;
    message.msg_iov = pieces.data();
    message.msg_iovlen = pieces.size();
    ssize_t sent;
    do sent = ::sendmsg(fd_, &message, 0);
    while (sent < 0 && errno == EINTR);
    if (sent < 0) {
        int err = errno;
        for (size_t i = from; i < end; ++i) results[i] = errno_error(err, requests[i].what() + ": send to the kernel");
        return end;
    }
    collect(requests, from, first_sequence, on_reply, results, end - from);
    return end;
}

void Socket::collect(std::span<const Request> requests, size_t from, uint32_t first_sequence, const OnReply& on_reply,
                     std::vector<Status>& results, size_t expected) {
    std::vector<bool> answered(expected, false);
    size_t missing = expected;
    auto take = [&](const nlmsghdr& header) {
        uint32_t place = header.nlmsg_seq - first_sequence;  // wraps round: answers to older requests are far away
        if (place >= expected) return;
        if (header.nlmsg_type != NLMSG_ERROR) {
            if (on_reply) on_reply(from + place, header);
        } else if (!answered[place]) {
            answered[place] = true;
            --missing;
            results[from + place] = answer(requests[from + place], header);
        }
    };
    bool drained = false;
    while (missing > 0 && !drained) {
        int count = ::recvmmsg(fd_, buffers_->headers.data(), answers_per_receive, MSG_DONTWAIT, nullptr);
        if (count < 0) {
            if (errno != EINTR && errno != ENOBUFS) drained = true;
            continue;
        }
        for (int i = 0; i < count; ++i) {
            const mmsghdr& datagram = buffers_->headers[static_cast<size_t>(i)];
            if (datagram.msg_hdr.msg_flags & MSG_TRUNC) continue;  // its acknowledgement follows; the reply is missed
            auto* header = static_cast<nlmsghdr*>(datagram.msg_hdr.msg_iov->iov_base);
            int left = static_cast<int>(datagram.msg_len);
            for (; nlmsg_ok(header, left); header = nlmsg_next(header, &left)) take(*header);
        }
    }
    for (size_t i = 0; missing > 0 && i < expected; ++i) {
        if (!answered[i])
            results[from + i] =
                Error(requests[from + i].what() + ": the kernel's answer was lost (receive buffer full)");
    }
}

Status Socket::answer(const Request& request, const nlmsghdr& header) const {
    Verdict verdict = verdict_of(header);
    if (verdict.err == 0) return {};
    for (int err : request.accepted_)
        if (err == verdict.err) return {};
    Error error = errno_error(verdict.err, request.what());
    if (verdict.text.empty()) return error;
    return Error(error.code(), error.message() + " (" + verdict.text + ")");
}

Status Socket::dump(const Request& request, const OnEntry& on_entry, bool& interrupted) {
    interrupted = false;
    if (request.invalid_) return *request.invalid_;
    nlmsghdr* sent = request.header();
    sent->nlmsg_seq = next_sequence_++;
    sent->nlmsg_pid = nl_socket_get_local_port(socket_.get());
    sockaddr_nl kernel{};
    kernel.nl_family = AF_NETLINK;
    if (::sendto(fd_, sent, sent->nlmsg_len, 0, reinterpret_cast<sockaddr*>(&kernel), sizeof kernel) < 0)
        return errno_error(errno, request.what() + ": send to the kernel");
    auto memory = std::make_unique_for_overwrite<char[]>(dump_size);
    for (;;) {
        // The kernel makes the next part when this one is taken: there is always one until NLMSG_DONE.
        ssize_t size = ::recv(fd_, memory.get(), dump_size, MSG_DONTWAIT | MSG_TRUNC);
        if (size < 0 && errno == EINTR) continue;
        if (size < 0) return errno_error(errno, request.what() + ": receive from the kernel");
        if (static_cast<size_t>(size) > dump_size) return Error(request.what() + ": the kernel's answer is too long");
        auto* header = reinterpret_cast<nlmsghdr*>(memory.get());
        int left = static_cast<int>(size);
        for (; nlmsg_ok(header, left); header = nlmsg_next(header, &left)) {
            if (header->nlmsg_seq != sent->nlmsg_seq) continue;
            if (header->nlmsg_flags & NLM_F_DUMP_INTR) interrupted = true;
            if (header->nlmsg_type == NLMSG_DONE || header->nlmsg_type == NLMSG_ERROR) return answer(request, *header);
            on_entry(*header);
        }
    }
}

Status first_failure(std::span<const Status> results) {
    for (const Status& status : results)
        if (!status) return status;
    return {};
}

}  // namespace banana::netlink
