#include "cli/arguments.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <deque>
#include <memory>

#include "cli/run.h"
#include "cli/table.h"

namespace banana::cli {

namespace {

constexpr const char* description =
    "banana - virtual networks for libvirt guests that stay whole when guests move.\n"
    "\n"
    "A Corm is the NIC side of a network (a bridge on one host), a Spike the guest side of a NIC, and a wire joins\n"
    "the two wherever they are. This command asks the daemon of this host, bananad.";

constexpr const char* footer =
    "First steps:\n"
    "  banana corm create lab --uplink eth1   a Corm on this host's eth1; on every host a libvirt network banana-lab\n"
    "  banana wire list                       what is joined, and how\n"
    "  banana doctor                          what is wrong, and what to do about it\n"
    "\n"
    "'banana NOUN --help' and 'banana NOUN VERB --help' say more.\n"
    "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 time-out, 4 refused, 8 daemon not reachable, 10 not found.";

constexpr const char* everywhere =
    "With every command: --json, --brief, --socket PATH, --timeout SECONDS; see 'banana --help'.";

// Where CLI11 puts a parameter's value until the whole line is read.
struct Slot {
    const Param* param = nullptr;
    CLI::Option* option = nullptr;
    std::string text;
    std::vector<std::string> texts;
    int64_t integer = 0;
    bool flag = false;
};

struct Bound {
    const Command* command = nullptr;
    CLI::App* app = nullptr;
    std::deque<Slot> slots;  // their addresses must stay
};

// CLI11 adds " ..." to whatever takes several values; a list says so by itself: "HOST,...".
class Formatter : public CLI::Formatter {
    std::string make_option_opts(const CLI::Option* option) const override {
        std::string text = CLI::Formatter::make_option_opts(option);
        if (text.ends_with("... ...")) text.erase(text.size() - 4);
        return text;
    }
};

CLI::Option* add_option(CLI::App& app, Slot& slot, const char* help) {
    const Param& param = *slot.param;
    switch (param.kind) {
        case Kind::flag: return app.add_flag(param.flag, slot.flag, help);
        case Kind::integer:
            return app.add_option(param.flag, slot.integer, help)
                ->check(CLI::Range(param.min, param.max).description(""));
        case Kind::list: return app.add_option(param.flag, slot.texts, help)->delimiter(',')->allow_extra_args(false);
        case Kind::texts: return app.add_option(param.flag, slot.texts, help);
        case Kind::text: break;
    }
    return app.add_option(param.flag, slot.text, help);
}

void add_param(CLI::App& app, Slot& slot) {
    const Param& param = *slot.param;
    std::string help = param.help;
    if (param.kind == Kind::integer) help += fmt::format(" ({} to {})", param.min, param.max);
    if (*param.fallback) help += fmt::format(" [{}]", param.fallback);
    slot.option = add_option(app, slot, help.c_str());
    if (param.kind == Kind::flag) return;
    // The value's name stands in for CLI11's type and check texts.
    slot.option->type_name(param.value);
    if (!param.choices.empty()) {
        CLI::IsMember member(param.choices);
        member.description("");
        slot.option->check(member);
    }
    slot.option->required(param.required);
}

Json value_of(const Slot& slot) {
    switch (slot.param->kind) {
        case Kind::flag: return slot.flag;
        case Kind::integer: return slot.integer;
        case Kind::list:
        case Kind::texts: return Json::array(slot.texts);
        case Kind::text: break;
    }
    return slot.text;
}

Json params_of(const Bound& bound) {
    Json params = Json::object();
    for (const Slot& slot : bound.slots) {
        if (slot.param->kind == Kind::flag || slot.option->count() > 0)
            params.set(slot.param->key, value_of(slot));
        else if (*slot.param->fallback)
            params.set(slot.param->key, slot.param->fallback);
    }
    return params;
}

std::string timeout_wrong(const std::string& text) {
    double seconds = 0;
    const bool good = CLI::detail::lexical_cast(text, seconds) && seconds >= 0.001 && seconds <= 86400;
    return good ? "" : fmt::format("{} is not a time from 0.001 to 86400 seconds", text);
}

void add_globals(CLI::App& app, Globals& globals, double& seconds) {
    app.add_option("--socket", globals.socket, "The daemon's control socket [/run/banana/control.sock]")
        ->envname("BANANA_SOCKET")
        ->type_name("PATH");
    app.add_flag("--json", globals.json, "Print the daemon's answer as JSON");
    app.add_flag("--brief", globals.brief, "Print names alone, one a line");
    app.add_option("--timeout", seconds, "How long to wait for the daemon [30]")
        ->check(timeout_wrong)
        ->type_name("SECONDS");
    app.set_version_flag("--version", "banana " BANANA_VERSION);
    app.set_help_flag("-h,--help", "Print this help");
}

std::deque<Bound> add_commands(CLI::App& app) {
    std::map<std::string, CLI::App*> groups;
    for (const Noun& noun : nouns()) {
        CLI::App* group = app.add_subcommand(noun.name, noun.summary);
        group->require_subcommand(1)->fallthrough();
        groups[noun.name] = group;
    }
    std::deque<Bound> all;
    for (const Command& command : commands()) {
        CLI::App& parent = *command.noun ? *groups.at(command.noun) : app;
        CLI::App* sub = parent.add_subcommand(command.verb, command.summary);
        sub->fallthrough()->footer(*command.details ? fmt::format("{}\n{}", command.details, everywhere) : everywhere);
        Bound& bound = all.emplace_back();
        bound.command = &command;
        bound.app = sub;
        for (const Param& param : command.params) {
            Slot& slot = bound.slots.emplace_back();
            slot.param = &param;
            add_param(*sub, slot);
        }
    }
    return all;
}

// The innermost command that was named, as the user would type it.
std::string named(const CLI::App& app) {
    std::string out = "banana";
    for (const CLI::App* at = &app; !at->get_subcommands().empty();) {
        at = at->get_subcommands().front();
        out += " " + at->get_name();
    }
    return out;
}

std::string verbs_of(const std::string& noun) {
    std::vector<std::string> verbs;
    for (const Command& command : commands())
        if (command.noun == noun) verbs.emplace_back(command.verb);
    return fmt::format("{}", fmt::join(verbs, ", "));
}

Exit usage(const CLI::App& app, const std::string& text) {
    return {exit_usage, "", fmt::format("banana: {}\nTry '{} --help'.\n", safe(text), named(app))};
}

// CLI11 says "A subcommand is required", and says it also of one that does not exist.
std::string missing_command(const CLI::App& app) {
    const auto subs = app.get_subcommands();
    const std::string noun = subs.empty() ? "" : subs.front()->get_name();
    const auto extra = app.remaining(true);
    if (!subs.empty() && verbs_of(noun).empty()) return "";  // a command without a noun
    if (!subs.empty() && !subs.front()->get_subcommands().empty()) return "";
    const std::string known = subs.empty() ? "" : fmt::format(": {}", verbs_of(noun));
    const std::string prefix = subs.empty() ? "" : noun + ": ";
    if (!extra.empty())
        return fmt::format("{}unknown {} '{}'{}", prefix, extra.front().starts_with('-') ? "option" : "command",
                           extra.front(), known);
    return fmt::format("{}a {} is missing{}", prefix, subs.empty() ? "command" : "verb", known);
}

Exit exit_of(const CLI::App& app, const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) {
        if (error.get_name() != "CallForHelp") return {0, std::string(error.what()) + "\n", ""};
        return {0, app.help(), ""};  // the innermost named command's
    }
    const std::string missing = error.get_name() == "RequiredError" ? missing_command(app) : "";
    return usage(app, missing.empty() ? error.what() : missing);
}

}  // namespace

std::variant<Invocation, Exit> parse_arguments(std::vector<std::string> args) {
    Invocation out;
    double seconds = 30;
    CLI::App app(description, "banana");
    try {
        app.formatter(std::make_shared<Formatter>());  // before the subcommands, which take it from here
        app.footer(footer)->require_subcommand(1);
        add_globals(app, out.globals, seconds);
        const auto bound = add_commands(app);
        std::reverse(args.begin(), args.end());  // the order that CLI11 takes
        app.parse(std::move(args));
        out.globals.timeout = std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000));
        for (const Bound& candidate : bound) {
            if (!candidate.app->parsed()) continue;
            out.command = candidate.command;
            out.params = params_of(candidate);
        }
        if (out.command->finish)
            if (auto good = out.command->finish(out.params); !good) return usage(app, good.error().message());
        return out;
    } catch (const CLI::ParseError& error) {
        return exit_of(app, error);
    }
}

}  // namespace banana::cli
