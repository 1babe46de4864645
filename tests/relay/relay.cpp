// A hostile network between two ends, in a namespace of its own:
//
//   clients --- listen [ relay ] an own port for each client --- to
//
// relay --listen 10.0.1.1:4790 --to 10.0.2.2:4790 [--from ADDRESS,ADDRESS...] [--seed N] [--RULE VALUE]...
//
// As a NAT does, it gives each client (address and port) a port of its own towards `to`, from the first of the `from`
// addresses; `rebind` gives all of them other ports, and the next of the addresses. Rules and commands come on stdin, a
// line each, and every line is answered by one: "ok LINE" or "error ...".
//
//   loss P, reorder P, duplicate P     percent, in each direction by itself
//   hold N                             a reordered datagram lets so many others pass
//   delay MS                           each way
//   mtu N                              IP packets that are larger vanish; 0: none do
//   flip K, truncate K                 a damaged copy of every K-th datagram besides; 0: none
//   rate N                             replayed datagrams a second
//   replay N                           N datagrams again, each way, of the last 1 024; then says "done replay"
//   rebind, rebind-every S             new ports: now, every S seconds (0: no more)
//   capture FILE                       what arrives, "> HEX" from clients, "< HEX" to them; "capture -" ends it
//   stats                              "ok stats {JSON}": clients, rebinds, up {...}, down {...}
//   quit                               the end of stdin does the same: it never outlives who started it
#include <fmt/core.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>

#include "address.h"
#include "base/clock.h"
#include "path.h"
#include "tunnel/udp.h"

namespace {
using namespace banana;
using namespace banana::relay;
using banana::tunnel::Endpoint;

constexpr size_t clients_max = 1024;
constexpr size_t reads_max = 64;  // datagrams off one socket before the others' turn
constexpr int buffer_bytes = 16 << 20;

void say(const std::string& line) {
    std::fputs((line + "\n").c_str(), stdout);
    std::fflush(stdout);
}

Result<Fd> open_udp(const Endpoint& local) {
    Fd socket(::socket(local.family(), SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!socket) return errno_error(errno, "open UDP socket");
    for (int option : {SO_RCVBUFFORCE, SO_RCVBUF, SO_SNDBUFFORCE, SO_SNDBUF})
        (void)::setsockopt(socket.get(), SOL_SOCKET, option, &buffer_bytes, sizeof buffer_bytes);
    bool v6 = local.family() == AF_INET6;  // never fragments what it passes on
    int probe = v6 ? IPV6_PMTUDISC_PROBE : IP_PMTUDISC_PROBE;
    (void)::setsockopt(socket.get(), v6 ? IPPROTO_IPV6 : IPPROTO_IP, v6 ? IPV6_MTU_DISCOVER : IP_MTU_DISCOVER, &probe,
                       sizeof probe);
    if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&local.raw), local.size()) != 0)
        return errno_error(errno, "bind UDP " + local.text());
    return socket;
}

struct Client {
    Endpoint address;
    Fd socket;  // towards `to`
};

class Relay {
public:
    Relay(Endpoint listen, Endpoint to, std::vector<IpAddress> from, uint64_t seed)
        : listen_(listen),
          to_(to),
          from_(std::move(from)),
          up_(rules_, seed, headers(to)),
          down_(rules_, seed + 1, headers(listen)) {}
    Status open();
    std::optional<Error> set(const std::string& name, const std::string& value);  // a rule or a command
    void run();

private:
    static size_t headers(const Endpoint& endpoint) { return endpoint.family() == AF_INET6 ? 48 : 28; }
    bool command(const std::string& line);  // false: quit
    void watch(int fd, uint64_t data);
    void rebind();
    size_t client_of(const Endpoint& from);
    void read_commands();
    void read_up();
    void read_down(size_t client);
    void record(char direction, std::span<const uint8_t> bytes);
    void send_due();
    void wait();
    std::string stats() const;
    Status open_upstream(size_t client);

    Endpoint listen_, to_;
    std::vector<IpAddress> from_;  // empty: the kernel's choice
    Rules rules_;
    Path up_, down_;
    Fd epoll_, listening_;
    std::vector<Client> clients_;
    std::unique_ptr<std::FILE, int (*)(std::FILE*)> capture_{nullptr, std::fclose};
    std::string typed_;
    uint64_t rebinds_ = 0;
    int64_t rebind_every_ = 0, rebind_due_ = never;
    bool replaying_ = false, quit_ = false;
    std::array<uint8_t, 65536> buffer_;

    static constexpr uint64_t stdin_data = ~uint64_t{0}, listen_data = stdin_data - 1;
};

void Relay::watch(int fd, uint64_t data) {
    epoll_event event{EPOLLIN, {.u64 = data}};
    (void)::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event);
}

