#include <doctest/doctest.h>

#include "libvirt-hooks/network_xml.h"

using namespace banana;
using namespace banana::hooks;

namespace {
// The shape of the network hook's stdin at port-created.
constexpr const char* hook_data = R"(<hookData>
  <network>
    <name>banana-lab</name>
    <uuid>0d9b0f4e-0000-4000-8000-00000000000a</uuid>
    <metadata>
      <banana:network xmlns:banana='urn:banana:1' name='hv1/lab' corm='lab' host='hv1' mtu='1500' formats='native vxlan'/>
    </metadata>
    <forward mode='bridge'/>
    <bridge name='bn-lab'/>
    <mtu size='1500'/>
  </network>
  <networkport>
    <uuid>1b2c3d4e-0000-4000-8000-000000000001</uuid>
    <owner>
      <name>vm1</name>
      <uuid>6f0a2c6e-6c0f-4f0e-9d9b-0d4b6c1f7a11</uuid>
    </owner>
    <mac address='52:54:00:AB:CD:01'/>
    <bandwidth><outbound average='10'/></bandwidth>
    <plug type='bridge' bridge='bn-lab'/>
  </networkport>
</hookData>
)";
}  // namespace

TEST_CASE("a network port is read with its network and owner") {
    const auto port = parse_network_port(hook_data);
    REQUIRE(port.ok());
    CHECK(is_banana(port->network));
    CHECK(port->network.name == "banana-lab");
    CHECK(port->network.uuid == "0d9b0f4e-0000-4000-8000-00000000000a");
    CHECK(port->network.bridge == "bn-lab");
    CHECK(port->network.mtu == 1500);
    REQUIRE(port->network.meta.has_value());
    CHECK(port->network.meta->name == "hv1/lab");
    CHECK(port->network.meta->formats == std::vector<std::string>{"native", "vxlan"});
    CHECK(port->port_uuid == "1b2c3d4e-0000-4000-8000-000000000001");
    CHECK(port->owner_name == "vm1");
    CHECK(port->owner_uuid == "6f0a2c6e-6c0f-4f0e-9d9b-0d4b6c1f7a11");
    CHECK(port->mac == "52:54:00:ab:cd:01");
    CHECK(port->plug_type == "bridge");
    CHECK(port->plug_bridge == "bn-lab");
    CHECK(port->bandwidth_outbound);
    CHECK_FALSE(port->bandwidth_inbound);
    CHECK(*NetworkPortFacts::from_json(*Json::parse(port->to_json().dump())) == *port);
}

TEST_CASE("a network without a port, without metadata, or with wrong metadata") {
    const auto bare = parse_network_port("<hookData><network><name>default</name></network></hookData>");
    REQUIRE(bare.ok());
    CHECK_FALSE(is_banana(bare->network));
    CHECK_FALSE(bare->network.meta.has_value());
    CHECK(bare->port_uuid.empty());
    CHECK(*NetworkPortFacts::from_json(bare->to_json()) == *bare);

    const auto wrong = parse_network(
        "<network><name>banana-lab</name><metadata>"
        "<b:network xmlns:b='urn:banana:1' name='hv1/lab'/></metadata></network>");
    REQUIRE(wrong.ok());
    CHECK(check(*wrong).error().message() ==
          "metadata of network banana-lab: line 1: <banana:network>: attribute 'corm' is missing");

    CHECK_FALSE(parse_network_port("<domain/>").ok());
    CHECK_FALSE(parse_network_port("<hookData/>").ok());
    CHECK_FALSE(parse_network("<network><uuid>u</uuid></network>").ok());
}
