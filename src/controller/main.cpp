// bananad: the endpoint controller of one host.

#include <unistd.h>

#include <cstdio>
#include <variant>

#include "base/log.h"
#include "controller/daemon.h"

using namespace banana;

constexpr int exit_misconfigured = 2;  // not tried again by systemd: RestartPreventExitStatus= in the unit

int main(int argc, char** argv) {
    const auto parsed = controller::parse_options(argc, argv);
    if (const auto* exit = std::get_if<controller::Exit>(&parsed)) {
        std::fputs(exit->out.c_str(), stdout);
        std::fputs(exit->error.c_str(), stderr);
        return exit->code;
    }
    const auto& options = std::get<controller::Options>(parsed);
    auto config = controller::Config::load(options.config);
    if (!config) {
        log::error("{}", config.error().message());
        return exit_misconfigured;
    }
    if (options.check_config) return 0;
    log::set_level(config->log_level);
    if (::geteuid() != 0) {
        log::error("bananad must run as root, as it makes network devices: systemctl start bananad");
        return exit_misconfigured;
    }
    controller::Daemon daemon(std::move(*config), options);
    if (const Status loaded = daemon.load_certificates(); !loaded) {
        log::error("{}", loaded.error().message());
        return exit_misconfigured;
    }
    if (const Status started = daemon.start(); !started) {
        log::error("{}", started.error().message());
        return started.error().code() == Errc::invalid ? exit_misconfigured : 1;
    }
    daemon.run();
    return 0;
}
