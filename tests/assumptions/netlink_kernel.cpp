// What src/netlink/ relies on in the kernel; each in a namespace of its own:  va === vb  (vb is listened to).
#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <poll.h>
#include <sys/socket.h>

#include <array>

#include "tests/netns/test_netlink_world.h"

using namespace banana;
using namespace banana::netlink;

namespace {
// Counts the frames that a device receives.
class Listener {
public:
    explicit Listener(uint32_t ifindex) : fd_(::socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(ETH_P_ALL))) {
        REQUIRE(fd_.get() >= 0);
        sockaddr_ll where{};
        where.sll_family = AF_PACKET;
        where.sll_protocol = htons(ETH_P_ALL);
        where.sll_ifindex = static_cast<int>(ifindex);
        REQUIRE(::bind(fd_.get(), reinterpret_cast<sockaddr*>(&where), sizeof where) == 0);
    }
    bool hears(int milliseconds) const {
        pollfd wait{fd_.get(), POLLIN, 0};
        return ::poll(&wait, 1, milliseconds) == 1;
    }

private:
    Fd fd_;
};

enum class Ipv6 { on, no_address, disabled };

// Brings up "va<n>" so prepared; `heard` is its peer.
Listener bring_up(Bench& bench, int n, Ipv6 how) {
    std::string va = "va" + std::to_string(n), vb = "vb" + std::to_string(n);
    LinkOptions quiet_down, down;
    quiet_down.up = down.up = false;
    down.ipv6 = true;
    bench.make(create(VethSpec{va, vb, how == Ipv6::disabled ? quiet_down : down, {}}));
    if (how == Ipv6::no_address) {
        LinkChange change;
        change.addr_gen_mode = IN6_ADDR_GEN_MODE_NONE;
        bench.make(set_link(va, change));
        CHECK(bench.get(va).addr_gen_mode == IN6_ADDR_GEN_MODE_NONE);
    }
    Listener listener(bench.get(vb).index);
    bench.make(set_up(va));
    return listener;
}
}  // namespace

TEST_CASE("kernel: a device with disable_ipv6 is silent; without an address it still speaks where IPv6 is forwarded") {
    Bench bench;
    bench.make(Request::sysctl("ipv6/conf/all/forwarding", "1", false));
    Listener quiet = bring_up(bench, 1, Ipv6::disabled);
    Listener no_address = bring_up(bench, 2, Ipv6::no_address);
    Listener plain = bring_up(bench, 3, Ipv6::on);
    CHECK(no_address.hears(10000));  // this is why addr_gen_mode is not enough
    CHECK(plain.hears(10000));
    CHECK_FALSE(quiet.hears(0));  // as long as the others took to speak
}

TEST_CASE("kernel: an ifalias at creation is not taken") {
    Bench bench;
    bench.make(create(VethSpec{"va", "vb", {}, {}}));
    CHECK(bench.get("va").alias.empty());
    // What create() does instead.
    LinkOptions named;
    named.alias = "hv1/lab";
    bench.make(create(VethSpec{"vc", "vd", named, {}}));
    CHECK(bench.get("vc").alias == "hv1/lab");
}
