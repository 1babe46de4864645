#include "cli/run.h"

#include <fmt/core.h>

#include <algorithm>

#include "cli/arguments.h"
#include "cli/session.h"
#include "cli/table.h"

namespace banana::cli {

namespace {

Result<int> run_command(Session& session, const Invocation& invocation) {
    const Command& command = *invocation.command;
    if (command.run) return command.run(session, command, invocation.params);
    TRY_SET(const Json result, session.call(command.method, invocation.params));
    session.show(command.print, invocation.params, result);
    return exit_done;
}

}  // namespace

Result<Json> Session::call(const std::string& method, const Json& params) {
    if (!client_) {
        TRY_SET(client_, rpc::BlockingClient::connect(globals_.socket, globals_.timeout));
    }
    auto answer = client_->call(method, params, globals_.timeout);
    if (answer || answer.error().code() != Errc::unreachable) return answer;
    // Did the daemon go away, or does it tell of a peer that did? One that went away takes no connection.
    if (!rpc::BlockingClient::connect(globals_.socket, globals_.timeout)) return answer;
    return Error(Errc::failed, answer.error().message());
}

void Session::complain(const std::string& text) {
    for (size_t at = 0; at <= text.size();) {
        const size_t end = std::min(text.find('\n', at), text.size());
        err_ << "banana: " << safe(std::string_view(text).substr(at, end - at)) << '\n';
        at = end + 1;
    }
}

void Session::show(const Printer& print, const Json& params, const Json& result) {
    if (globals_.json)
        out_ << result.dump_pretty() << '\n';
    else
        print({out_, globals_.brief}, params, result);
}

int exit_code(Errc code) {
    switch (code) {
        case Errc::invalid: return exit_usage;
        case Errc::timeout: return exit_timeout;
        case Errc::refused:
        case Errc::exists:
        case Errc::busy: return exit_refused;
        case Errc::unreachable: return exit_unreachable;
        case Errc::not_found: return exit_not_found;
        case Errc::failed:
        case Errc::unsupported: break;
    }
    return exit_failed;
}

int run(std::vector<std::string> args, std::ostream& out, std::ostream& err) {
    const auto parsed = parse_arguments(std::move(args));
    if (const auto* exit = std::get_if<Exit>(&parsed)) {
        out << exit->out;
        err << exit->error;
        return exit->code;
    }
    const auto& invocation = std::get<Invocation>(parsed);
    Session session(invocation.globals, out, err);
    const auto code = run_command(session, invocation);
    if (code) return *code;
    session.complain(code.error().message());
    return exit_code(code.error().code());
}

}  // namespace banana::cli
