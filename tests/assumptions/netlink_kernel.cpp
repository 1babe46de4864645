// What src/netlink/ relies on in the kernel; each in a namespace of its own:  va === vb  (vb is listened to).
#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <poll.h>
#include <sys/socket.h>

#include <array>

#include "netlink/message.h"
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

TEST_CASE("kernel: master, MTU, MAC and txqueuelen are taken at creation; an ifalias is not, hence the extra step") {
    Bench bench;
    BridgeSpec lan;
    lan.name = "br0";
    bench.make(create(lan));
    Message message("create veth with everything", RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL);
    message.header(ifinfomsg{}).text(IFLA_IFNAME, "va").text(IFLA_IFALIAS, "named");
    message.u32(IFLA_MTU, 1400).u32(IFLA_TXQLEN, 77).u32(IFLA_MASTER, bench.get("br0").index);
    message.mac(IFLA_ADDRESS, mac("52:54:00:00:00:01"));
    message.nest(IFLA_LINKINFO, [&] { message.text(IFLA_INFO_KIND, "veth"); });
    bench.make(std::move(message).finish());
    Link va = bench.get("va");
    CHECK(va.master == bench.get("br0").index);
    CHECK(va.mtu == 1400);
    CHECK(va.txqueuelen == 77);
    CHECK(va.mac == mac("52:54:00:00:00:01"));
    CHECK(va.alias.empty());
}

TEST_CASE("kernel: a bridge made with an MTU loses it when a port comes; one that was changed keeps it") {
    Bench bench;
    Message message("create bridge", RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL);
    message.header(ifinfomsg{}).text(IFLA_IFNAME, "br0").u32(IFLA_MTU, 9000);
    message.nest(IFLA_LINKINFO, [&] { message.text(IFLA_INFO_KIND, "bridge"); });
    bench.make(std::move(message).finish());
    CHECK(bench.get("br0").mtu == 9000);
    VethSpec port{"va", "vb", {}, {}};
    port.options.master = bench.get("br0").index;
    bench.make(create(port));
    CHECK(bench.get("br0").mtu == 1500);
    bench.make(set_mtu("br0", 1400));
    bench.make(set_mtu("va", 1300));
    CHECK(bench.get("br0").mtu == 1400);
}

TEST_CASE("kernel: it answers a batch before sendmsg returns, and works on past a failure") {
    // Socket::batch() takes the answers without waiting. Were one late, it would be reported as lost.
    Bench bench;
    Requests steps;
    for (int i = 0; i < 300; ++i) {
        steps.push_back(set_mtu("nosuch", 1400));
        append(steps, create(VethSpec{"a" + std::to_string(i), "b" + std::to_string(i), {}, {}}));
    }
    auto results = bench.socket.batch(steps);
    size_t failed = 0;
    for (size_t i = 0; i < results.size(); ++i) {
        if (results[i]) continue;
        ++failed;
        CHECK(results[i].error().code() == Errc::not_found);
        CHECK(i % (steps.size() / 300) == 0);
    }
    CHECK(failed == 300);
}
