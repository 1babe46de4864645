// corm create, corm show, spike create.
#include <fmt/core.h>

#include "base/bytes.h"
#include "cli/print.h"

namespace banana::cli {

void print_corm(const Page& page, const Json&, const Json& result) {
    if (page.brief) {
        page.out << cell(result.get("name")) << '\n';
        return;
    }
    print_fields(page.out, result,
                 {{"name", "name"},
                  {"host", "host"},
                  {"kind", "kind"},
                  {"device", "device"},
                  {"bridge", "bridge"},
                  {"mtu", "mtu"},
                  {"libvirt network", "network"},
                  {"anchor", "anchor"},
                  {"allowed formats", "formats"},
                  {"allowed hosts", "hosts"},
                  {"state", "state"},
                  {"wires", "wires"}});
    print_problems(page.out, result.get("problems"), "problem");
}

void print_corm_created(const Page& page, const Json& params, const Json& result) {
    const std::string name = cell(result.has("name") ? result.get("name") : params.get("name"));
    page.out << (page.brief ? name : fmt::format("created Corm {}", name)) << '\n';
    if (page.brief) return;
    const bool usable = result.get("problems").size() == 0;
    if (const std::string network = cell(result.get("network")); usable && network != "-")
        page.out << fmt::format("guests use it by <interface type='network'><source network='{}'/>...\n", network);
    print_problems(page.out, result.get("problems"), "problem");
}

void print_spike_created(const Page& page, const Json& params, const Json& result) {
    const std::string name = cell(result.has("name") ? result.get("name") : params.get("name"));
    if (page.brief) {
        page.out << name << '\n';
        return;
    }
    page.out << fmt::format("created Spike {}, device {}; in the domain's XML:\n", name, cell(result.get("device")));
    const std::string xml = result.get("xml").as_string();
    for (size_t at = 0; at < xml.size();) {
        const size_t end = std::min(xml.find('\n', at), xml.size());
        page.out << safe(std::string_view(xml).substr(at, end - at)) << '\n';
        at = end + 1;
    }
}

}  // namespace banana::cli
