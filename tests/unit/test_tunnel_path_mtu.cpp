#include <doctest/doctest.h>

#include <vector>

#include "tunnel/path_mtu.h"

using banana::tunnel::PathMtu;

namespace {

constexpr int64_t ms = 1'000'000;

// A path that answers probes up to `mtu` bytes after a round trip; the clock goes in ticks of 10 ms.
struct Path {
    uint32_t mtu;
    uint32_t local_mtu = 65535;
    PathMtu found = {};
    int64_t now = 1;
    int probes = 0;

    void run(int64_t duration, bool busy) {
        for (const int64_t end = now + duration; now < end; now += 10 * ms)
            while (const auto bytes = found.probe(now, busy, 0)) {
                probes++;
                if (*bytes > local_mtu)
                    found.too_big(*bytes, now);
                else if (*bytes <= mtu)
                    found.answered(*bytes, now);
            }
    }
};

}  // namespace

TEST_CASE("path MTU: begins at what every path carries") { CHECK(PathMtu().current() == 1280); }

TEST_CASE("path MTU: found to within its precision, never above what passes") {
    for (const bool busy : {false, true})
        for (const uint32_t mtu :
             {1280u, 1281u, 1300u, 1399u, 1400u, 1420u, 1472u, 1499u, 1500u, 1501u, 4000u, 8896u, 8999u}) {
            CAPTURE(mtu);
            CAPTURE(busy);
            Path path{mtu};
            path.run(20'000 * ms, busy);
            CHECK(path.found.current() <= mtu);
            CHECK(path.found.current() + PathMtu::precision_bytes >= mtu);
        }
}

TEST_CASE("path MTU: the usual one costs one round trip") {
    Path path{1500};
    path.run(10 * ms, false);
    CHECK(path.found.current() == 1500);
}

TEST_CASE("path MTU: nothing above its ceiling is tried") {
    Path path{65535};
    path.run(2'000 * ms, false);
    CHECK(path.found.current() == PathMtu::ceiling_bytes);
}

TEST_CASE("path MTU: what the own device refuses ends a try at once") {
    Path path{1500, 1500};
    path.run(100 * ms, false);
    CHECK(path.found.current() == 1500);
    CHECK_FALSE(path.found.searching());
}

TEST_CASE("path MTU: a path that shrinks under traffic is found out within 1.5 s") {
    Path path{1500};
    path.run(10'000 * ms, true);
    REQUIRE(path.found.current() == 1500);
    path.mtu = 1280;
    path.run(1'500 * ms, true);
    CHECK(path.found.current() == 1280);
    path.mtu = 1400;  // the search below 1500 that follows finds what there is
    path.run(10'000 * ms, true);
    CHECK(path.found.current() + PathMtu::precision_bytes >= 1280);
}

TEST_CASE("path MTU: single lost proofs change nothing") {
    Path path{1500};
    path.run(10'000 * ms, true);
    for (int i = 0; i < 20; i++) {
        path.mtu = 1280;
        path.run(200 * ms, true);  // at most one proof and no second try
        path.mtu = 1500;
        path.run(2'000 * ms, true);
        CHECK(path.found.current() == 1500);
    }
}

TEST_CASE("path MTU: an idle session sends no proofs, and searches again after ten minutes") {
    Path path{1400};
    path.run(20'000 * ms, false);
    const int before = path.probes;
    path.run(60'000 * ms, false);
    CHECK(path.probes == before);
    path.mtu = 1500;
    path.run(600'000 * ms, false);
    CHECK(path.found.current() == 1500);
}

TEST_CASE("path MTU: a device whose MTU shrank sends it back to the floor at once") {
    Path path{9000};
    path.run(1'000 * ms, true);
    REQUIRE(path.found.current() == 9000);
    path.found.too_big(9000, path.now);
    CHECK(path.found.current() == 1280);
}

TEST_CASE("path MTU: an answer to a size that was never asked for is not believed beyond the ceiling") {
    PathMtu found;
    found.answered(60000, 1);
    CHECK(found.current() == 1280);
}
