#include "model/host.h"

#include <doctest/doctest.h>
#include <sys/socket.h>

using namespace banana;
using namespace banana::model;

namespace {

const std::vector<Format> all{Format::native, Format::vxlan, Format::dtls};

Host host(const std::string& name, const std::string& site, std::vector<Format> formats = all) {
    return {name, site, *IpAddress::parse("192.0.2.1"), 1500, std::move(formats), {4790, 2, ""}};
}

enum class Place { here, near, far };  // the Spike's host, as the Corm's (hv1 at site a) sees it

Host spike_host(Place place, std::vector<Format> formats = all) {
    if (place == Place::here) return host("hv1", "a", std::move(formats));
    return host("hv2", place == Place::near ? "a" : "b", std::move(formats));
}

std::string chosen(Place place, const std::string& preference, const std::vector<Format>& allowed = all,
                   const std::vector<Format>& spike_can = all, const std::vector<Format>& corm_can = all) {
    const auto choice = choose_format(preference, allowed, spike_host(place, spike_can), host("hv1", "a", corm_can));
    if (choice) return format_name(choice->format);
    return errc_name(choice.error().code());
}

std::string reason(Place place, const std::string& preference, const std::vector<Format>& allowed = all,
                   const std::vector<Format>& spike_can = all) {
    const auto choice = choose_format(preference, allowed, spike_host(place, spike_can), host("hv1", "a"));
    return choice ? choice->why : choice.error().message();
}

}  // namespace

TEST_CASE("host: the format for each place and preference") {
    struct Row {
        const char* preference;
        const char *here, *near, *far;
    };
    for (const Row& row : std::initializer_list<Row>{{"auto", "native", "vxlan", "dtls"},
                                                     {"native", "native", "refused", "refused"},
                                                     {"vxlan", "native", "vxlan", "vxlan"},
                                                     {"dtls", "native", "dtls", "dtls"}}) {
        CAPTURE(row.preference);
        CHECK(chosen(Place::here, row.preference) == row.here);
        CHECK(chosen(Place::near, row.preference) == row.near);
        CHECK(chosen(Place::far, row.preference) == row.far);
    }
    CHECK(chosen(Place::near, "ipip") == "invalid");
}

TEST_CASE("host: policy and abilities only take away, they never choose another format") {
    const std::vector<Place> places{Place::here, Place::near, Place::far};
    for (const Place place : places)
        for (const char* preference : {"auto", "native", "vxlan", "dtls"})
            for (unsigned without = 0; without < all.size(); ++without) {
                CAPTURE(int(place));
                CAPTURE(preference);
                std::vector<Format> rest = all;
                rest.erase(rest.begin() + without);
                const std::string free = chosen(place, preference);
                const bool hit = free == format_name(all[without]);
                CHECK(chosen(place, preference, rest) == (hit ? "refused" : free));
                CHECK(chosen(place, preference, all, rest) == (hit ? "unsupported" : free));
                CHECK(chosen(place, preference, all, all, rest) == (hit ? "unsupported" : free));
            }
    CHECK(chosen(Place::here, "auto", {}) == "refused");
    CHECK(chosen(Place::near, "auto", all, {}, {}) == "unsupported");
}

TEST_CASE("host: a choice and a refusal say why") {
    CHECK(reason(Place::here, "auto") == "auto: same host");
    CHECK(reason(Place::near, "auto") == "auto: same site (a)");
    CHECK(reason(Place::far, "auto") == "auto: other site (b, the Corm's is a)");
    CHECK(reason(Place::near, "dtls") == "asked for");
    CHECK(reason(Place::here, "vxlan") == "same host; vxlan when apart");
    CHECK(reason(Place::near, "native") ==
          "a native wire joins a Spike and a Corm on one host; the Spike is on hv2, the Corm on hv1");
    CHECK(reason(Place::far, "auto", {Format::native, Format::vxlan}) ==
          "wire format dtls (auto: other site (b, the Corm's is a)) is not among those that the Corm allows: native, "
          "vxlan");
    CHECK(reason(Place::near, "vxlan", all, {Format::native}) ==
          "wire format vxlan (asked for) cannot be built on hv2; it can build: native");
    CHECK(reason(Place::near, "dtls", all, {Format::native, Format::vxlan}) ==
          "wire format dtls (asked for): host hv2 has no tunnel: it builds none");
    Host without = host("hv2", "b", {Format::native, Format::vxlan});
    without.tunnel.problem = "banana-tunneld ended (exit code 1)";
    CHECK(
        choose_format("auto", all, without, host("hv1", "a")).error().message() ==
        "wire format dtls (auto: other site (b, the Corm's is a)): host hv2 has no tunnel: banana-tunneld ended (exit "
        "code 1)");
    CHECK(reason(Place::near, "vxlan", {}) ==
          "wire format vxlan (asked for) is not among those that the Corm allows: "
          "none");
}

