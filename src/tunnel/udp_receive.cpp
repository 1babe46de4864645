// Receiver: one recvmmsg fills several buffers, each with one datagram or with a run of equal ones that the kernel put
// together. Where runs are long, few buffers are offered, so that what is read next is still in the cache; where the
// kernel does not gather, many are, so that a call is worth its cost.
#include <netinet/udp.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "tunnel/udp.h"

namespace banana::tunnel {

namespace {
constexpr size_t buffer_bytes = 65536;  // an IP packet's length has 16 bits
constexpr size_t buffers_max = 32;
constexpr size_t buffers_min = 4;
constexpr size_t bytes_aim = 256 * 1024;  // of one call
constexpr size_t runs_max = 64;           // datagrams that the kernel puts into one buffer, as a rule
constexpr int errors_max = 16;            // pending errors skipped in one call

struct alignas(cmsghdr) GroControl {
    std::array<uint8_t, CMSG_SPACE(sizeof(int))> bytes;
};

// The kernel's segment size; 0: one datagram.
size_t segment_size(msghdr& header) {
    for (cmsghdr* control = CMSG_FIRSTHDR(&header); control; control = CMSG_NXTHDR(&header, control)) {
        if (control->cmsg_level != SOL_UDP || control->cmsg_type != UDP_GRO) continue;
        int size = 0;
        std::memcpy(&size, CMSG_DATA(control), sizeof size);
        return size > 0 ? static_cast<size_t>(size) : 0;
    }
    return 0;
}

// A socket for both families says ::ffff:192.0.2.1; the rest of us knows one name for an address only.
void unmap(Endpoint& from) {
    if (from.family() != AF_INET6 || !IN6_IS_ADDR_V4MAPPED(&from.raw.sin6_addr)) return;
    IpAddress address;
    address.family = AF_INET;
    std::memcpy(address.bytes.data(), &from.raw.sin6_addr.s6_addr[12], 4);
    from = Endpoint::of(address, from.port());
}
}  // namespace

struct Receiver::Impl {
    int socket;
    std::unique_ptr<uint8_t[]> buffers{new uint8_t[buffers_max * buffer_bytes]};  // untouched until needed
    std::vector<mmsghdr> headers = std::vector<mmsghdr>(buffers_max);
    std::vector<iovec> vectors = std::vector<iovec>(buffers_max);
    std::vector<GroControl> controls = std::vector<GroControl>(buffers_max);
    std::vector<Endpoint> from = std::vector<Endpoint>(buffers_max);
    std::vector<Datagram> datagrams;
    size_t offered = buffers_max;
    size_t used = buffers_max;  // headers that the kernel may have written lengths into
    uint64_t calls = 0;

    explicit Impl(int from_socket);
    void prepare();
    int read();
    void split(size_t slot);
    void offer(size_t messages, size_t bytes);
};

Receiver::Impl::Impl(int from_socket) : socket(from_socket) {
    datagrams.reserve(buffers_max * runs_max);
    for (size_t i = 0; i < buffers_max; ++i) {
        vectors[i] = {buffers.get() + i * buffer_bytes, buffer_bytes};
        msghdr& header = headers[i].msg_hdr;
        header.msg_name = &from[i].raw;
        header.msg_iov = &vectors[i];
        header.msg_iovlen = 1;
        header.msg_control = controls[i].bytes.data();
    }
}

Receiver::Receiver(int socket, bool gro) : impl_(std::make_unique<Impl>(socket)) {
    int on = gro;
    (void)::setsockopt(socket, SOL_UDP, UDP_GRO, &on, sizeof on);  // refused: datagrams come singly
}
Receiver::~Receiver() = default;

std::span<const Receiver::Datagram> Receiver::receive() {
    Impl& impl = *impl_;
    impl.datagrams.clear();
    int count = impl.read();
    size_t bytes = 0;
    for (size_t i = 0; i < static_cast<size_t>(std::max(count, 0)); ++i) {
        impl.split(i);
        bytes += impl.headers[i].msg_len;
    }
    if (count > 0) impl.offer(static_cast<size_t>(count), bytes);
    return impl.datagrams;
}

uint64_t Receiver::calls() const { return impl_->calls; }

// Of those alone that were used: all 32 for one datagram would be a good part of its cost.
void Receiver::Impl::prepare() {
    for (size_t i = 0; i < used; ++i) {
        headers[i].msg_hdr.msg_namelen = sizeof from[i].raw;
        headers[i].msg_hdr.msg_controllen = controls[i].bytes.size();
    }
    used = 0;
}

int Receiver::Impl::read() {
    prepare();
    for (int skipped = 0; skipped < errors_max; ++skipped) {
        calls++;
        int count = ::recvmmsg(socket, headers.data(), static_cast<unsigned>(offered), MSG_DONTWAIT, nullptr);
        // One that failed may have been written to as well.
        used = std::min(offered, static_cast<size_t>(std::max(count, 0)) + 1);
        if (count >= 0 || errno == EAGAIN) return count;
        prepare();
    }
    return -1;
}

void Receiver::Impl::split(size_t slot) {
    msghdr& header = headers[slot].msg_hdr;
    if (header.msg_flags & MSG_TRUNC) return;  // cannot be: no datagram is larger than a buffer
    unmap(from[slot]);
    std::span<uint8_t> all(buffers.get() + slot * buffer_bytes, headers[slot].msg_len);
    size_t segment = segment_size(header);
    if (segment == 0) segment = all.size();
    do {
        const auto one = all.first(std::min(segment, all.size()));
        datagrams.push_back({one, &from[slot]});
        all = all.subspan(one.size());
    } while (!all.empty());
}

// Next time as many buffers as hold about `bytes_aim` if messages stay as they are.
void Receiver::Impl::offer(size_t messages, size_t bytes) {
    offered = std::clamp(bytes_aim * messages / std::max<size_t>(bytes, 1), buffers_min, buffers_max);
}

}  // namespace banana::tunnel
