// banana-tunneld: carries the frames of a host's DTLS wires.

#include <fmt/core.h>
#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <systemd/sd-daemon.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <ctime>
#include <string>

#include "base/log.h"
#include "pki/cert.h"
#include "tunnel/control_server.h"
#include "tunnel/tunnel.h"

using namespace banana;

namespace {

struct Options {
    std::string socket = "/run/banana-tunneld/control.sock";
    tunnel::Credentials credentials{"/etc/banana/pki/ca.crt", "", ""};
    std::string log_level = "info";
};

void describe(CLI::App& app, Options& options) {
    app.footer(
        "It is told by bananad what to carry and needs no privileges: sockets and taps are handed to it.\n"
        "Exit codes: 0 ended by a signal, 1 failed, 2 wrong command line or certificate.");
    app.option_defaults()->always_capture_default();
    app.add_option("--socket", options.socket, "Where bananad finds it")->type_name("PATH");
    app.add_option("--certificate", options.credentials.certificate, "This host's, of role 'tunnel' (PEM)")
        ->type_name("FILE")
        ->required();
    app.add_option("--key", options.credentials.key, "Its private key (PEM, mode 0600)")->type_name("FILE")->required();
    app.add_option("--ca", options.credentials.ca, "The cluster's CA certificate (PEM)")->type_name("FILE");
    app.add_option("--log-level", options.log_level, "debug, info, notice, warning or error")->type_name("LEVEL");
    app.set_version_flag("--version", "banana-tunneld " BANANA_VERSION);
}

// Nothing that it does needs a privilege. As root without capabilities it still owns root's files: its unit gives it a
// user of its own.
Status drop_privileges() {
    if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return errno_error(errno, "give up new privileges");
    __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
    __user_cap_data_struct none[2]{};
    if (::syscall(SYS_capset, &header, none) != 0) return errno_error(errno, "drop capabilities");
    return {};
}

Result<Fd> take_signals() {
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    // Blocked before any thread is made, so that all of them inherit it.
    if (::pthread_sigmask(SIG_BLOCK, &signals, nullptr) != 0) return errno_error(errno, "block signals");
    ::signal(SIGPIPE, SIG_IGN);
    Fd fd(::signalfd(-1, &signals, SFD_CLOEXEC));
    if (!fd) return errno_error(errno, "signalfd");
    return fd;
}

// What systemd need not try again (RestartPreventExitStatus= in the unit): unlike files, a clock that is behind is put
// right without an administrator.
int exit_code_for(const tunnel::Credentials& credentials) {
    const auto own = pki::inspect(credentials.certificate);
    return own && own->not_before > ::time(nullptr) ? 1 : 2;
}

Status run(const Options& options, const std::shared_ptr<const tunnel::Context>& context,
           tunnel::CipherPreference preference) {
    TRY_SET(const Fd signals, take_signals());
    TRY_SET(auto server, tunnel::ControlServer::open(options.socket));
    TRY(drop_privileges());
    tunnel::Tunnel tunnel(context, preference, [&](const std::string& peer) { server->changed(peer); });
    sd_notify(0, "READY=1");
    log::info("banana-tunneld {} of host {} is ready", BANANA_VERSION, context->host());
    server->serve(tunnel, signals.get());
    sd_notify(0, "STOPPING=1");
    log::info("ends on a signal; its wires carry nothing until it is started again");
    return {};
}

}  // namespace

int main(int argc, char** argv) {
    Options options;
    CLI::App app("banana-tunneld - carries the frames of a host's DTLS wires", "banana-tunneld");
    try {
        describe(app, options);
        app.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
        if (error.get_exit_code() == 0) return app.exit(error);
        std::fputs(fmt::format("banana-tunneld: {}\nTry 'banana-tunneld --help'.\n", error.what()).c_str(), stderr);
        return 2;
    }
    if (!log::set_level(options.log_level)) {
        std::fputs(fmt::format("banana-tunneld: --log-level '{}': no such level\n", options.log_level).c_str(), stderr);
        return 2;
    }
    const auto preference = tunnel::faster_cipher();
    const auto context = tunnel::Context::load(options.credentials, preference);
    if (!context) {
        log::error("{}", context.error().message());
        return exit_code_for(options.credentials);
    }
    if (const Status done = run(options, *context, preference); !done) {
        log::error("{}", done.error().message());
        return 1;
    }
    return 0;
}
