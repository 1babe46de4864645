#include "controller/options.h"

#include <fmt/core.h>
#include <sys/un.h>

#include <CLI/CLI.hpp>
#include <array>

namespace banana::controller {

namespace {

constexpr const char* description =
    "bananad - the endpoint controller of a host's virtual network.\n"
    "One runs on each hypervisor. It is asked through the command 'banana', by libvirt's hooks and by its peers.";

constexpr const char* footer =
    "Signals: SIGTERM ends the daemon and leaves all traffic running.\n"
    "Exit codes: 0 done, 1 failed, 2 wrong command line, configuration or certificate.";

// What CLI11 says of --help and --version comes as an exception, too; it gives the code.
Exit exit_of(const CLI::App& app, const CLI::ParseError& error) {
    Exit out;
    if (error.get_exit_code() == 0) {
        out.out = error.get_name() == "CallForHelp" ? app.help() : std::string(error.what()) + "\n";
        return out;
    }
    out.code = 2;
    out.error = fmt::format("bananad: {}\nTry 'bananad --help'.\n", error.what());
    return out;
}

std::string wrong_path(const Options& options) {
    const std::array<std::pair<const char*, const std::string*>, 3> dirs{
        {{"--state-dir", &options.state_dir}, {"--run-dir", &options.run_dir}, {"--bpf-dir", &options.bpf_dir}}};
    for (const auto& [name, dir] : dirs)
        if (!dir->starts_with('/')) return fmt::format("{} '{}': it must be an absolute path", name, *dir);
    if (options.control_socket().size() >= sizeof sockaddr_un::sun_path)
        return fmt::format("--run-dir '{}': too long for a socket's path", options.run_dir);
    return "";
}

}  // namespace

std::variant<Options, Exit> parse_options(int argc, const char* const* argv) {
    Options options;
    CLI::App app(description, "bananad");
    try {
        app.footer(footer);
        app.option_defaults()->always_capture_default();
        app.add_option("--config", options.config, "Configuration file (TOML)")->type_name("FILE");
        app.add_option("--state-dir", options.state_dir, "What outlives a reboot: the registry")->type_name("DIR");
        app.add_option("--run-dir", options.run_dir, "The control socket")->type_name("DIR");
        app.add_option("--bpf-dir", options.bpf_dir, "Where the cross-connect is pinned; below a bpf file system")
            ->type_name("DIR");
        app.add_flag("--check-config", options.check_config, "Read the configuration, say what is wrong, and end");
        app.set_version_flag("--version", "bananad " BANANA_VERSION);
        app.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
        return exit_of(app, error);
    }
    if (const std::string wrong = wrong_path(options); !wrong.empty())
        return Exit{2, "", fmt::format("bananad: {}\nTry 'bananad --help'.\n", wrong)};
    return options;
}

}  // namespace banana::controller
