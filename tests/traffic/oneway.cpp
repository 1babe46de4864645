// One stream one way, without a control connection, for namespace tests; and the probe for whole frames that may not
// be cut on their way.
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>

#include "modes.h"
#include "stream.h"

namespace traffic {

namespace {
constexpr uint32_t kStream = 1;
constexpr int64_t kMs = 1'000'000;
constexpr int kProbeWaitMs = 1000;

void print(const Options& options, const Report& report) {
    std::printf("%s\n", (options.json ? to_json(report) : to_text(report)).c_str());
    std::fflush(stdout);
}
}  // namespace

int send_stream(const Options& options) {
    auto peer = parse_address(options.peer, options.port);
    if (!peer) return complain("--peer must be an IPv4 address, not '" + options.peer + "'");
    uint64_t count = options.count;
    if (count == 0 && options.seconds > 0)
        count = static_cast<uint64_t>(options.seconds * static_cast<double>(options.rate));
    Flow flow{.stream = kStream, .rate = options.rate, .count = count, .size = options.size};
    Sender sender(*peer, flow);
    if (!sender.good()) return complain(std::string("make a UDP socket: ") + std::strerror(errno));
    while (!sender.done() && wait_for_end(options.until_eof, now_ns() + 5 * kMs) == Wake::time) continue;
    sender.stop();
    print(options, sender.sent());
    return 0;
}

// Ends at --count arrivals, after --seconds, or when told to.
int receive_stream(const Options& options) {
    Receiver receiver(options.port);
    if (!receiver.good())
        return complain("receive on UDP port " + std::to_string(options.port) + ": " + std::strerror(errno));
    receiver.open(kStream);
    std::printf("READY\n");
    std::fflush(stdout);
    int64_t until = options.seconds > 0 ? now_ns() + static_cast<int64_t>(options.seconds * 1e9) : INT64_MAX;
    auto short_of_count = [&] { return options.count == 0 || receiver.received(kStream) < options.count; };
    while (now_ns() < until && short_of_count() &&
           wait_for_end(options.until_eof, std::min(until, now_ns() + 20 * kMs)) == Wake::time)
        continue;
    print(options, receiver.report(kStream, options.count));
    return 0;
}

int probe_df(const Options& options) {
    auto peer = parse_address(options.peer, options.port + kReflectorOffset);
    if (!peer) return complain("--peer must be an IPv4 address, not '" + options.peer + "'");
    Fd fd = udp_socket(0);
    int never_fragment = IP_PMTUDISC_DO;
    if (!fd || setsockopt(fd.get(), IPPROTO_IP, IP_MTU_DISCOVER, &never_fragment, sizeof never_fragment) < 0 ||
        connect(fd.get(), reinterpret_cast<sockaddr*>(&*peer), sizeof *peer) < 0)
        return complain(std::string("make a UDP socket to ") + to_string(*peer) + ": " + std::strerror(errno));
    set_timeouts(fd, kProbeWaitMs);
    std::string datagram(static_cast<size_t>(std::clamp(options.size, kIpUdpHeaders + 4, kMaxSize) - kIpUdpHeaders),
                         'd');
    std::string reply(65536, '\0');
    uint64_t count = options.count ? options.count : 3, echoed = 0;
    std::string error;
    for (uint64_t k = 0; k < count; k++) {
        std::snprintf(datagram.data(), 4, "%03u", static_cast<unsigned>(k % 1000));
        if (send(fd.get(), datagram.data(), datagram.size(), 0) < 0) {
            error = std::strerror(errno);  // EMSGSIZE: this machine already knows that it does not fit
            continue;
        }
        ssize_t got = recv(fd.get(), reply.data(), reply.size(), 0);
        if (got == static_cast<ssize_t>(datagram.size()) &&
            std::memcmp(reply.data(), datagram.data(), datagram.size()) == 0)
            echoed++;
        else if (got < 0 && errno != EAGAIN)
            error = std::strerror(errno);
    }
    const char* format = options.json ? "{\"size\":%d,\"sent\":%llu,\"echoed\":%llu,\"error\":\"%s\"}\n"
                                      : "size %d: sent %llu, echoed %llu %s\n";
    std::printf(format, options.size, static_cast<unsigned long long>(count), static_cast<unsigned long long>(echoed),
                error.c_str());
    return echoed == count ? 0 : 1;
}

}  // namespace traffic