TEST_CASE("host: formats and preferences by name") {
    for (Format format : all) CHECK(*parse_format(format_name(format)) == format);
    for (const char* name : {"", "auto", "VXLAN", "vxlan "}) CHECK(parse_format(name).error().code() == Errc::invalid);
    CHECK(*parse_preference("") == "auto");
    CHECK(*parse_preference("auto") == "auto");
    CHECK(*parse_preference("dtls") == "dtls");
    CHECK(parse_preference("tcp").error().message() == "'tcp' is no wire format; there are native, vxlan, dtls");
}

TEST_CASE("host: as JSON, and what a peer may get wrong") {
    Host before = host("hv1", "a", {Format::vxlan, Format::dtls});
    before.underlay = *IpAddress::parse("fd00::1");
    const auto after = Host::from_json(*Json::parse(before.json().dump()));
    REQUIRE(after.ok());
    CHECK(after->name == before.name);
    CHECK(after->site == before.site);
    CHECK(after->underlay == before.underlay);
    CHECK(after->underlay_mtu == 1500);
    CHECK(after->formats == before.formats);
    CHECK(after->tunnel == before.tunnel);

    Json younger = before.json();
    younger.set("formats", Json::array({"quic", "vxlan", "vxlan"}));
    CHECK(Host::from_json(younger)->formats == std::vector<Format>{Format::vxlan});
    for (const char* member : {"name", "site", "underlay"}) {
        CAPTURE(member);
        Json without = before.json();
        without.erase(member);
        CHECK(Host::from_json(without).error().message().find(member) != std::string::npos);
    }
    Json bad = before.json();
    bad.set("name", "HV1");
    CHECK_FALSE(Host::from_json(bad).ok());
    bad = before.json();
    bad.set("underlay", "192.0.2.256");
    CHECK_FALSE(Host::from_json(bad).ok());
    CHECK_FALSE(Host::from_json(Json()).ok());
    for (const int64_t mtu : {int64_t{-1}, int64_t{1} << 32, INT64_MAX}) {
        CAPTURE(mtu);
        bad = before.json();
        bad.set("underlay_mtu", mtu);
        CHECK(Host::from_json(bad).error().code() == Errc::invalid);
    }
}

TEST_CASE("host: a peer's tunnel is taken as far as it can be reached") {
    const Json sound = host("hv2", "b").json();
    const auto with_tunnel = [&](const Json& tunnel) {
        Json json = *Json::parse(sound.dump());
        json.set("tunnel", tunnel);
        return Host::from_json(json);
    };
    Json older = *Json::parse(sound.dump());
    older.erase("tunnel");
    const auto old_host = Host::from_json(older);
    REQUIRE(old_host.ok());
    CHECK(old_host->tunnel == TunnelEnd{0, 0, "its bananad is older than tunnels"});
    CHECK(old_host->formats == std::vector<Format>{Format::native, Format::vxlan});  // whatever it says

    const auto end = [](int64_t port, int64_t lanes) {
        return Json::object({{"port", port}, {"lanes", lanes}, {"problem", "why\n"}});
    };
    CHECK(with_tunnel(end(4790, tunnel_lanes_max))->tunnel == TunnelEnd{4790, 32, "why\\x0a"});
    for (const auto& [port, lanes] : {std::pair<int64_t, int64_t>{-1, 1}, {65536, 1}, {4790, 0}, {4790, 33}}) {
        CAPTURE(port);
        CAPTURE(lanes);
        CHECK(with_tunnel(end(port, lanes)).error().code() == Errc::invalid);
    }
    CHECK_FALSE(with_tunnel("none").ok());
}
