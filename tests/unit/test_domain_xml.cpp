#include "libvirt-hooks/domain_xml.h"

#include <doctest/doctest.h>

using namespace banana;
using namespace banana::hooks;

namespace {

constexpr const char* uuid = "6f0a2c6e-6c0f-4f0e-9d9b-0d4b6c1f7a11";

std::string domain(const std::string& interfaces, const std::string& spikes = "") {
    return "<domain type='kvm' id='3'>\n<name>vm1</name>\n<uuid>6F0A2C6E-6c0f-4f0e-9d9b-0d4b6c1f7a11</uuid>\n<metadata>"
           "<other xmlns='urn:other'>x</other><banana:domain xmlns:banana='urn:banana:1'>" +
           spikes + "</banana:domain></metadata>\n<devices>\n" + interfaces + "\n</devices>\n</domain>\n";
}

std::string nic(const std::string& alias, const std::string& mac = "", const std::string& network = "banana-lab") {
    return "<interface type='network'>" + (mac.empty() ? "" : "<mac address='" + mac + "'/>") + "<source network='" +
           network + "'/>" + (alias.empty() ? "" : "<alias name='" + alias + "'/>") + "</interface>\n";
}

std::string spike(const std::string& attributes) { return "<banana:spike " + attributes + "/>"; }

DomainFacts read(const std::string& xml) {
    auto facts = parse_domain(xml);
    REQUIRE_MESSAGE(facts.ok(), (facts.ok() ? "" : facts.error().message()));
    return *facts;
}

std::string failure(const std::string& xml) {
    const auto facts = parse_domain(xml);
    return facts ? "" : facts.error().message();
}

}  // namespace

