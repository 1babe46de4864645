// flow: traffic for tests/bench/bench-dtls, from programs like those that users run: not pinned, of ordinary priority,
// waiting for input, since a tunnel in user space needs the same CPUs. What `load` is for is the kernel's own path.
//
//   flow sink PORT FLOWS WARM_MS MEASURE_MS     TCP; prints READY, then "{bytes} {ns} {busy_us}": what arrived by all
//                                               flows from WARM_MS after the last was accepted, and how long the
//                                               machine's CPUs were busy meanwhile
//   flow pour PORT FLOWS ADDRESS SECONDS        TCP; sends all it can by every flow
//   flow count PORT                             UDP; prints READY, then "{datagrams} {ns}": those of the measured part
//                                               of a `pace` that arrived, and from the first to the last
//   flow pace PORT ADDRESS SIZE RATE WARM_MS MEASURE_MS plain|gso   UDP, SIZE bytes of payload, RATE a second by
//                                               absolute deadlines; prints "{sent} {ns}" of the measured part. gso:
//                                               what is due at once is handed to the kernel as one buffer (UDP_SEGMENT)
//   flow echo PORT                              UDP; prints READY, sends everything back until it is ended
//   flow probe PORT ADDRESS COUNT INTERVAL_US   UDP; prints "{median_ns} {p99_ns} {lost}" of COUNT round trips
//
// Status 0, 1 with a line on stderr, or 2.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
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
constexpr size_t gso_max = 64000;  // bytes of one buffer
constexpr size_t datagram_max = 2048;
constexpr size_t write_size = 128 * 1024;
constexpr int udp_buffer = 8 << 20;     // the receiver is not what loses
constexpr int silence_ms = 20000;       // then the other end is given up
constexpr int after_end_ms = 100;       // what was under way when the sender said that it was done
constexpr int no_end_ms = 500;          // the same, if all marks of the end were lost
constexpr int64_t pace_step = 200'000;  // ns: to wake for every datagram would cost more than to send it
constexpr int ends = 10;                // marks of the end: queues may be full
constexpr int reply_ms = 1000;
constexpr int64_t second = 1'000'000'000;

// What a paced datagram begins with.
enum class Part : uint32_t { warm = 1, measured = 2, end = 3 };

[[noreturn]] void fail(const char* what) {
    std::fprintf(stderr, "flow: %s: %s\n", what, std::strerror(errno));
    std::exit(1);
}

int64_t now_ns() {
    timespec t{};
    clock_gettime(CLOCK_MONOTONIC, &t);
    return int64_t{t.tv_sec} * second + t.tv_nsec;
}

void sleep_until(int64_t ns) {
    const timespec t{static_cast<time_t>(ns / second), static_cast<long>(ns % second)};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, nullptr);
}

void ready() {
    std::puts("READY");
    std::fflush(stdout);
}

sockaddr_in address_of(const char* text, const char* port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(std::atoi(port)));
    if (inet_pton(AF_INET, text, &address.sin_addr) != 1) fail("read the address");
    return address;
}

int open_socket(int type) {
    const int fd = socket(AF_INET, type | SOCK_CLOEXEC, 0);
    if (fd < 0) fail("make a socket");
    const int yes = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (type == SOCK_DGRAM) setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &udp_buffer, sizeof udp_buffer);
    return fd;
}

int bound(int type, const char* port) {
    const int fd = open_socket(type);
    const sockaddr_in any = address_of("0.0.0.0", port);
    if (bind(fd, reinterpret_cast<const sockaddr*>(&any), sizeof any) != 0) fail("bind");
    return fd;
}

int connected(int type, const char* address, const char* port) {
    const int fd = open_socket(type);
    const sockaddr_in to = address_of(address, port);
    if (connect(fd, reinterpret_cast<const sockaddr*>(&to), sizeof to) != 0) fail("connect");
    return fd;
}

