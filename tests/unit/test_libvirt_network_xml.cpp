#include "controller/libvirt_network_xml.h"

#include <doctest/doctest.h>

using namespace banana::controller;

namespace {

const char* const ours = R"(<network>
  <name>banana-lab</name>
  <metadata><banana:network xmlns:banana="urn:banana:1" corm="hv1/lab" a='1'><banana:x>t</banana:x></banana:network></metadata>
  <forward mode="bridge"/><bridge name="bn-lab"/>
</network>)";

NetworkDefinition parsed(const std::string& text) {
    auto definition = parse_network_definition(text);
    REQUIRE_MESSAGE(definition.ok(), (definition.ok() ? "" : definition.error().message()));
    return *definition;
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
    const size_t at = text.find(from);
    REQUIRE(at != std::string::npos);
    return text.replace(at, from.size(), to);
}

}  // namespace

TEST_CASE("network definition: what counts is read") {
    const NetworkDefinition definition = parsed(ours);
    CHECK(definition.name == "banana-lab");
    CHECK(definition.forward == "bridge");
    CHECK(definition.bridge == "bn-lab");
    CHECK(definition.mtu.empty());
    CHECK(definition.uuid.empty());
    CHECK(definition.ours());
    CHECK(parsed("<network><name>n</name><forward/><mtu size='9000'/></network>").forward == "nat");
    CHECK(parsed("<network><name>n</name><mtu size='9000'/></network>").mtu == "9000");
}

TEST_CASE("network definition: libvirt's way of writing the same is the same") {
    const char* const as_libvirt_writes = R"(<network connections='1'>
  <name>banana-lab</name>
  <uuid>cf23c42f-d256-4c98-877c-f7da30cb4372</uuid>
  <metadata>
    <b:network xmlns:b="urn:banana:1" a="1" corm="hv1/lab">
      <b:x>t</b:x>
    </b:network>
    <other xmlns="urn:other"/>
  </metadata>
  <forward mode='bridge'/>
  <bridge name='bn-lab'/>
</network>)";
    CHECK(parsed(as_libvirt_writes).same(parsed(ours)));
}

TEST_CASE("network definition: each thing that counts makes a difference") {
    const NetworkDefinition reference = parsed(ours);
    CHECK_FALSE(parsed(replaced(ours, "bn-lab", "bn-new")).same(reference));
    CHECK_FALSE(parsed(replaced(ours, "hv1/lab", "hv2/lab")).same(reference));
    CHECK_FALSE(parsed(replaced(ours, ">t<", ">u<")).same(reference));
    CHECK_FALSE(parsed(replaced(ours, "mode=\"bridge\"", "mode=\"open\"")).same(reference));
    CHECK_FALSE(parsed(replaced(ours, "<bridge ", "<mtu size='9000'/><bridge ")).same(reference));
    CHECK_FALSE(parsed(replaced(ours, "urn:banana:1", "urn:banana:2")).ours());
}

TEST_CASE("network definition: a uuid is set and replaced, the rest stays") {
    const std::string first = "11111111-2222-3333-4444-555555555555", second = "99999999-2222-3333-4444-555555555555";
    auto once = with_uuid(ours, first);
    REQUIRE(once.ok());
    CHECK(parsed(*once).uuid == first);
    auto twice = with_uuid(*once, second);
    REQUIRE(twice.ok());
    CHECK(parsed(*twice).uuid == second);
    CHECK(twice->find(first) == std::string::npos);
    CHECK(parsed(*twice).same(parsed(ours)));
}

TEST_CASE("network definition: bad input") {
    for (const char* text : {"", "x", "<network>", "<domain><name>n</name></domain>", "<network/>"})
        CHECK_MESSAGE(!parse_network_definition(text).ok(), text);
    CHECK(!parse_network_definition("<network><name>" + std::string(2 << 20, 'n') + "</name></network>").ok());
    const std::string entity =
        "<!DOCTYPE n [<!ENTITY e SYSTEM 'file:///etc/hostname'>]><network><name>a&e;</name></network>";
    if (auto definition = parse_network_definition(entity)) CHECK(definition->name == "a");
}