Status Relay::open() {
    epoll_.reset(::epoll_create1(EPOLL_CLOEXEC));
    TRY_SET(listening_, open_udp(listen_));
    watch(listening_.get(), listen_data);
    watch(STDIN_FILENO, stdin_data);
    return {};
}

Status Relay::open_upstream(size_t client) {
    IpAddress local;
    local.family = to_.family();
    if (!from_.empty()) local = from_[rebinds_ % from_.size()];
    TRY_SET(clients_[client].socket, open_udp(Endpoint::of(local, 0)));
    watch(clients_[client].socket.get(), client);
    return {};
}

// Clients are kept as long as the relay runs; one too many is nobody (clients_max) and is not heard.
size_t Relay::client_of(const Endpoint& from) {
    for (size_t i = 0; i < clients_.size(); ++i)
        if (clients_[i].address == from) return i;
    if (clients_.size() == clients_max) return clients_max;
    clients_.push_back({from, {}});
    if (Status opened = open_upstream(clients_.size() - 1); !opened) say("error " + opened.error().message());
    return clients_.size() - 1;
}

void Relay::rebind() {
    rebinds_++;
    for (size_t i = 0; i < clients_.size(); ++i) {
        Fd before = std::move(clients_[i].socket);  // open until the new one is, so that the port differs
        if (Status opened = open_upstream(i); !opened) say("error " + opened.error().message());
    }
}

void Relay::record(char direction, std::span<const uint8_t> bytes) {
    if (capture_) fmt::print(capture_.get(), "{} {}\n", direction, to_hex(bytes));
}

void Relay::read_up() {
    for (size_t i = 0; i < reads_max; ++i) {
        Endpoint from;
        socklen_t size = sizeof from.raw;
        ssize_t got = ::recvfrom(listening_.get(), buffer_.data(), buffer_.size(), MSG_DONTWAIT,
                                 reinterpret_cast<sockaddr*>(&from.raw), &size);
        if (got < 0) return;
        size_t client = client_of(from);
        if (client == clients_max) continue;
        record('>', {buffer_.data(), static_cast<size_t>(got)});
        up_.put({client, {buffer_.data(), buffer_.data() + got}}, monotonic_ns());
    }
}

// Whoever knows a client's port may send to it: the kindest kind of NAT, as filtering is not what is tested.
void Relay::read_down(size_t client) {
    for (size_t i = 0; i < reads_max; ++i) {
        ssize_t got = ::recv(clients_[client].socket.get(), buffer_.data(), buffer_.size(), MSG_DONTWAIT);
        if (got < 0) return;
        record('<', {buffer_.data(), static_cast<size_t>(got)});
        down_.put({client, {buffer_.data(), buffer_.data() + got}}, monotonic_ns());
    }
}

void Relay::send_due() {
    Packet packet;
    auto send = [&](Path& path, int socket, const Endpoint& to) {
        ssize_t sent = ::sendto(socket, packet.bytes.data(), packet.bytes.size(), 0,
                                reinterpret_cast<const sockaddr*>(&to.raw), to.size());
        (sent < 0 ? path.counts.failed : path.counts.sent)++;
    };
    for (size_t i = 0; i < reads_max && up_.next(monotonic_ns(), packet); ++i)
        send(up_, clients_[packet.client].socket.get(), to_);
    for (size_t i = 0; i < reads_max && down_.next(monotonic_ns(), packet); ++i)
        send(down_, listening_.get(), clients_[packet.client].address);
    if (replaying_ && !up_.replaying() && !down_.replaying()) {
        replaying_ = false;
        say("done replay");
    }
    if (monotonic_ns() < rebind_due_) return;
    rebind_due_ += rebind_every_;
    rebind();
}

void Relay::wait() {
    int64_t due = std::min({up_.due(), down_.due(), rebind_due_});
    int64_t left = due == never ? 3'600'000'000'000 : std::max<int64_t>(due - monotonic_ns(), 0);
    timespec timeout{static_cast<time_t>(left / 1'000'000'000), static_cast<long>(left % 1'000'000'000)};
    std::array<epoll_event, 64> events;
    int count = ::epoll_pwait2(epoll_.get(), events.data(), events.size(), &timeout, nullptr);
    for (int i = 0; i < count; ++i) {
        uint64_t data = events[static_cast<size_t>(i)].data.u64;
        if (data == stdin_data)
            read_commands();
        else if (data == listen_data)
            read_up();
        else if (data < clients_.size())
            read_down(data);
    }
}

void Relay::run() {
    while (!quit_) {
        wait();
        send_due();
    }
}