void wait_for(std::vector<pollfd>& fds, int timeout_ms) {
    const int count = poll(fds.data(), fds.size(), timeout_ms);
    if (count == 0) errno = ETIMEDOUT;
    if (count <= 0) fail("wait for the other end");
}

// CPU time in microseconds during which no CPU of the machine was idle, by whatever it was used: processes, interrupts,
// soft interrupts. Derived from the idle time, which the kernel knows exactly. Work that was reniced (others', on a
// shared machine) and time that the hypervisor took count as idle.
int64_t busy_us() {
    std::FILE* file = std::fopen("/proc/stat", "re");
    std::array<long long, 8> field{};  // user nice system idle iowait irq softirq steal
    if (!file || std::fscanf(file, "cpu %lld %lld %lld %lld %lld %lld %lld %lld", &field[0], &field[1], &field[2],
                             &field[3], &field[4], &field[5], &field[6], &field[7]) != 8)
        fail("read /proc/stat");
    std::fclose(file);
    const int64_t tick_us = 1'000'000 / sysconf(_SC_CLK_TCK);
    return now_ns() / 1000 * sysconf(_SC_NPROCESSORS_ONLN) - (field[1] + field[3] + field[4] + field[7]) * tick_us;
}

// ---- TCP ------------------------------------------------------------------------------------------------------------

int sink(char** words) {
    const int listener = bound(SOCK_STREAM, words[0]);
    const size_t flows = std::strtoul(words[1], nullptr, 10);
    if (listen(listener, 16) != 0) fail("listen");
    ready();
    std::vector<pollfd> fds{{listener, POLLIN, 0}};
    std::vector<pollfd> in;
    while (in.size() < flows) {
        wait_for(fds, silence_ms);
        const int fd = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0) fail("accept");
        in.push_back({fd, POLLIN, 0});
    }
    std::vector<char> buffer(256 * 1024);
    const int64_t from = now_ns() + std::atoll(words[2]) * 1'000'000;
    int64_t first = 0, now = 0, busy = 0, until = from + std::atoll(words[3]) * 1'000'000;
    long long bytes = 0;
    while ((now = now_ns()) < until) {
        if (first == 0 && now >= from) {
            first = now;
            busy = busy_us();
            bytes = 0;
        }
        wait_for(in, silence_ms);
        for (const pollfd& one : in) {
            if (one.revents == 0) continue;
            const ssize_t size = recv(one.fd, buffer.data(), buffer.size(), 0);
            if (size < 0 && errno == EAGAIN) continue;
            if (size <= 0) fail("receive");
            bytes += size;
        }
    }
    std::printf("%lld %lld %lld\n", bytes, static_cast<long long>(now - first),
                static_cast<long long>(busy_us() - busy));
    return 0;
}

int pour(char** words) {
    const size_t flows = std::strtoul(words[1], nullptr, 10);
    const int64_t until = now_ns() + static_cast<int64_t>(std::atof(words[3]) * 1e9);
    std::vector<pollfd> out;
    for (size_t i = 0; i < flows; ++i) out.push_back({connected(SOCK_STREAM, words[2], words[0]), POLLOUT, 0});
    const std::vector<char> data(write_size);
    while (now_ns() < until) {
        wait_for(out, silence_ms);
        for (const pollfd& one : out) {
            if (one.revents == 0 || send(one.fd, data.data(), data.size(), MSG_NOSIGNAL | MSG_DONTWAIT) >= 0) continue;
            if (errno == EPIPE || errno == ECONNRESET) return 0;  // the receiver has measured
            if (errno != EAGAIN) fail("send");
        }
    }
    return 0;
}

// ---- UDP at a rate --------------------------------------------------------------------------------------------------

