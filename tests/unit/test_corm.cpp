#include "model/corm.h"

#include <doctest/doctest.h>

using namespace banana;
using namespace banana::model;

namespace {

Corm sample() {
    Corm corm;
    corm.id = 0x2a;
    corm.name = "lab";
    corm.host = "hv1";
    corm.kind = CormKind::uplink;
    corm.device = "eth1";
    corm.mtu = 9000;
    corm.formats = {Format::native, Format::vxlan};
    corm.hosts = {"hv2", "hv3"};
    corm.moved_addresses = true;
    return corm;
}

}  // namespace

TEST_CASE("corm: names, bridge and hosts") {
    Corm corm = sample();
    CHECK(corm.full_name() == "hv1/lab");
    CHECK(corm.bridge() == "bnb0000002a");
    corm.kind = CormKind::etherstub;
    CHECK(corm.bridge() == "bnb0000002a");
    corm.kind = CormKind::bridge;
    corm.device = "br0";
    CHECK(corm.bridge() == "br0");

    CHECK(corm.allows_host("hv2"));
    CHECK(corm.allows_host("hv1"));  // its own, whatever the list says
    CHECK_FALSE(corm.allows_host("hv4"));
    corm.hosts.clear();
    CHECK(corm.allows_host("hv4"));
}

TEST_CASE("corm: as JSON and back") {
    for (CormKind kind : {CormKind::uplink, CormKind::bridge, CormKind::etherstub}) {
        Corm before = sample();
        before.kind = kind;
        if (kind == CormKind::etherstub) before.device = "";
        const auto after = Corm::from_json(*Json::parse(before.json().dump()));
        REQUIRE(after.ok());
        CHECK(after->kind == kind);
        CHECK(after->id == before.id);
        CHECK(after->formats == before.formats);
        CHECK(after->hosts == before.hosts);
        CHECK(after->moved_addresses);
        CHECK(after->json().dump() == before.json().dump());
    }
}

TEST_CASE("corm: records that cannot be") {
    const std::initializer_list<std::pair<const char*, Json>> bad{
        {"id", "2a"},
        {"id", 42},
        {"name", "Lab"},
        {"name", "a-name-too-long"},
        {"host", ""},
        {"kind", "x"},
        {"kind", 1},
        {"mtu", 1279},
        {"mtu", 65001},
        {"mtu", "1500"},
        {"device", ""},
        {"device", "a/b"},
        {"device", "sixteen-letters!"},
    };
    for (const auto& [member, value] : bad) {
        CAPTURE(member);
        CAPTURE(value.dump());
        Json json = sample().json();
        json.set(member, value);
        const auto corm = Corm::from_json(json);
        REQUIRE_FALSE(corm.ok());
        CHECK(corm.error().code() == Errc::invalid);
    }
    for (const char* member : {"id", "name", "host", "kind", "mtu"}) {
        CAPTURE(member);
        Json json = sample().json();
        json.erase(member);
        CHECK(Corm::from_json(json).error().message().find(member) != std::string::npos);
    }
    CHECK_FALSE(Corm::from_json(Json::array()).ok());
}
