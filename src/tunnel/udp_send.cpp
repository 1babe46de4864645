// SendBatch: datagrams stand one behind the other in one arena; a message is a run of them that one send may take
// (same socket, same address, same size but for a shorter last one), and a call takes all messages of one socket.
//
// What the kernel will not take as a whole is sent datagram by datagram: EINVAL and EMSGSIZE come from a segment that
// does not fit the device's MTU (which of the two depends on the kernel's age), EIO from a route that cannot sum
// segments (then we do not ask again). What does not fit alone either is told by take_too_big(). A full socket buffer
// is waited for, once a flush and briefly, so that a slow link slows the sender down; the rest is dropped, as any queue
// would.
#include <netinet/udp.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "base/clock.h"
#include "tunnel/udp.h"

namespace banana::tunnel {

namespace {
constexpr size_t arena_bytes = 256 * 1024;  // four full messages: stays in a core's second-level cache
constexpr size_t messages_max = 256;
constexpr size_t segments_max = 64;  // UDP_MAX_SEGMENTS of all kernels that have it
constexpr int64_t wait_max_ns = 5'000'000;

struct Message {
    int socket = -1;
    Endpoint to;
    uint32_t offset = 0, bytes = 0;
    uint16_t segment = 0, count = 0;
    bool full = false;  // takes no more datagrams
};

// A message's cmsg: its segment size.
struct alignas(cmsghdr) SegmentControl {
    std::array<uint8_t, CMSG_SPACE(sizeof(uint16_t))> bytes;
};
}  // namespace

struct SendBatch::Impl {
    bool gso;
    std::vector<uint8_t> arena = std::vector<uint8_t>(arena_bytes);
    size_t used = 0;
    std::vector<Message> messages;
    std::vector<mmsghdr> headers = std::vector<mmsghdr>(messages_max);
    std::vector<iovec> vectors = std::vector<iovec>(messages_max);
    std::vector<SegmentControl> controls = std::vector<SegmentControl>(messages_max);
    SendCounters counters;
    TooBig too_big;
    int64_t wait_until = 0;  // of this flush; 0: has not waited yet