// Messages of `size` bytes for recvmmsg and sendmmsg.
struct Batch {
    explicit Batch(size_t size) : memory(batch * size) {
        for (size_t i = 0; i < batch; ++i) {
            parts[i] = {memory.data() + i * size, size};
            headers[i].msg_hdr.msg_iov = &parts[i];
            headers[i].msg_hdr.msg_iovlen = 1;
        }
    }
    char* at(size_t i) { return static_cast<char*>(parts[i].iov_base); }
    Part part(size_t i) {
        uint32_t value = 0;
        std::memcpy(&value, at(i), sizeof value);
        return Part{value};
    }
    void mark(Part part) {
        const auto value = static_cast<uint32_t>(part);
        for (size_t i = 0; i < batch; ++i) std::memcpy(at(i), &value, sizeof value);
    }
    std::vector<char> memory;  // in order, so that it can be sent as one buffer too
    std::array<iovec, batch> parts{};
    std::array<mmsghdr, batch> headers{};
};

// Sends up to `most` of a batch's messages of `size` bytes; how many, or -1.
int send_some(int fd, Batch& out, size_t most, bool gso) {
    if (!gso) return sendmmsg(fd, out.headers.data(), static_cast<unsigned>(std::min(most, batch)), 0);
    const size_t size = out.parts[0].iov_len, together = std::min({most, batch, gso_max / size});
    return send(fd, out.memory.data(), together * size, 0) < 0 ? -1 : static_cast<int>(together);
}

// Looks for datagrams every step and does not wait for them: on a virtual machine a wake-up for each costs the sender
// more than the path does.
int count(char** words) {
    const int fd = bound(SOCK_DGRAM, words[0]);
    prctl(PR_SET_TIMERSLACK, 1UL);
    ready();
    Batch in(datagram_max);
    std::vector<pollfd> input{{fd, POLLIN, 0}};
    wait_for(input, silence_ms);
    long long measured = 0;
    int64_t first = 0, last = 0, now = now_ns(), deadline = now + int64_t{silence_ms} * 1'000'000;
    int patience_ms = silence_ms;
    while ((now = now_ns()) < deadline) {
        const int got = recvmmsg(fd, in.headers.data(), batch, MSG_DONTWAIT, nullptr);
        for (size_t i = 0; got > 0 && i < static_cast<size_t>(got); ++i) {
            const Part part = in.part(i);
            if (part == Part::end) patience_ms = after_end_ms;
            if (part != Part::measured) continue;
            patience_ms = std::min(patience_ms, no_end_ms);
            if (measured++ == 0) first = now;
            last = now;
        }
        if (got > 0) deadline = now + int64_t{patience_ms} * 1'000'000;
        if (got < static_cast<int>(batch)) sleep_until(now + pace_step);
    }
    std::printf("%lld %lld\n", measured, static_cast<long long>(last - first));
    return 0;
}

// Sends what is due of `rate` a second from `start` to `until`; how many it sent. Late, it catches up.
long long pace_part(int fd, Batch& out, bool gso, double rate, int64_t start, int64_t until) {
    long long sent = 0;
    for (;;) {
        const int64_t now = now_ns();
        const auto due = static_cast<long long>(static_cast<double>(std::min(now, until) - start) * rate / 1e9);
        while (sent < due) {
            const int done = send_some(fd, out, static_cast<size_t>(due - sent), gso);
            if (done < 0 && errno != ENOBUFS && errno != ECONNREFUSED) fail("send");
            sent += done > 0 ? done : 1;  // what the kernel refuses was offered, and is lost
            if (now_ns() >= until) return sent;
        }
        if (now >= until) return sent;
        sleep_until(std::min(until, now + std::max(pace_step, static_cast<int64_t>(1e9 / rate))));
    }
}

