// The reader of urn:banana:1 against the schema: the same verdict on each example, and the error that the example
// names.
#include <doctest/doctest.h>
#include <libxml/parser.h>
#include <libxml/relaxng.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <sstream>

#include "libvirt-hooks/domain_xml.h"
#include "libvirt-hooks/network_xml.h"

using namespace banana;
using namespace banana::hooks;
namespace fs = std::filesystem;

namespace {

fs::path schemas() {
    const char* srcdir = std::getenv("srcdir");
    for (const fs::path& top :
         {fs::path(srcdir ? srcdir : "."), fs::path(__FILE__).parent_path() / "../..", fs::path(".")})
        if (fs::exists(top / "xml-schemas/domain.rng")) return top / "xml-schemas";
    return "xml-schemas";
}

std::string slurp(const fs::path& path) {
    std::ifstream in(path);
    std::stringstream out;
    out << in.rdbuf();
    return out.str();
}

std::vector<fs::path> examples(const char* folder) {
    std::vector<fs::path> out;
    for (const auto& entry : fs::directory_iterator(schemas() / "examples" / folder)) out.push_back(entry.path());
    return out;
}

bool is_network(const fs::path& example) { return example.filename().string().starts_with("network-"); }

// "<!-- expected: TEXT -->"
std::string expected_error(const std::string& xml) {
    const std::string begin = "<!-- expected: ";
    REQUIRE(xml.starts_with(begin));
    return xml.substr(begin.size(), xml.find(" -->") - begin.size());
}

void quiet(void*, const char*, ...) {}

class Schema {
public:
    explicit Schema(const char* file) {
        auto* parser = xmlRelaxNGNewParserCtxt((schemas() / file).c_str());
        schema_ = xmlRelaxNGParse(parser);
        xmlRelaxNGFreeParserCtxt(parser);
        REQUIRE(schema_ != nullptr);
    }
    Schema(const Schema&) = delete;
    Schema& operator=(const Schema&) = delete;
    ~Schema() { xmlRelaxNGFree(schema_); }
    bool accepts(const std::string& xml) const {
        auto* doc = xmlReadMemory(xml.data(), static_cast<int>(xml.size()), nullptr, nullptr, XML_PARSE_NONET);
        REQUIRE(doc != nullptr);
        auto* context = xmlRelaxNGNewValidCtxt(schema_);
        xmlRelaxNGSetValidErrors(context, quiet, nullptr, nullptr);
        const int verdict = xmlRelaxNGValidateDoc(context, doc);
        xmlRelaxNGFreeValidCtxt(context);
        xmlFreeDoc(doc);
        return verdict == 0;
    }

private:
    xmlRelaxNG* schema_ = nullptr;
};

// "" when accepted.
std::string reader_says(const fs::path& example, const std::string& xml) {
    if (is_network(example)) {
        const auto read = parse_network_metadata(xml);
        return read ? "" : read.error().message();
    }
    const auto read = parse_domain_metadata(xml);
    return read ? "" : read.error().message();
}

}  // namespace

TEST_CASE("schema and reader give the same verdict on each example") {
    const Schema domain("domain.rng");
    const Schema network("network.rng");
    const auto schema_for = [&](const fs::path& p) -> const Schema& { return is_network(p) ? network : domain; };
    int seen = 0;
    for (const auto& path : examples("valid")) {
        CAPTURE(path);
        const std::string xml = slurp(path);
        CHECK(schema_for(path).accepts(xml));
        CHECK(reader_says(path, xml) == "");
        seen++;
    }
    for (const auto& path : examples("invalid")) {
        CAPTURE(path);
        const std::string xml = slurp(path);
        CHECK_FALSE(schema_for(path).accepts(xml));
        const std::string says = reader_says(path, xml);
        CHECK_MESSAGE(says.find(expected_error(xml)) != std::string::npos, says);
        CHECK(says.starts_with("line "));
        seen++;
    }
    CHECK(seen >= 50);
}

TEST_CASE("what the schema cannot say, the reader refuses in the whole document") {
    int seen = 0;
    for (const auto& path : examples("refused")) {
        CAPTURE(path);
        const std::string xml = slurp(path);
        std::string says;
        if (is_network(path)) {
            const auto facts = parse_network(xml);
            REQUIRE(facts.ok());
            says = facts->problem;
            CHECK_FALSE(check(*facts).ok());
        } else {
            const auto facts = parse_domain(xml);
            REQUIRE(facts.ok());
            says = facts->problem;
            CHECK_FALSE(check(*facts).ok());
        }
        CHECK_MESSAGE(says.find(expected_error(xml)) != std::string::npos, says);
        seen++;
    }
    CHECK(seen >= 7);
}

