// traffic: open-loop measurement of a network path, in one static program that needs nothing around it.
// Built by the lab: g++ -std=c++20 -O2 -static -pthread -I src tests/traffic/*.cpp
#include <poll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "modes.h"
#include "sockets.h"

namespace traffic {

namespace {

constexpr const char* kUsage =
    "usage: traffic serve [--port P]\n"
    "       traffic run   --peer IP [--rate N] [--size B] [--seconds S] [--until-eof] [--json]\n"
    "       traffic send  --peer IP [--rate N] [--size B] [--count N | --seconds S] [--json]\n"
    "       traffic recv  [--count N] [--seconds S] [--until-eof] [--json]\n"
    "       traffic df    --peer IP --size B [--count N] [--json]\n"
    "\n"
    "  serve  answer `run` and `df`: in the guest\n"
    "  run    a stream each way and a TCP connection; prints READY when all flow, and the report at the end\n"
    "  send, recv  one stream one way\n"
    "  df     UDP packets of exactly B bytes that may not be cut; status 0 if every one came back\n"
    "\n"
    "  --port P          first of three ports (7700)      --size B      size of the IP packets (128)\n"
    "  --rate N          packets a second (1000)          --timeout S   for the peer to answer (15)\n"
    "  --tcp-interval MS between TCP exchanges (2)        --until-eof   end when stdin is closed\n"
    "  A run also ends at SIGINT or SIGTERM.\n";

bool parse(int argc, char** argv, Options& options) {
    if (argc < 2) return false;
    options.mode = argv[1];
    for (int i = 2; i < argc; i++) {
        std::string name = argv[i];
        if (name == "--json") {
            options.json = true;
            continue;
        }
        if (name == "--until-eof") {
            options.until_eof = true;
            continue;
        }
        if (i + 1 == argc) return false;
        const char* text = argv[++i];
        if (name == "--peer") {
            options.peer = text;
            continue;
        }
        char* rest = nullptr;
        double value = std::strtod(text, &rest);
        if (*rest || value < 0) return false;
        if (name == "--port")
            options.port = static_cast<uint16_t>(value);
        else if (name == "--rate")
            options.rate = static_cast<uint64_t>(value);
        else if (name == "--count")
            options.count = static_cast<uint64_t>(value);
        else if (name == "--size")
            options.size = static_cast<int>(value);
        else if (name == "--seconds")
            options.seconds = value;
        else if (name == "--timeout")
            options.timeout = value;
        else if (name == "--tcp-interval")
            options.tcp_interval_ms = static_cast<int>(value);
        else
            return false;
    }
    return true;
}

}  // namespace

void block_signals() {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigprocmask(SIG_BLOCK, &set, nullptr);
}

Wake wait_for_end(bool until_eof, int64_t until_ns) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    Fd signals(signalfd(-1, &set, SFD_CLOEXEC));
    for (;;) {
        pollfd ready[2] = {{signals.get(), POLLIN, 0}, {until_eof ? STDIN_FILENO : -1, POLLIN, 0}};
        int wait_ms = -1;
        if (until_ns > 0 && until_ns != INT64_MAX) {
            int64_t left = until_ns - now_ns();
            if (left <= 0) return Wake::time;
            wait_ms = static_cast<int>(std::min<int64_t>(left / 1'000'000 + 1, 1'000'000));
        }
        if (poll(ready, 2, wait_ms) < 0) continue;
        if (ready[0].revents) return Wake::signal;
        char buffer[256];
        if (ready[1].revents && read(STDIN_FILENO, buffer, sizeof buffer) <= 0) return Wake::end_of_input;
    }
}

int complain(const std::string& what) {
    std::fprintf(stderr, "traffic: %s\n", what.c_str());
    return 1;
}

}  // namespace traffic

int main(int argc, char** argv) {
    using namespace traffic;
    Options options;
    bool understood = parse(argc, argv, options);
    block_signals();
    if (understood && options.mode == "serve") return serve(options);
    if (understood && options.mode == "run") return run(options);
    if (understood && options.mode == "send") return send_stream(options);
    if (understood && options.mode == "recv") return receive_stream(options);
    if (understood && options.mode == "df") return probe_df(options);
    std::fputs(kUsage, stderr);
    return 2;
}
