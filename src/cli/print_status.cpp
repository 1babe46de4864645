// status, reload, doctor, peer list.
#include <fmt/core.h>

#include <ctime>

#include "cli/print.h"

namespace banana::cli {

namespace {

// "up 5m 3s": for how long the peer has been in its state.
std::string state_text(const Json& peer) {
    const std::string state = cell(peer.get("state"));
    const int64_t since = peer.get("since").as_int();
    const int64_t now = ::time(nullptr);
    if (since <= 0 || since > now) return state;
    return fmt::format("{} {}", state, duration_text(now - since));
}

std::string round_trip_text(const Json& peer) {
    const Json rtt = peer.get("rtt_us");
    return rtt.is_int() && rtt.as_int() > 0 ? fmt::format("{:.3f} ms", rtt.as_double() / 1000) : "-";
}

Table peer_table(const Json& peers) {
    Table table({"PEER", "STATE", "ADDRESS", "SITE", "VERSION", "RTT", "INCOMING", "TUNNEL", "PROBLEM"});
    for (size_t i = 0; i < peers.size(); ++i) {
        const Json peer = peers.at(i);
        std::string problem = cell(peer.get("error"));
        // A stranger at the peer's address is no problem of a peer that has connected.
        const bool connected = peer.get("incoming").as_bool();
        if (const std::string incoming = cell(peer.get("incoming_error"));
            !connected && incoming != "-" && incoming != problem)
            problem = problem == "-" ? "incoming: " + incoming : problem + "; incoming: " + incoming;
        const Json tunnel = peer.get("tunnel");
        if (const std::string reason = cell(tunnel.get("reason")); reason != "-" && cell(tunnel.get("state")) != "up")
            problem = (problem == "-" ? "" : problem + "; ") + "tunnel: " + reason;
        table.add({cell(peer.get("name")), state_text(peer),
                   fmt::format("{} port {}", cell(peer.get("address")), cell(peer.get("port"))),
                   cell(at_path(peer, "info.site")), cell(at_path(peer, "info.version")), round_trip_text(peer),
                   cell(peer.get("incoming")), cell(tunnel.get("state")), problem});
    }
    return table;
}

}  // namespace

void print_status(const Page& page, const Json&, const Json& result) {
    const Json warnings = result.get("warnings");
    if (page.brief) {
        page.out << fmt::format("{} {}\n", cell(result.get("host")),
                                warnings.size() ? fmt::format("{} warnings", warnings.size()) : "ok");
        return;
    }
    Table fields({"", ""});
    fields.add({"host", fmt::format("{}, site {}", cell(result.get("host")), cell(result.get("site")))});
    fields.add({"daemon", fmt::format("bananad {}, pid {}, up {}", cell(result.get("version")), cell(result.get("pid")),
                                      duration_text(result.get("uptime_s").as_int()))});
    fields.add({"underlay", cell(result.get("underlay"))});
    const Json libvirt = result.get("libvirt");
    std::string state = cell(libvirt.get("state"));
    if (!libvirt.get("uri").as_string().empty()) state += fmt::format(" ({})", cell(libvirt.get("uri")));
    if (const std::string error = cell(libvirt.get("error")); error != "-") state += ": " + error;
    fields.add({"libvirt", state});
    if (const Json tunnel = result.get("tunnel"); tunnel.is_object()) {
        std::string text = fmt::format("{}, UDP port {}, {} lanes", cell(tunnel.get("state")), cell(tunnel.get("port")),
                                       cell(tunnel.get("lanes")));
        if (const std::string problem = cell(tunnel.get("problem")); problem != "-") text += ": " + problem;
        fields.add({"tunnel", text});
    }
    for (const char* count : {"corms", "spikes", "wires"}) fields.add({count, cell(result.get(count))});
    fields.print(page.out);
    if (const Table peers = peer_table(result.get("peers")); !peers.empty()) {
        page.out << '\n';
        peers.print(page.out);
    }
    if (warnings.size() > 0) page.out << '\n';
    print_problems(page.out, warnings, "warning");
}

void print_peers(const Page& page, const Json&, const Json& result) {
    const Json peers = result.get("peers");
    if (!page.brief) return peer_table(peers).print(page.out);
    for (size_t i = 0; i < peers.size(); ++i) page.out << cell(peers.at(i).get("name")) << '\n';
}

void print_reloaded(const Page& page, const Json&, const Json& result) {
    const Json taken = result.get("reloaded"), left = result.get("restart");
    for (size_t i = 0; i < taken.size(); ++i) page.out << (page.brief ? "" : "reloaded: ") << cell(taken.at(i)) << '\n';
    if (page.brief) return;
    print_problems(page.out, left, "changed, waits for a restart of bananad");
    print_problems(page.out, result.get("warnings"), "warning");
}

void print_doctor(const Page& page, const Json&, const Json& result) {
    const Json checks = result.get("checks");
    for (size_t i = 0; i < checks.size(); ++i) {
        const Json check = checks.at(i);
        const bool ok = check.get("ok").as_bool();
        if (page.brief) {
            if (!ok) page.out << cell(check.get("name")) << '\n';
            continue;
        }
        const bool warning = check.get("warning").as_bool();
        page.out << fmt::format("{}  {}: {}\n",
                                !ok       ? "FAIL"
                                : warning ? "WARN"
                                          : "ok  ",
                                cell(check.get("name")), cell(check.get("text")));
        if (const std::string advice = cell(check.get("advice")); (!ok || warning) && advice != "-")
            page.out << "      -> " << advice << '\n';
    }
}

}  // namespace banana::cli
