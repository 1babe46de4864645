#include "xconnect/prober.h"

#include <arpa/inet.h>
#include <fmt/core.h>
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>

#include "base/clock.h"
#include "xconnect/abi.h"

namespace banana::xconnect {
namespace {

// Any address does: a wire device's far end answers by ethertype. Locally administered, not a group.
constexpr std::array<uint8_t, 6> far_mac = {0x02, 0x62, 0x6e, 0x00, 0x00, 0x01};

uint64_t to_big(uint64_t value) { return __builtin_bswap64(value); }
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "to_big() swaps");

// Guests and what is behind an uplink may send this ethertype, too: only replies take room in the socket's buffer.
Status accept_replies_only(int socket) {
    sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(xc_probe, magic)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, XC_PROBE_MAGIC, 0, 5),
        BPF_STMT(BPF_LD | BPF_B | BPF_ABS, offsetof(xc_probe, version)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, XC_PROBE_VERSION, 0, 3),
        BPF_STMT(BPF_LD | BPF_B | BPF_ABS, offsetof(xc_probe, type)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, XC_PROBE_REPLY, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, UINT32_MAX),
        BPF_STMT(BPF_RET | BPF_K, 0),
    };
    const sock_fprog filter{static_cast<unsigned short>(std::size(program)), program};
    if (setsockopt(socket, SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof(filter)) == 0) return {};
    return errno_error(errno, "filter the probe socket");
}

constexpr int replies_per_read = 256;  // whoever floods it does not keep its reader from everything else

}  // namespace

Result<Prober> Prober::open() {
    // Of no protocol until the filter is there.
    Fd socket(::socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!socket) return errno_error(errno, "open probe socket");
    TRY(accept_replies_only(socket.get()));
    sockaddr_ll all{};
    all.sll_family = AF_PACKET;
    all.sll_protocol = htons(XC_PROBE_ETHERTYPE);
    if (bind(socket.get(), reinterpret_cast<const sockaddr*>(&all), sizeof(all)) < 0)
        return errno_error(errno, "open probe socket");
    return Prober(std::move(socket));
}

Status Prober::send(uint32_t ifindex, uint64_t nonce, size_t frame_size) {
    std::vector<uint8_t> payload(std::max(frame_size, min_frame) - ETH_HLEN);
    xc_probe probe{};
    probe.magic = htonl(XC_PROBE_MAGIC);
    probe.version = XC_PROBE_VERSION;
    probe.type = XC_PROBE_REQUEST;
    probe.nonce = to_big(nonce);
    probe.sent_ns = static_cast<uint64_t>(monotonic_ns());
    memcpy(payload.data(), &probe, sizeof(probe));

    sockaddr_ll to{};
    to.sll_family = AF_PACKET;
    to.sll_protocol = htons(XC_PROBE_ETHERTYPE);
    to.sll_ifindex = static_cast<int>(ifindex);
    to.sll_halen = ETH_ALEN;
    std::copy(far_mac.begin(), far_mac.end(), to.sll_addr);
    if (sendto(socket_.get(), payload.data(), payload.size(), 0, reinterpret_cast<sockaddr*>(&to), sizeof(to)) >= 0)
        return {};
    auto what = fmt::format("send probe of {} bytes by ifindex {}", frame_size, ifindex);
    if (errno == EMSGSIZE) return Error(Errc::refused, what + ": larger than the device's own MTU allows");
    return errno_error(errno == ENXIO ? ENODEV : errno, what);  // ENXIO is a packet socket's word for "no such device"
}

Result<std::vector<ProbeReply>> Prober::read() {
    std::vector<ProbeReply> replies;
    for (int i = 0; i < replies_per_read; ++i) {
        xc_probe probe{};
        sockaddr_ll from{};
        socklen_t from_size = sizeof(from);
        // MSG_TRUNC: the frame's real length is returned though only its head is copied.
        ssize_t size =
            recvfrom(socket_.get(), &probe, sizeof(probe), MSG_TRUNC, reinterpret_cast<sockaddr*>(&from), &from_size);
        if (size < 0) {
            if (errno == EAGAIN) return replies;
            if (errno == EINTR || errno == ENETDOWN) continue;  // ENETDOWN: a device went down, reported once
            return errno_error(errno, "read probe replies");
        }
        if (size < static_cast<ssize_t>(sizeof(probe))) continue;
        replies.push_back({static_cast<uint32_t>(from.sll_ifindex), to_big(probe.nonce),
                           static_cast<size_t>(size) + ETH_HLEN, monotonic_ns() - static_cast<int64_t>(probe.sent_ns)});
    }
    return replies;
}

}  // namespace banana::xconnect