void Relay::read_commands() {
    std::array<char, 4096> bytes;
    ssize_t got = ::read(STDIN_FILENO, bytes.data(), bytes.size());
    if (got <= 0) {
        quit_ = true;
        return;
    }
    typed_.append(bytes.data(), static_cast<size_t>(got));
    for (size_t end; !quit_ && (end = typed_.find('\n')) != std::string::npos; typed_.erase(0, end + 1))
        quit_ = !command(typed_.substr(0, end));
}

bool Relay::command(const std::string& line) {
    size_t space = line.find(' ');
    std::string name = line.substr(0, space), value = space == std::string::npos ? "" : line.substr(space + 1);
    if (name == "stats") {
        say("ok stats " + stats());
    } else if (auto refused = name == "quit" ? std::optional<Error>{} : set(name, value)) {
        say("error " + line + ": " + refused->message());
    } else {
        say("ok " + line);
    }
    return name != "quit";
}

std::optional<Error> Relay::set(const std::string& name, const std::string& value) {
    if (name == "rebind") return rebind(), std::nullopt;
    if (name == "capture") {
        capture_.reset(value == "-" ? nullptr : std::fopen(value.c_str(), "we"));
        if (value != "-" && !capture_) return errno_error(errno, "open " + value);
        return {};
    }
    double number = 0;
    auto [end, bad] = std::from_chars(value.data(), value.data() + value.size(), number);
    if (bad != std::errc{} || end != value.data() + value.size() || number < 0 || number > 4e9)
        return Error(Errc::invalid, "not a number from 0 on");
    struct Rule {
        const char* name;
        uint32_t Rules::*field;
    };
    for (auto [rule, field] :
         {std::pair{"loss", &Rules::loss}, {"reorder", &Rules::reorder}, {"duplicate", &Rules::duplicate}})
        if (name == rule) {
            if (number > 100) return Error(Errc::invalid, "more than 100 percent");
            return rules_.*field = number, std::nullopt;
        }
    for (auto [rule, field] : std::initializer_list<Rule>{{"hold", &Rules::hold},
                                                          {"delay", &Rules::delay_ms},
                                                          {"mtu", &Rules::mtu},
                                                          {"flip", &Rules::flip},
                                                          {"truncate", &Rules::truncate},
                                                          {"rate", &Rules::rate}})
        if (name == rule) return rules_.*field = static_cast<uint32_t>(number), std::nullopt;
    if (name == "replay") {
        up_.replay(static_cast<uint64_t>(number), monotonic_ns());
        down_.replay(static_cast<uint64_t>(number), monotonic_ns());
        return replaying_ = true, std::nullopt;
    }
    if (name != "rebind-every") return Error(Errc::invalid, "no such rule");
    rebind_every_ = static_cast<int64_t>(number * 1e9);
    rebind_due_ = rebind_every_ == 0 ? never : monotonic_ns() + rebind_every_;
    return {};
}

std::string Relay::stats() const {
    return fmt::format(R"({{"clients":{},"rebinds":{},"up":{},"down":{}}})", clients_.size(), rebinds_,
                       up_.counts.json(), down_.counts.json());
}

int usage(const std::string& why) {
    fmt::print(stderr,
               "relay: {}\nusage: relay --listen ADDRESS:PORT --to ADDRESS:PORT [--from ADDRESS,...] [--seed N] "
               "[--RULE VALUE]...\n",
               why);
    return 2;
}
}  // namespace

int main(int argc, char** argv) {
    (void)::signal(SIGPIPE, SIG_IGN);
    std::map<std::string, std::string> given;
    for (int i = 1; i < argc; i += 2) {
        if (std::strncmp(argv[i], "--", 2) != 0 || i + 1 == argc) return usage(std::string("what is ") + argv[i]);
        given[argv[i] + 2] = argv[i + 1];
    }
    auto listen = parse_endpoint(given["listen"]), to = parse_endpoint(given["to"]);
    if (!listen || !to) return usage((listen ? to : listen).error().message());
    std::vector<IpAddress> from;
    for (std::string rest = given["from"]; !rest.empty();) {
        size_t comma = rest.find(',');
        auto address = IpAddress::parse(rest.substr(0, comma));
        if (!address) return usage(address.error().message());
        from.push_back(*address);
        rest.erase(0, comma == std::string::npos ? comma : comma + 1);
    }
    uint64_t seed = std::strtoull(given["seed"].c_str(), nullptr, 10);
    for (const char* own : {"listen", "to", "from", "seed"}) given.erase(own);
    auto relay = std::make_unique<Relay>(*listen, *to, from, seed);
    if (Status opened = relay->open(); !opened) return usage(opened.error().message());
    for (const auto& [rule, value] : given)
        if (auto refused = relay->set(rule, value)) return usage("--" + rule + " " + value + ": " + refused->message());
    say("ready");
    relay->run();
    return 0;
}
