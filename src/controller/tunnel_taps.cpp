#include "controller/tunnel_taps.h"

#include <fmt/core.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sys/ioctl.h>

#include "netlink/create.h"

// Younger than Debian 12's kernel headers.
#ifndef TUN_F_USO4
#define TUN_F_USO4 0x20
#define TUN_F_USO6 0x40
#endif

namespace banana::controller {

namespace {

Status set_offloads(int queue) {
    constexpr unsigned tcp = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
    if (::ioctl(queue, TUNSETOFFLOAD, tcp | TUN_F_USO4 | TUN_F_USO6) == 0) return {};
    if (errno == EINVAL && ::ioctl(queue, TUNSETOFFLOAD, tcp) == 0) return {};  // before Linux 6.2
    return errno_error(errno, "set its offloads");
}

}  // namespace

Result<std::vector<Fd>> open_tap_queues(const std::string& device, size_t queues) {
    // Opening makes what is not there; that is the engine's to do, with all that belongs to it.
    if (if_nametoindex(device.c_str()) == 0) return errno_error(errno, "open the queues of " + device);
    std::vector<Fd> out;
    for (size_t i = 0; i < queues; ++i) {
        const std::string what = fmt::format("open queue {} of {}", i, device);
        auto queue = netlink::create_tap({.name = device, .multi_queue = true});
        if (!queue) return queue.error().context(what);
        if (const Status set = set_offloads(queue->get()); !set) return set.error().context(what);
        out.push_back(std::move(*queue));
    }
    return out;
}

}  // namespace banana::controller