    bool joins(const Message& message, int socket, const Endpoint& to, size_t bytes) const {
        return gso && !message.full && message.socket == socket && bytes != 0 && bytes <= message.segment &&
               message.to == to && message.bytes + bytes <= datagram_max;
    }
    void fill(size_t slot, const Message& message, size_t offset, size_t bytes, bool segmented);
    void send_all();
    size_t send_run(size_t first, size_t last);
    void send_singly(const Message& message);
    bool wait(int socket, int error);
    void drop(const Message& message, size_t datagrams, int error);
};

SendBatch::SendBatch(bool gso) : impl_(std::make_unique<Impl>()) {
    impl_->gso = gso;
    impl_->messages.reserve(messages_max);
}
SendBatch::~SendBatch() = default;

uint8_t* SendBatch::reserve(size_t bytes) {
    Impl& impl = *impl_;
    if (impl.used + bytes > arena_bytes || impl.messages.size() == messages_max) flush();
    return impl.arena.data() + impl.used;
}

void SendBatch::commit(int socket, const Endpoint& to, size_t bytes) {
    Impl& impl = *impl_;
    if (impl.messages.empty() || !impl.joins(impl.messages.back(), socket, to, bytes)) {
        impl.messages.push_back({socket, to, static_cast<uint32_t>(impl.used), 0, static_cast<uint16_t>(bytes), 0});
        impl.messages.back().full = bytes == 0;  // an empty datagram has no segment size
    }
    Message& message = impl.messages.back();
    message.bytes += static_cast<uint32_t>(bytes);
    message.count++;
    if (bytes < message.segment || message.count == segments_max) message.full = true;
    impl.used += bytes;
}

void SendBatch::flush() {
    if (impl_->messages.empty()) return;
    impl_->wait_until = 0;
    impl_->send_all();
    impl_->messages.clear();
    impl_->used = 0;
}

bool SendBatch::empty() const { return impl_->messages.empty(); }
bool SendBatch::gso() const { return impl_->gso; }
const SendCounters& SendBatch::counters() const { return impl_->counters; }
SendBatch::TooBig SendBatch::take_too_big() { return std::exchange(impl_->too_big, {}); }

void SendBatch::Impl::fill(size_t slot, const Message& message, size_t offset, size_t bytes, bool segmented) {
    vectors[slot] = {arena.data() + offset, bytes};
    msghdr& header = headers[slot].msg_hdr;
    header = {};
    header.msg_name = const_cast<sockaddr_in6*>(&message.to.raw);
    header.msg_namelen = message.to.size();
    header.msg_iov = &vectors[slot];
    header.msg_iovlen = 1;
    if (!segmented) return;
    header.msg_control = controls[slot].bytes.data();
    header.msg_controllen = controls[slot].bytes.size();
    cmsghdr* control = CMSG_FIRSTHDR(&header);
    control->cmsg_level = SOL_UDP;
    control->cmsg_type = UDP_SEGMENT;
    control->cmsg_len = CMSG_LEN(sizeof(uint16_t));
    std::memcpy(CMSG_DATA(control), &message.segment, sizeof message.segment);
}

void SendBatch::Impl::send_all() {
    for (size_t first = 0; first < messages.size();) {
        if (messages[first].count > 1 && !gso) {  // gathered before EIO told us
            send_singly(messages[first++]);
            continue;
        }
        size_t last = first + 1;
        while (last < messages.size() && messages[last].socket == messages[first].socket) ++last;
        first = send_run(first, last);
    }
}

// Sends messages [first, last), all of one socket, and deals with the first that the kernel refuses. Returns the next.
size_t SendBatch::Impl::send_run(size_t first, size_t last) {
    for (size_t i = first; i < last; ++i)
        fill(i - first, messages[i], messages[i].offset, messages[i].bytes, messages[i].count > 1);
    size_t done = first;
    while (done < last) {
        const Message& message = messages[done];
        counters.calls++;
        int sent = ::sendmmsg(message.socket, &headers[done - first], static_cast<unsigned>(last - done), MSG_DONTWAIT);
        if (sent > 0) {
            for (size_t end = done + static_cast<size_t>(sent); done < end; ++done) {
                counters.messages++;
                counters.datagrams += messages[done].count;
            }
            continue;
        }
        int error = errno;
        if (wait(message.socket, error)) continue;
        if (error == EAGAIN) {  // waited long enough: what is left will not fit either
            for (; done < last; ++done) drop(messages[done], messages[done].count, error);
            return last;
        }
        if (message.count > 1 && (error == EIO || error == EINVAL || error == EMSGSIZE)) {
            if (error == EIO) gso = false;
            send_singly(message);
        } else {
            drop(message, message.count, error);
        }
        return done + 1;
    }
    return done;
}

void SendBatch::Impl::send_singly(const Message& message) {
    for (size_t i = 0; i < message.count; ++i) {
        size_t at = i * message.segment;
        fill(i, message, message.offset + at, std::min<size_t>(message.segment, message.bytes - at), false);
    }
    size_t done = 0;
    while (done < message.count) {
        counters.calls++;
        int sent =
            ::sendmmsg(message.socket, &headers[done], static_cast<unsigned>(message.count - done), MSG_DONTWAIT);
        if (sent > 0) {
            done += static_cast<size_t>(sent);
            counters.messages += static_cast<uint64_t>(sent);
            counters.datagrams += static_cast<uint64_t>(sent);
            continue;
        }
        int error = errno;
        if (wait(message.socket, error)) continue;
        // The others are of one size and go one way, so that they would be refused alike: but not the shorter last one.
        bool shorter_last = message.bytes % message.segment != 0;
        size_t alike = error == EMSGSIZE && shorter_last && done + 1 < message.count ? message.count - done - 1
                                                                                     : message.count - done;
        if (error != EMSGSIZE && error != EAGAIN) alike = 1;
        Message refused = message;
        refused.segment = static_cast<uint16_t>(vectors[done].iov_len);
        drop(refused, alike, error);
        done += alike;
    }
}

// Whether to try the same again.
bool SendBatch::Impl::wait(int socket, int error) {
    if (error == EINTR) return true;
    if (error != EAGAIN && error != ENOBUFS && error != ECONNREFUSED) return false;
    int64_t now = monotonic_ns();
    if (wait_until == 0) wait_until = now + wait_max_ns;
    if (now >= wait_until) return false;
    if (error == ECONNREFUSED) return true;  // of an earlier datagram; told once
    // ENOBUFS says nothing about this socket, whose poll would return at once: wait by the clock.
    pollfd one{socket, static_cast<short>(error == EAGAIN ? POLLOUT : 0), 0};
    int64_t left = wait_until - now;
    timespec timeout{0, error == EAGAIN ? left : std::min<int64_t>(left, wait_max_ns / 5)};
    (void)::ppoll(&one, 1, &timeout, nullptr);
    return true;
}

void SendBatch::Impl::drop(const Message& message, size_t datagrams, int error) {
    if (error == EMSGSIZE) {
        counters.too_big += datagrams;
        if (too_big.bytes == 0 || message.segment < too_big.bytes) too_big = {message.segment, message.to};
    } else if (error == EAGAIN || error == ENOBUFS) {
        counters.no_room += datagrams;
    } else {
        counters.errors += datagrams;
    }
}

}  // namespace banana::tunnel