TEST_CASE("a running domain's interfaces are read with all that matters") {
    // As libvirt prints a live one: type is what the network resolved to.
    const auto facts = read(domain(R"(<interface type='bridge'>
  <mac address='52:54:00:AB:cd:01'/>
  <source network='banana-lab' portid='1B2C3D4E-0000-4000-8000-000000000001' bridge='bn-lab'/>
  <bandwidth><inbound average='1000'/><outbound average='1000'/></bandwidth>
  <target dev='vnet0'/><model type='virtio'/><mtu size='1450'/><alias name='ua-net0'/>
</interface>
<interface type='direct'><source dev='bne0000002a' mode='passthrough'/><target dev='macvtap0'/><alias name='net1'/></interface>
<interface type='ethernet'><target dev='tap9' managed='no'/><alias name='net2'/></interface>)"));
    CHECK(facts.uuid == uuid);
    CHECK(facts.name == "vm1");
    REQUIRE(facts.interfaces.size() == 3);
    const Interface& first = facts.interfaces[0];
    CHECK(first.name == "net0");
    CHECK(first.alias == "ua-net0");
    CHECK(first.mac == "52:54:00:ab:cd:01");
    CHECK(first.type == "bridge");
    CHECK(first.network == "banana-lab");
    CHECK(first.port == "1b2c3d4e-0000-4000-8000-000000000001");
    CHECK(first.bridge == "bn-lab");
    CHECK(first.target == "vnet0");
    CHECK(first.model == "virtio");
    CHECK(first.mtu == 1450);
    CHECK(first.bandwidth_inbound);
    CHECK(first.bandwidth_outbound);
    CHECK(first.line == 6);
    CHECK(is_banana(first));
    CHECK(is_banana(facts.interfaces[1]));
    CHECK(facts.interfaces[1].mode == "passthrough");
    CHECK(facts.interfaces[1].mac.empty());
    CHECK_FALSE(is_banana(facts.interfaces[2]));
    CHECK(facts.by_mac("52:54:00:ab:cd:01") == &facts.interfaces[0]);
    CHECK(facts.by_mac("") == nullptr);
    CHECK(facts.by_name("ua-net0") == &facts.interfaces[0]);
    CHECK(*DomainFacts::from_json(*Json::parse(facts.to_json().dump())) == facts);
}

TEST_CASE("what is Banana's and what is not") {
    CHECK(is_banana(Interface{.type = "network", .network = "banana-lab"}));
    CHECK_FALSE(is_banana(Interface{.type = "network", .network = "default"}));
    CHECK_FALSE(is_banana(Interface{.type = "network", .network = "my-banana-lab"}));
    CHECK(is_banana(Interface{.type = "direct", .dev = "bne00000001"}));
    CHECK_FALSE(is_banana(Interface{.type = "direct", .dev = "eth0"}));
    CHECK_FALSE(is_banana(Interface{.type = "ethernet", .dev = "bne00000001"}));
    for (const char* foreign : {"bnep0", "bnet0", "bne", "bne0000001", "bne000000001", "bne0000000x"})
        CHECK_FALSE(is_banana(Interface{.type = "direct", .dev = foreign}));
    // What libvirt makes of a running guest's <source> when its link state is set.
    const auto facts = read(domain("<interface type='bridge'><source bridge='bn-lab'/></interface>"));
    CHECK(is_banana(facts.interfaces[0]));
    CHECK(corm_of(facts.interfaces[0]) == "lab");
    CHECK_FALSE(is_banana(Interface{.type = "bridge", .bridge = "br0"}));
    CHECK_FALSE(is_banana(Interface{.type = "bridge", .bridge = "bn-"}));
    CHECK_FALSE(is_banana(Interface{.type = "bridge", .network = "default", .bridge = "bn-lab"}));
    CHECK_FALSE(is_banana(Interface{.type = "direct", .bridge = "bn-lab"}));
}

TEST_CASE("aliases that libvirt has not dealt out yet are predicted by its rule") {
    SUBCASE("none given") {
        const auto facts = read(domain(nic("") + nic("")));
        CHECK(facts.interfaces[0].name == "net0");
        CHECK(facts.interfaces[1].name == "net1");
        CHECK(facts.interfaces[1].alias_predicted);
    }
    SUBCASE("a user's alias takes no number") {
        const auto facts = read(domain(nic("ua-web") + nic("") + nic("")));
        CHECK(facts.interfaces[0].name == "web");
        CHECK(facts.interfaces[1].alias == "net0");
        CHECK(facts.interfaces[2].alias == "net1");
    }
    SUBCASE("the next after the highest") {
        const auto facts = read(domain(nic("") + nic("net4")));
        CHECK(facts.interfaces[0].alias == "net5");
        CHECK_FALSE(facts.interfaces[1].alias_predicted);
    }
    SUBCASE("a host device is not counted") {
        const auto facts = read(domain("<interface type='hostdev'/>" + nic("")));
        CHECK(facts.interfaces[0].alias == "hostdev0");
        CHECK(facts.interfaces[1].alias == "net0");
    }
}

TEST_CASE("two interfaces never get one name, and each keeps its own") {
    const auto names = [](const std::string& interfaces, const std::string& spikes = "") {
        std::vector<std::string> out;
        for (const auto& interface : read(domain(interfaces, spikes)).interfaces) out.push_back(interface.name);
        return out;
    };
    const std::string first = nic("ua-net0", "52:54:00:00:00:01"), second = nic("net0", "52:54:00:00:00:02");
    using Names = std::vector<std::string>;
    CHECK(names(first) == Names{"net0"});
    CHECK(names(first + second) == Names{"net0", "net0-2"});
    CHECK(names(second + first) == Names{"net0-2", "net0"});
    CHECK(names(first + nic("ua-net0-2") + second) == Names{"net0", "net0-2", "net0-3"});
    // What bananad has noted goes before aliases: the user's came later, or libvirt has numbered anew.
    const auto noted = [](const std::string& name, const std::string& mac, const std::string& whose = uuid) {
        return spike("interface='" + name + "' name='hv1/vm1/x' uuid='" + whose + "' mac='52:54:00:00:00:" + mac + "'");
    };
    CHECK(names(first + second, noted("net0", "02")) == Names{"ua-net0", "net0"});
    CHECK(names(second, noted("net0-2", "02")) == Names{"net0-2"});
    CHECK(names(nic("net1", "52:54:00:00:00:02"), noted("net4", "02")) == Names{"net4"});
    // Older ones stay, too.
    CHECK(names(first + second, noted("ua-net0", "01") + noted("net0", "02")) == Names{"ua-net0", "net0"});
    const std::string other = "11111111-2222-3333-4444-555555555555";
    CHECK(names(second, noted("net7", "02", other)) == Names{"net0"});
    CHECK(names(second, noted("net7", "09")) == Names{"net0"});
}

TEST_CASE("an entry finds its interface: by MAC, by alias, by alias after ua-") {
    SUBCASE("the alias that the user chose first") {
        const auto facts = read(domain(nic("net0") + nic("ua-net0"), spike("interface='net0'")));
        CHECK(facts.problem == "");
        CHECK(facts.spikes[0].target == 1);
    }
    SUBCASE("then ua-") {
        const auto facts = read(domain(nic("") + nic("ua-web"), spike("interface='web'")));
        CHECK(facts.spikes[0].target == 1);
        CHECK(facts.meta_of(facts.interfaces[1]) == &facts.spikes[0]);
        CHECK(facts.meta_of(facts.interfaces[0]) == nullptr);
    }
    SUBCASE("the n-th where none has an alias") {
        const auto facts = read(domain(nic("") + nic(""), spike("interface='net1'")));
        CHECK(facts.spikes[0].target == 1);
    }
    SUBCASE("MAC before alias: a destination has numbered anew") {
        const auto facts = read(domain(nic("", "52:54:00:00:00:01") + nic("", "52:54:00:00:00:03"),
                                       spike("interface='net2' mac='52:54:00:00:00:03'")));
        CHECK(facts.problem == "");
        CHECK(facts.spikes[0].target == 1);
    }
    SUBCASE("a MAC that is not there, as in a clone, falls back to the alias") {
        const auto facts =
            read(domain(nic("", "52:54:00:00:00:09"), spike("interface='net0' mac='52:54:00:00:00:01'")));
        CHECK(facts.problem == "");
        CHECK(facts.spikes[0].target == 0);
    }
    SUBCASE("none") {
        const auto facts = read(domain(nic("") + nic(""), spike("interface='net7'")));
        CHECK(facts.problem ==
              "line 4: <banana:spike interface='net7'>: the domain has no such interface; it has net0, net1");
        CHECK(facts.spikes[0].target == -1);
        CHECK(check(facts).error().message() == "metadata of domain vm1: " + facts.problem);
    }
}

TEST_CASE("an entry that bananad wrote may outlive its interface; one that a user wrote may not") {
    const std::string gone = "mac='52:54:00:00:00:09'";
    const std::string ours = " name='hv1/vm1/net1' uuid='" + std::string(uuid) + "'";
    const auto target_of_last = [](const std::string& interfaces, const std::string& spikes) {
        const auto facts = read(domain(interfaces, spikes));
        CHECK(facts.problem.empty());
        CHECK(facts.spikes.front().target == 0);
        return facts.spikes.back().target;
    };
    const std::string one = nic("ua-net0", "52:54:00:00:00:01"), plain = nic("ua-net1", "", "default");
    const std::string first = spike("interface='ua-net0' mac='52:54:00:00:00:01'" + ours);
    CHECK(target_of_last(one, first + spike("interface='net1' " + gone + ours)) == -1);
    // Plugged in without an alias beside ua-net0, libvirt called it net0: what is left of it is not ua-net0's.
    CHECK(target_of_last(one, first + spike("interface='net0' " + gone + ours)) == -1);
    CHECK(target_of_last(one + plain, first + spike("interface='net1'" + ours)) == -1);
    // The one whose MAC it is wins, whatever their order.
    const auto turned = read(domain(one, spike("interface='net0' " + gone + ours) + first));
    CHECK(turned.problem.empty());
    CHECK(turned.spikes.front().target == -1);
    CHECK(turned.spikes.back().target == 0);
    for (const auto& wrong : {spike("interface='net1' " + gone), spike("interface='net0' " + gone)})
        CHECK_FALSE(read(domain(one, first + wrong)).problem.empty());
    CHECK_FALSE(read(domain(one + plain, first + spike("interface='net1'"))).problem.empty());
}

TEST_CASE("wrong metadata leaves the rest readable") {
    const auto facts = read(domain(nic("", "52:54:00:00:00:01"), spike("interface='net0' wire='gre'")));
    CHECK(facts.problem.find("wire='gre'") != std::string::npos);
    CHECK(facts.has_banana());
    CHECK(facts.spikes.empty());
    CHECK(*DomainFacts::from_json(facts.to_json()) == facts);
}

TEST_CASE("XML that is no domain is refused") {
    CHECK(failure("") == "read domain XML: empty");
    CHECK(failure("<network/>") == "read domain XML: line 1: its root element is not <domain>");
    CHECK(failure("<domain><name>x</name></domain>") == "read domain XML: line 1: <domain> has no <uuid>");
    CHECK(failure("<domain>\n<name>x</domain>").starts_with("read domain XML: line 2: not well-formed XML"));
    CHECK(failure("<domain/><domain/>").find("not well-formed") != std::string::npos);
    CHECK(failure(std::string("<domain>\0</domain>", 18)).find("not well-formed") != std::string::npos);
    CHECK(failure(std::string((4 << 20) + 1, ' ')).find("larger than 4194304 bytes") != std::string::npos);
}

TEST_CASE("an error shows nothing of the input but names in our own metadata") {
    const std::string secret = "hunter2";
    CHECK(failure("<domain><graphics passwd='hunter2</domain>").find(secret) == std::string::npos);
    CHECK(failure("<domain><name>x</name><uuid>&hunter2;</uuid></domain>").find(secret) == std::string::npos);
    CHECK(failure("<hunter2></domain>").find(secret) == std::string::npos);
}

TEST_CASE("entity bombs, external entities and deep nesting end at once") {
    const std::string doctype = "read domain XML: it has a DOCTYPE, which is not accepted";
    std::string bomb = "<!DOCTYPE domain [<!ENTITY a 'aaaaaaaaaa'>";
    for (char c = 'b'; c < 'z'; c++) {
        bomb += std::string("<!ENTITY ") + c + " '";
        for (int i = 0; i < 10; i++) bomb += std::string("&") + static_cast<char>(c - 1) + ";";
        bomb += "'>";
    }
    CHECK(failure(bomb + "]><domain><name>&y;</name></domain>") == doctype);
    CHECK(failure("<!DOCTYPE d [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><domain><name>&x;</name></domain>") ==
          doctype);
    CHECK(failure("<!DOCTYPE d SYSTEM 'http://192.0.2.1/d.dtd'><domain/>") == doctype);
    std::string deep;
    for (int i = 0; i < 100000; i++) deep += "<a>";
    CHECK(failure("<domain>" + deep).find("not well-formed") != std::string::npos);
}

TEST_CASE("JSON of another shape is refused") {
    auto json = read(domain(nic(""), spike("interface='net0'"))).to_json();
    CHECK(DomainFacts::from_json(Json::object()).error().message() == "member 'uuid' is missing");
    json.get("spikes").at(0).set("target", 5);
    CHECK_FALSE(DomainFacts::from_json(json).ok());
    CHECK_FALSE(Interface::from_json(Json::array()).ok());
}