int pace(char** words) {
    prctl(PR_SET_TIMERSLACK, 1UL);
    const int fd = connected(SOCK_DGRAM, words[1], words[0]);
    Batch out(std::max<size_t>(std::strtoul(words[2], nullptr, 10), sizeof(Part)));
    const bool gso = std::string(words[6]) == "gso";
    const int segment = static_cast<int>(out.parts[0].iov_len);
    if (gso && setsockopt(fd, SOL_UDP, UDP_SEGMENT, &segment, sizeof segment) != 0) fail("ask for UDP_SEGMENT");
    const double rate = std::atof(words[3]);
    const int64_t start = now_ns(), from = start + std::atoll(words[4]) * 1'000'000,
                  until = from + std::atoll(words[5]) * 1'000'000;
    out.mark(Part::warm);
    pace_part(fd, out, gso, rate, start, from);
    out.mark(Part::measured);
    const int64_t began = now_ns();
    const long long sent = pace_part(fd, out, gso, rate, began, until);
    const int64_t took = now_ns() - began;
    out.mark(Part::end);
    for (int i = 0; i < ends; ++i) {
        sendmmsg(fd, out.headers.data(), 1, 0);
        sleep_until(now_ns() + 2'000'000);
    }
    std::printf("%lld %lld\n", sent, static_cast<long long>(took));
    return 0;
}

// ---- Round trips ----------------------------------------------------------------------------------------------------

int echo(char** words) {
    const int fd = bound(SOCK_DGRAM, words[0]);
    ready();
    std::array<char, datagram_max> data{};
    for (;;) {
        sockaddr_in from{};
        socklen_t length = sizeof from;
        const ssize_t size = recvfrom(fd, data.data(), data.size(), 0, reinterpret_cast<sockaddr*>(&from), &length);
        if (size < 0) fail("receive");
        sendto(fd, data.data(), static_cast<size_t>(size), 0, reinterpret_cast<const sockaddr*>(&from), length);
    }
}

// The reply to `number` is there; older ones, whose time was over, are passed by.
bool replied(int fd, uint32_t number) {
    const int64_t deadline = now_ns() + int64_t{reply_ms} * 1'000'000;
    pollfd input{fd, POLLIN, 0};
    for (int64_t left = reply_ms; left > 0; left = (deadline - now_ns()) / 1'000'000) {
        if (poll(&input, 1, static_cast<int>(left)) <= 0) return false;
        uint32_t got = 0;
        if (recv(fd, &got, sizeof got, MSG_DONTWAIT) == sizeof got && got == number) return true;
    }
    return false;
}

int probe(char** words) {
    const int fd = connected(SOCK_DGRAM, words[1], words[0]);
    const auto wanted = static_cast<uint32_t>(std::atoi(words[2]));
    const int64_t interval = std::atoll(words[3]) * 1000;
    std::vector<int64_t> took;
    std::array<char, 64> data{};
    for (uint32_t number = 0; number < wanted; ++number) {
        std::memcpy(data.data(), &number, sizeof number);
        const int64_t sent = now_ns();
        if (send(fd, data.data(), data.size(), 0) < 0 && errno != ENOBUFS) fail("send");
        if (replied(fd, number)) took.push_back(now_ns() - sent);
        sleep_until(sent + interval);
    }
    if (took.empty()) {
        errno = ETIMEDOUT;
        fail("wait for any reply");
    }
    std::sort(took.begin(), took.end());
    std::printf("%lld %lld %zu\n", static_cast<long long>(took[took.size() / 2]),
                static_cast<long long>(took[took.size() * 99 / 100]), wanted - took.size());
    return 0;
}

struct Mode {
    const char* name;
    int words;
    int (*run)(char** words);
};

constexpr std::array<Mode, 6> modes{{{"sink", 4, sink},
                                     {"pour", 4, pour},
                                     {"count", 1, count},
                                     {"pace", 7, pace},
                                     {"echo", 1, echo},
                                     {"probe", 4, probe}}};

}  // namespace

int main(int argc, char** argv) {
    for (const Mode& mode : modes)
        if (argc == mode.words + 2 && std::string(argv[1]) == mode.name) return mode.run(argv + 2);
    std::fputs("usage: flow sink|pour|count|pace|echo|probe ...: see tests/bench/flow.cpp\n", stderr);
    return 2;
}
