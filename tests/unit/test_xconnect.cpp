// The cross-connect's pure parts: names and sums. What needs the kernel stands in tests/netns/test_xconnect*.cpp.
#include <doctest/doctest.h>

#include <set>
#include <string>

#include "xconnect/crossconnect.h"

using namespace banana;
using namespace banana::xconnect;

TEST_CASE("xconnect: each drop reason has a name of its own") {
    std::set<std::string> names;
    for (int reason = 0; reason < XC_DROP_REASONS; reason++)
        names.insert(drop_reason_name(static_cast<xc_drop>(reason)));
    CHECK(names.size() == XC_DROP_REASONS);
    CHECK_FALSE(names.contains("unknown"));
    CHECK(std::string(drop_reason_name(XC_DROP_ROOM)) == "unknown");
    CHECK(XC_DROP_REASONS <= XC_DROP_ROOM);
}

TEST_CASE("xconnect: counters add up over reasons") {
    Counters counters;
    CHECK(counters.dropped() == Count{});
    counters.drops[XC_DROP_NO_ENTRY] = {3, 300};
    counters.drops[XC_DROP_BAD_PROBE] = {1, 64};
    CHECK(counters.dropped() == Count{4, 364});
}

TEST_CASE("xconnect: ports are named and ordered by device, then side") {
    CHECK(PortKey{7, Direction::egress}.text() == "ifindex 7 egress");
    CHECK(PortKey{7, Direction::ingress} < PortKey{7, Direction::egress});
    CHECK(PortKey{6, Direction::egress} < PortKey{7, Direction::ingress});
}

TEST_CASE("xconnect: the layouts that older processes have pinned") {
    CHECK(sizeof(xc_key) == 8);
    CHECK(sizeof(xc_port) == 32);
    CHECK(sizeof(xc_counters) == 16 * (1 + XC_DROP_ROOM));
    CHECK(sizeof(xc_event) == 24);
    CHECK(sizeof(xc_probe) == 24);
}
