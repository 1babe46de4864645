#include "model/names.h"

#include <doctest/doctest.h>
#include <net/if.h>

#include <algorithm>
#include <set>

using namespace banana;
using namespace banana::model;

namespace {

using Check = Status (*)(std::string_view);

void accepted(Check check, std::initializer_list<std::string> names) {
    for (const auto& name : names) {
        CAPTURE(name);
        CHECK(check(name).ok());
    }
}

void refused(Check check, std::initializer_list<std::string> names) {
    for (const auto& name : names) {
        CAPTURE(name);
        const Status status = check(name);
        REQUIRE_FALSE(status.ok());
        CHECK(status.error().code() == Errc::invalid);
    }
}

std::string text(size_t size) { return std::string(size, 'a'); }

}  // namespace

TEST_CASE("names: hosts and Corms") {
    accepted(check_host_name, {"a", "0", "hv1", "hv-1", "a-", text(32)});
    refused(check_host_name,
            {"", "-a", "A", "hv.1", "hv_1", "hv 1", "hv/1", "hv\n", "h\xc3\xa4", std::string("a\0b", 3), text(33)});
    accepted(check_corm_name, {"lab", "0", "a-b", text(12)});
    refused(check_corm_name, {"", "-lab", "Lab", "a_b", "../x", text(13)});
    CHECK(check_corm_name("Lab").error().message() ==
          "Corm name 'Lab': it must be 1 to 12 of a-z, 0-9 and '-', and not begin with '-'");
    CHECK(check_host_name("a\nb").error().message().find('\n') == std::string::npos);
}

TEST_CASE("names: devices, as the kernel takes them") {
    accepted(check_device_name, {"eth0", "x", "...", "br-lan.10", "enp3s0f1np1", text(15)});
    refused(check_device_name, {"", ".", "..", "a b", "a/b", "a:1", "eth%d", "a\t", "\x7f", "\xc3\xa4", text(16)});
}

TEST_CASE("names: labels and MTUs") {
    accepted(check_label, {"eth7", "A", "0", "a.b_c-D", text(64)});
    refused(check_label, {"", ".a", "_a", "-a", "a/b", "a b", "a\n", text(65)});
    for (int64_t mtu : {1280, 1500, 9000, 65000}) CHECK(check_mtu(mtu).ok());
    for (int64_t mtu : {INT64_MIN, int64_t{-1}, int64_t{0}, int64_t{1279}, int64_t{65001}, INT64_MAX}) {
        CAPTURE(mtu);
        CHECK(check_mtu(mtu).error().code() == Errc::invalid);
    }
    CHECK(check_mtu(68).error().message() == "MTU 68: it must be 1280 to 65000");
}

TEST_CASE("names: paths, and their parts again") {
    CHECK(corm_full_name("hv1", "lab") == "hv1/lab");
    CHECK(corm_short_name("hv1/lab") == "lab");
    CHECK(corm_short_name("lab") == "lab");
    CHECK(corm_host("hv1/lab") == "hv1");
    CHECK(spike_name("hv1", "vm1", "net0") == "hv1/vm1/net0");
    CHECK(netdev_spike_name("hv1", "eth7") == "hv1/dev/eth7");
    CHECK(name_home("hv1/vm1/net0") == "hv1");
    CHECK(name_home("hv1") == "hv1");
    CHECK(name_home("") == "");
    CHECK(network_name("lab") == "banana-lab");
    CHECK(guest_key("6f0ea4e2-6ac5-4f3b-a3f5-3f2c6b1f7a10", *Mac::parse("52:54:00:AB:cd:ef")) ==
          "6f0ea4e2-6ac5-4f3b-a3f5-3f2c6b1f7a10/52:54:00:ab:cd:ef");
    CHECK(netdev_key("hv1", "eth7") == "hv1/dev/eth7");
}