TEST_CASE("metadata is read whole") {
    const auto read = parse_domain_metadata(slurp(schemas() / "examples/valid/domain-full.xml"));
    REQUIRE(read.ok());
    REQUIRE(read->size() == 2);
    const SpikeMeta& first = read->at(0);
    CHECK(first.interface == "net0");
    CHECK(first.wire == "dtls");
    CHECK(first.allow_any_mac == true);
    CHECK(first.name == "hv1/vm1/net0");
    CHECK(first.home == "hv1");
    CHECK(first.corm == "hv1/lab");
    CHECK(first.epoch == 7);
    CHECK(first.uuid == "6f0a2c6e-6c0f-4f0e-9d9b-0d4b6c1f7a11");
    CHECK(first.mac == "52:54:00:12:34:56");
    CHECK(first.line == 4);  // where its start tag ends
    CHECK(read->at(1).allow_any_mac == false);
    CHECK_FALSE(read->at(1).epoch.has_value());
    const auto network = parse_network_metadata(slurp(schemas() / "examples/valid/network-full.xml"));
    REQUIRE(network.ok());
    CHECK(network->corm == "lab");
    CHECK(network->mtu == 9000);
    CHECK(network->formats == std::vector<std::string>{"native", "vxlan", "dtls"});
}

TEST_CASE("metadata written is metadata read") {
    SpikeMeta odd{.interface = "ua-x",
                  .wire = "vxlan",
                  .allow_any_mac = true,
                  .name = "hv1/A & B's <c>/net0",
                  .home = "hv1",
                  .corm = "hv1/lab",
                  .epoch = 999999999999999999,
                  .uuid = "6f0a2c6e-6c0f-4f0e-9d9b-0d4b6c1f7a11",
                  .mac = "52:54:00:12:34:56",
                  .line = 2};
    const SpikeMeta plain{.interface = "net0", .line = 3};
    const std::string text = format_domain_metadata({odd, plain});
    // As libvirt wants it for virDomainSetMetadata(): it adds prefix and namespace itself.
    CHECK(text.find("xmlns") == std::string::npos);
    const auto back = parse_domain_metadata(text);
    REQUIRE_MESSAGE(back.ok(), (back.ok() ? "" : back.error().message()));
    CHECK(*back == std::vector<SpikeMeta>{odd, plain});
    CHECK(*SpikeMeta::from_json(odd.to_json()) == odd);
    CHECK(*SpikeMeta::from_json(plain.to_json()) == plain);

    const NetworkMeta network{
        .name = "hv1/lab", .corm = "lab", .host = "hv1", .mtu = 1500, .formats = {"native", "vxlan"}};
    CHECK(*parse_network_metadata(format_network_metadata(network)) == network);
    CHECK(*NetworkMeta::from_json(network.to_json()) == network);
    const NetworkMeta bare{.name = "hv1/lab", .corm = "lab", .host = "hv1", .mtu = {}, .formats = {}};
    CHECK(*parse_network_metadata(format_network_metadata(bare)) == bare);
    CHECK(Schema("network.rng").accepts(format_network_metadata(network)));
}

TEST_CASE("two elements of ours in one <metadata> are refused") {
    const auto facts = parse_domain(
        "<domain><name>a</name><uuid>u</uuid><metadata>\n<b:domain xmlns:b='urn:banana:1'/>\n"
        "<b:domain xmlns:b='urn:banana:1'/></metadata></domain>");
    REQUIRE(facts.ok());
    CHECK(facts->problem == "line 3: <banana:domain>: a second element of urn:banana:1 in <metadata>");
}

TEST_CASE("a namespace that resembles ours is refused, and not passed over") {
    const auto problem_of = [](const std::string& space) {
        const auto facts = parse_domain("<domain><name>a</name><uuid>u</uuid><metadata>\n<x:domain xmlns:x='" + space +
                                        "'><x:spike interface='net0' wire='dtls'/></x:domain></metadata></domain>");
        REQUIRE(facts.ok());
        return facts->problem;
    };
    CHECK(problem_of("urn:banana:2") ==
          "line 2: <domain>: namespace 'urn:banana:2' is not known; Banana's is 'urn:banana:1'");
    CHECK(problem_of("urn:Banana:1") ==
          "line 2: <domain>: namespace 'urn:Banana:1' is not known; Banana's is 'urn:banana:1'");
    CHECK(problem_of("URN:BANANA") != "");
    CHECK(problem_of("urn:apple:1") == "");
}
