// ping, doctor, migration show: a question or more to the daemon, and an exit code that depends on the answer.
#include <fmt/core.h>

#include <algorithm>

#include "cli/local.h"
#include "cli/run.h"
#include "cli/session.h"
#include "cli/table.h"

namespace banana::cli {

namespace {

constexpr int64_t longest_probe_ms = 1000;

// min, mean and max of what was answered.
Json summary_of(const Json& probes) {
    int64_t lowest = 0, highest = 0, sum = 0, received = 0;
    for (size_t i = 0; i < probes.size(); ++i) {
        const Json rtt = probes.at(i).get("rtt_us");
        if (!rtt.is_int()) continue;
        lowest = received ? std::min(lowest, rtt.as_int()) : rtt.as_int();
        highest = std::max(highest, rtt.as_int());
        sum += rtt.as_int();
        ++received;
    }
    Json out = Json::object({{"sent", static_cast<int64_t>(probes.size())}, {"received", received}});
    if (received > 0) out.set("rtt_us", Json::object({{"min", lowest}, {"mean", sum / received}, {"max", highest}}));
    return out;
}

std::string ms_text(const Json& us) { return fmt::format("{:.3f} ms", us.as_double() / 1000); }

}  // namespace

// A probe's own time-out is an answer of the daemon's, {lost: true}: it must come while we still wait for one. Without
// any, it is the daemon that hangs, and nothing is known of the wire.
Result<int> run_ping(Session& session, const Command& command, const Json& params) {
    const int64_t patience_ms = std::clamp<int64_t>(session.globals().timeout.count() / 2, 1, longest_probe_ms);
    Json request = Json::object({{"name", params.get("name")}, {"timeout_ms", patience_ms}});
    if (params.has("size")) request.set("size", params.get("size"));
    Json probes = Json::array();
    for (int64_t i = 0; i < params.get("count").as_int(3); ++i) {
        TRY_SET(const Json answer, session.call(command.method, request));
        probes.push(answer);
    }
    Json result = summary_of(probes);
    result.set("name", params.get("name"));
    result.set("probes", probes);
    session.show(command.print, params, result);
    if (result.get("received").as_int() > 0) return exit_done;
    session.complain(fmt::format("ping {}: no probe came back", params.get("name").as_string()));
    return exit_timeout;
}

void print_ping(const Page& page, const Json&, const Json& result) {
    if (page.brief) {
        if (result.has("rtt_us")) page.out << cell(at_path(result, "rtt_us.mean")) << '\n';
        return;
    }
    const Json probes = result.get("probes");
    for (size_t i = 0; i < probes.size(); ++i) {
        const Json probe = probes.at(i);
        if (probe.has("lost"))
            page.out << fmt::format("{}: lost\n", i + 1);
        else
            page.out << fmt::format("{}: {}, {} bytes\n", i + 1, ms_text(probe.get("rtt_us")), cell(probe.get("size")));
    }
    page.out << fmt::format("{} sent, {} came back", cell(result.get("sent")), cell(result.get("received")));
    if (const Json rtt = result.get("rtt_us"); rtt.is_object())
        page.out << fmt::format("; {} least, {} mean, {} most", ms_text(rtt.get("min")), ms_text(rtt.get("mean")),
                                ms_text(rtt.get("max")));
    page.out << '\n';
}

Result<int> run_doctor(Session& session, const Command& command, const Json& params) {
    TRY_SET(const Json result, session.call(command.method, params));
    session.show(command.print, params, result);
    const Json checks = result.get("checks");
    for (size_t i = 0; i < checks.size(); ++i)
        if (!checks.at(i).get("ok").as_bool()) return exit_failed;
    return exit_done;
}

Result<int> run_migration_show(Session& session, const Command& command, const Json& params) {
    TRY_SET(Json result, session.call(command.method, Json::object()));
    if (params.has("spike")) {
        const std::string wanted = params.get("spike").as_string();
        const Json all = result.get("migrations");
        Json found = Json::array();
        for (size_t i = 0; i < all.size(); ++i) {
            const std::string name = all.at(i).get("spike").as_string();
            if (name == wanted || name.ends_with("/" + wanted)) found.push(all.at(i));
        }
        if (found.size() == 0)
            return Error(Errc::not_found, fmt::format("show migrations of '{}': none known", wanted));
        result.set("migrations", found);
    }
    session.show(command.print, params, result);
    return exit_done;
}

}  // namespace banana::cli
