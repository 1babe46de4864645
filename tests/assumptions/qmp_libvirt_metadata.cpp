// What metadata.h relies on in libvirt: virDomainSetMetadata() takes an element tree without namespace and gives all of
// it ours; it refuses one that has our prefix already; virDomainGetMetadata() gives it back bare. On libvirt's built-in
// test driver: no daemon, nothing outside this process.
#include <doctest/doctest.h>
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>

#include <cstdlib>
#include <memory>

#include "libvirt-hooks/domain_xml.h"

using namespace banana::hooks;

namespace {

struct CloseConnect {
    void operator()(virConnect* connection) const { virConnectClose(connection); }
};
struct FreeDomain {
    void operator()(virDomain* domain) const { virDomainFree(domain); }
};

constexpr const char* definition =
    "<domain type='test'><name>banana-assumption</name><memory>1024</memory><os><type>hvm</type></os>"
    "<metadata><x:y xmlns:x='urn:x'/></metadata>"
    "<devices><interface type='network'><source network='banana-lab'/><alias "
    "name='ua-web'/></interface></devices></domain>";

std::string take(char* text) {
    REQUIRE(text != nullptr);
    std::string out = text;
    std::free(text);
    return out;
}

void quiet(void*, virError*) {}

}  // namespace

TEST_CASE("libvirt puts metadata without a namespace into ours, and gives it back without") {
    virSetErrorFunc(nullptr, quiet);
    const std::unique_ptr<virConnect, CloseConnect> connection(virConnectOpen("test:///default"));
    REQUIRE(connection);
    const std::unique_ptr<virDomain, FreeDomain> domain(virDomainDefineXML(connection.get(), definition));
    REQUIRE(domain);
    const auto set = [&](const std::string& text) {
        return virDomainSetMetadata(domain.get(), VIR_DOMAIN_METADATA_ELEMENT, text.c_str(), metadata_prefix,
                                    metadata_namespace, VIR_DOMAIN_AFFECT_CONFIG);
    };
    const SpikeMeta spike{.interface = "web", .wire = "dtls", .name = "hv1/a & b/web", .epoch = 3};
    CHECK(set("<banana:domain xmlns:banana='urn:banana:1'/>") == -1);
    REQUIRE(set(format_domain_metadata({spike})) == 0);

    const auto facts = parse_domain(take(virDomainGetXMLDesc(domain.get(), VIR_DOMAIN_XML_INACTIVE)));
    REQUIRE(facts.ok());
    CHECK(facts->problem == "");
    REQUIRE(facts->spikes.size() == 1);
    CHECK(facts->spikes[0].name == spike.name);
    CHECK(facts->spikes[0].target == 0);
    CHECK(facts->interfaces.at(0).alias == "ua-web");

    const auto bare = parse_domain_metadata(take(
        virDomainGetMetadata(domain.get(), VIR_DOMAIN_METADATA_ELEMENT, metadata_namespace, VIR_DOMAIN_AFFECT_CONFIG)));
    REQUIRE(bare.ok());
    CHECK(bare->at(0).name == spike.name);
    CHECK(virDomainUndefine(domain.get()) == 0);
}
