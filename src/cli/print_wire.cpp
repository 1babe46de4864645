// wire show, migration show.
#include <fmt/core.h>

#include "cli/print.h"

namespace banana::cli {

namespace {

// "3 by spoof (180 B), 1 by fenced (60 B)"
std::string drops_text(const Json& drops) {
    std::string out;
    for (const auto& reason : drops.keys()) {
        const Json count = drops.get(reason.c_str());
        if (count.get("frames").as_int() == 0) continue;
        if (!out.empty()) out += ", ";
        out += fmt::format("{} by {} ({})", cell(count.get("frames")), safe(reason),
                           bytes_text(count.get("bytes").as_int()));
    }
    return out.empty() ? "none" : out;
}

Table port_table(const Json& ports) {
    Table table({"PORT", "DEVICE", "DIRECTION", "FRAMES", "BYTES", "DROPPED"});
    for (size_t i = 0; i < ports.size(); ++i) {
        const Json port = ports.at(i);
        table.add({cell(port.get("port")), cell(port.get("device")), cell(port.get("direction")),
                   cell(port.get("frames")), cell(port.get("bytes")), drops_text(port.get("drops"))});
    }
    return table;
}

// Counters: plain members are totals, an array is one row a port.
void print_counters(std::ostream& out, const Json& counters) {
    for (const auto& key : counters.keys())
        if (!counters.get(key.c_str()).is_array()) out << safe(key) << ' ' << cell(counters.get(key.c_str())) << '\n';
    for (const auto& key : counters.keys()) {
        if (!counters.get(key.c_str()).is_array()) continue;
        out << '\n';
        port_table(counters.get(key.c_str())).print(out);
    }
}

// Of a DTLS wire: its sessions, one a lane, and what the lane does with itself.
void print_tunnel(std::ostream& out, const Json& tunnel) {
    if (!tunnel.is_object()) return;
    if (tunnel.has("problem")) {
        print_fields(out, tunnel, {{"tunnel's problem", "problem"}});
        return;
    }
    const auto count = [&](const char* way) {
        const Json counted = tunnel.get(way);
        return fmt::format("{} frames, {}", cell(counted.get("frames")), bytes_text(counted.get("bytes").as_int()));
    };
    std::string drops;
    const Json reasons = tunnel.get("drops");
    for (const auto& reason : reasons.keys())
        drops += fmt::format("{}{} by {}", drops.empty() ? "" : ", ", cell(reasons.get(reason.c_str())), safe(reason));
    Table fields({"", ""});
    fields.add({"tunnel sent", count("sent")});
    fields.add({"tunnel received", count("received")});
    fields.add({"tunnel dropped", drops.empty() ? "none" : drops});
    fields.print(out);
    Table table({"LANE", "SESSION", "CIPHER", "PATH MTU", "WAKE-UPS/S", "FRAMES/WAKE-UP", "PROBLEM"});
    const Json lanes = tunnel.get("lanes");
    for (size_t i = 0; i < lanes.size(); ++i) {
        const Json lane = lanes.at(i), session = lane.get("session");
        table.add({cell(lane.get("lane")), cell(session.get("state")), cell(session.get("cipher")),
                   cell(session.get("path_mtu")), fmt::format("{:.0f}", lane.get("wakeups_per_s").as_double()),
                   fmt::format("{:.1f}", lane.get("frames_per_wakeup").as_double()), cell(session.get("reason"))});
    }
    out << '\n';
    table.print(out);
}

}  // namespace

void print_wire(const Page& page, const Json&, const Json& result) {
    if (page.brief) {
        page.out << cell(result.get("name")) << '\n';
        return;
    }
    print_fields(page.out, result,
                 {{"spike", "name"},
                  {"spike's key", "spike"},
                  {"spike's host", "spike_host"},
                  {"corm", "corm"},
                  {"corm's host", "corm_host"},
                  {"format", "format"},
                  {"why", "why"},
                  {"phase", "phase"},
                  {"epoch", "epoch"},
                  {"connector", "connector"},
                  {"this host's role", "role"},
                  {"device", "device"},
                  {"port", "port"},
                  {"mtu", "mtu"},
                  {"underlay local", "underlay.local"},
                  {"underlay remote", "underlay.remote"},
                  {"underlay mtu", "underlay.mtu"},
                  {"path mtu", "underlay.path_mtu"},
                  {"underlay cost", "underlay.cost"}});
    print_tunnel(page.out, result.get("tunnel"));
    if (const Json standby = result.get("standby"); standby.size() > 0) {
        page.out << "standby wire:\n";
        Table fields({"", ""});
        for (const auto& key : standby.keys()) fields.add({safe(key), cell(standby.get(key.c_str()))});
        fields.print(page.out, "  ");
    }
    print_counters(page.out, result.get("counters"));
}

void print_migrations(const Page& page, const Json&, const Json& result) {
    const Json migrations = result.get("migrations");
    for (size_t i = 0; i < migrations.size(); ++i) {
        const Json migration = migrations.at(i);
        if (page.brief) {
            page.out << cell(migration.get("spike")) << '\n';
            continue;
        }
        page.out << fmt::format("{}{}: {} -> {}, epoch {}, {}\n", i ? "\n" : "", cell(migration.get("spike")),
                                cell(migration.get("from")), cell(migration.get("to")), cell(migration.get("epoch")),
                                cell(migration.get("phase")));
        const Json events = migration.get("events");
        const double first = events.at(0).get("at_ms").as_double();
        Table table({"MS", "EVENT"});
        for (size_t e = 0; e < events.size(); ++e)
            table.add(
                {fmt::format("{:.1f}", events.at(e).get("at_ms").as_double() - first), cell(events.at(e).get("what"))});
        if (!table.empty()) table.print(page.out, "  ");
    }
}

}  // namespace banana::cli
