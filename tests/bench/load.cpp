// load: saturates a path by UDP or by one TCP flow, and says what arrived. For tests/bench/bench-vxlan.
//
//   load recv tcp|udp PORT CPU WARM_MS MEASURE_MS          prints READY, then "{packets} {bytes} {ns}"
//   load send tcp|udp PORT CPU ADDRESS SIZE SECONDS        SIZE: of UDP payloads, or of TCP writes
//
// The receiver measures: from WARM_MS after the first byte, for MEASURE_MS. The sender offers all that it can: over
// veth devices the whole path up to the receiver's socket runs on the sender's CPU, so what arrives is what the path
// can do. Both are pinned to a CPU and run at the highest priority of ordinary processes. Status 0, or 1 with a line on
// stderr.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string>
#include <vector>

namespace {

constexpr size_t batch = 64;
constexpr size_t datagram_max = 2048;
constexpr int socket_buffer = 4 << 20;
constexpr int silence_ms = 20000;  // then the other end is given up

[[noreturn]] void fail(const char* what) {
    std::fprintf(stderr, "load: %s: %s\n", what, std::strerror(errno));
    std::exit(1);
}

int64_t now_ns() {
    timespec t{};
    clock_gettime(CLOCK_MONOTONIC, &t);
    return int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
}

void settle_on(int cpu, bool tcp) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set) != 0) fail("pin to a CPU");
    // UDP in real time, so that what else the machine does counts for less. TCP needs the kernel's own threads to run.
    const sched_param lowest{1};
    const int raised = tcp ? setpriority(PRIO_PROCESS, 0, -20) : sched_setscheduler(0, SCHED_FIFO, &lowest);
    if (raised != 0) fail("raise the priority");
}

sockaddr_in address_of(const char* text, int port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    if (inet_pton(AF_INET, text, &address.sin_addr) != 1) fail("read the address");
    return address;
}

int make_socket(bool tcp) {
    const int fd = socket(AF_INET, (tcp ? SOCK_STREAM : SOCK_DGRAM) | SOCK_CLOEXEC, 0);
    if (fd < 0) fail("make a socket");
    const int yes = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    // TCP keeps the kernel's own sizing.
    if (!tcp) setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &socket_buffer, sizeof socket_buffer);
    return fd;
}

// Messages of `size` bytes for recvmmsg and sendmmsg.
struct Batch {
    explicit Batch(size_t size) : memory(batch * size) {
        for (size_t i = 0; i < batch; ++i) {
            parts[i] = {memory.data() + i * size, size};
            headers[i].msg_hdr.msg_iov = &parts[i];
            headers[i].msg_hdr.msg_iovlen = 1;
        }
    }
    std::vector<char> memory;
    std::array<iovec, batch> parts{};
    std::array<mmsghdr, batch> headers{};
};

void wait_for_input(int fd) {
    pollfd ready{fd, POLLIN, 0};
    const int count = poll(&ready, 1, silence_ms);
    if (count == 0) errno = ETIMEDOUT;
    if (count <= 0) fail("wait for the sender");
}

int receive(bool tcp, int port, int64_t warm_ns, int64_t measure_ns) {
    int fd = make_socket(tcp);
    const sockaddr_in any = address_of("0.0.0.0", port);
    if (bind(fd, reinterpret_cast<const sockaddr*>(&any), sizeof any) != 0) fail("bind");
    if (tcp && listen(fd, 1) != 0) fail("listen");
    std::puts("READY");
    std::fflush(stdout);
    wait_for_input(fd);
    if (tcp && (fd = accept(fd, nullptr, nullptr)) < 0) fail("accept");
    Batch in(datagram_max);
    std::vector<char> stream(256 * 1024);
    const int64_t from = now_ns() + warm_ns, until = from + measure_ns;
    uint64_t packets = 0, bytes = 0;
    int64_t now = 0, first = 0;
    while ((now = now_ns()) < until) {
        if (tcp) wait_for_input(fd);  // for UDP it spins: waking it would cost the sender more than the path does
        uint64_t got_packets = 0, got_bytes = 0;
        if (tcp) {
            const ssize_t size = recv(fd, stream.data(), stream.size(), 0);
            if (size <= 0) fail("receive");
            got_bytes = static_cast<uint64_t>(size);
        } else {
            const int count = recvmmsg(fd, in.headers.data(), batch, MSG_DONTWAIT, nullptr);
            if (count < 0 && errno != EAGAIN) fail("receive");
            for (int i = 0; i < count; ++i) got_bytes += in.headers[static_cast<size_t>(i)].msg_len;
            got_packets = count > 0 ? static_cast<uint64_t>(count) : 0;
        }
        if (now < from) continue;
        if (first == 0) first = now;
        packets += got_packets;
        bytes += got_bytes;
    }
    std::printf("%llu %llu %lld\n", static_cast<unsigned long long>(packets), static_cast<unsigned long long>(bytes),
                static_cast<long long>(now - first));
    return 0;
}

int send_all(bool tcp, const sockaddr_in& to, size_t size, int64_t for_ns) {
    const int fd = make_socket(tcp);
    if (connect(fd, reinterpret_cast<const sockaddr*>(&to), sizeof to) != 0) fail("connect");
    Batch out(tcp ? 1 : size);
    const std::vector<char> stream(tcp ? size : 1);
    const int64_t until = now_ns() + for_ns;
    while (now_ns() < until) {
        const ssize_t done =
            tcp ? send(fd, stream.data(), stream.size(), MSG_NOSIGNAL) : sendmmsg(fd, out.headers.data(), batch, 0);
        if (done >= 0) continue;
        if (tcp && (errno == EPIPE || errno == ECONNRESET)) return 0;  // the receiver has measured
        if (errno != ECONNREFUSED && errno != ENOBUFS) fail("send");
    }
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    const std::string mode = argc > 2 ? argv[1] : "", kind = argc > 2 ? argv[2] : "";
    const bool tcp = kind == "tcp";
    if (argc < 7 || (!tcp && kind != "udp") || (mode != "recv" && mode != "send") || (mode == "send" && argc < 8)) {
        std::fputs(
            "usage: load recv tcp|udp PORT CPU WARM_MS MEASURE_MS\n"
            "       load send tcp|udp PORT CPU ADDRESS SIZE SECONDS\n",
            stderr);
        return 2;
    }
    settle_on(std::atoi(argv[4]), tcp);
    const int port = std::atoi(argv[3]);
    if (mode == "recv") return receive(tcp, port, std::atoll(argv[5]) * 1'000'000, std::atoll(argv[6]) * 1'000'000);
    return send_all(tcp, address_of(argv[5], port), static_cast<size_t>(std::atol(argv[6])),
                    static_cast<int64_t>(std::atof(argv[7]) * 1e9));
}