TEST_CASE("names: a Spike's, of whatever its domain is called") {
    CHECK(spike_name("hv1", "win\\dom", "net0") == "hv1/win%5Cdom/net0");
    CHECK(spike_name("hv1", "b\xc3\xbcro", "net0") == "hv1/b%C3%BCro/net0");
    CHECK(spike_name("hv1", "my vm~1", "a.b_c-d") == "hv1/my vm~1/a.b_c-d");
    CHECK(spike_name("hv1", "100%", "a/b") == "hv1/100%25/a%2Fb");
    CHECK(spike_name("hv1", "a\tb", "\x7f") == "hv1/a%09b/%7F");
    CHECK(spike_name("hv1", std::string(131, 'n'), "net0") == "hv1/" + std::string(131, 'n') + "/net0");
    const std::string host(32, 'h');
    for (const size_t size : {3, 101, 102, 127, 128, 129, 130, 131, 132, 133, 200, 5000})
        for (const char* letter : {"n", "\xc3\xbc"}) {
            std::string domain, interface;
            while (domain.size() < size) domain += letter;
            while (interface.size() < size / 3) interface += letter;
            for (const auto& name : {spike_name("hv1", domain, "net0"), spike_name(host, domain, interface)}) {
                CAPTURE(name);
                CHECK(check_spike_name(name).ok());
                for (const char* half : {"%.", "%C.", "%B."}) CHECK(name.find(half) == std::string::npos);
                // Its home and the Corm's host may each make it unique.
                const auto twice = [](const std::string& tried) { return tried.find('~') == std::string::npos; };
                CHECK(check_spike_name(unique_spike_name(name, "01234567-89ab/x", twice) + "~01234567-99").ok());
            }
        }
    const std::string cut = spike_name("hv1", std::string(200, 'n'), "net0");
    CHECK(cut == "hv1/" + std::string(128, 'n') + ".../net0");
}

TEST_CASE("names: what another host calls a Spike is checked") {
    for (const char* good : {"hv1/vm1/net0", "hv1/dev/eth7", "hv1/my vm/net0~01234567-2", "a/b/c", "hv1/100%/x"})
        CHECK(check_spike_name(good).ok());
    for (const char* bad :
         {"", "hv1", "hv1/vm1", "hv1/vm1/", "hv1//net0", "/vm1/net0", "hv1/vm1/net0/x", "HV1/vm1/net0",
          "hv1/b\xc3\xbcro/net0", "hv1/win\\dom/net0", "hv1/a\nb/net0", "hv1/a\x7f/net0", "//", "///"}) {
        CAPTURE(bad);
        CHECK_FALSE(check_spike_name(bad).ok());
    }
    CHECK(check_spike_name("hv1/" + std::string(191, 'n') + "/net0").ok());
    CHECK(check_spike_name("hv1/" + std::string(192, 'n') + "/net0").error().message() ==
          "Spike name 'hv1/" + std::string(76, 'n') +
              "...': it must be HOME/DOMAIN/INTERFACE, at most 200 bytes of printable ASCII without '\\'");
}

TEST_CASE("names: a Spike's name is made unique") {
    const std::set<std::string> all{"hv1/a/net0", "hv1/b/net0", "hv1/b/net0~01234567", "hv1/dev/x"};
    const auto taken = [&](const std::string& name) { return all.contains(name); };
    const std::string key = "01234567-89ab-cdef-0123-456789abcdef/52:54:00:00:00:01";
    CHECK(unique_spike_name("hv1/c/net0", key, taken) == "hv1/c/net0");
    CHECK(unique_spike_name("hv1/a/net0", key, taken) == "hv1/a/net0~01234567");
    CHECK(unique_spike_name("hv1/b/net0", key, taken) == "hv1/b/net0~01234567-2");
    CHECK(unique_spike_name("hv1/dev/x", "hv1/dev/x", taken) == "hv1/dev/x~hv1");
}

TEST_CASE("names: devices come from ids, fit the kernel, and are known again") {
    CHECK(port_device(0x2a) == "bnc0000002a");
    using Name = std::string (*)(uint32_t);
    const std::initializer_list<Name> names{corm_bridge_device, port_device,  wire_device,
                                            tunnel_device,      lower_device, lower_stub_device,
                                            headroom_device,    stage_device, stage_headroom_device};
    std::vector<std::string> all;
    for (Name name : names)
        for (uint32_t id : {0u, 1u, 0xffffffffu}) {
            all.push_back(name(id));
            CHECK(check_device_name(all.back()).ok());
            CHECK(is_own_device(all.back()));
        }
    std::sort(all.begin(), all.end());
    CHECK(std::adjacent_find(all.begin(), all.end()) == all.end());
    CHECK(lower_device(1).starts_with(macvtap_prefix));
    CHECK(anchor_device(std::string(corm_name_max, 'a')).size() == IFNAMSIZ - 1);
    for (const char* name : {"", "bnc", "bnc0000002", "bnc0000002a0", "bnc0000002g", "bnz0000002a", "eth0", "bn-lab",
                             "bnc0000002A0", "xbnc0000002a"})
        CHECK_FALSE(is_own_device(name));
    CHECK(tunnel_connector(tunnel_device(0xff123456)) == 0xff123456);
    for (const char* name : {"", "bnd", "bnd0000002", "bnx0000002a", "bnd0000002a0"})
        CHECK_FALSE(tunnel_connector(name));
    CHECK(vni_of(0xff123456) == 0x123456);
    CHECK(vni_of(0xffffffff) == 0xffffff);
}
