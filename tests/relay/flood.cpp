// Datagrams from senders that are not there, to see that a listener keeps nothing for them.
//
// flood --to 10.0.2.2:4790 --from 198.18.0.0/15 --hello N | --random N | --plain-hello N  [--rate N] [--lanes N]
// [--seed N]
//
// Each has a random source address out of the prefix and a random port (raw socket, IPv4 only). --hello: the 8 bytes
// of a hello header and a genuine first ClientHello, as OpenSSL makes it, with other randomness each time; without the
// header: --plain-hello, for other servers. --random: a third of random bytes, a third behind a header of ours, a third
// that looks like a record of a session besides. Where the prefix is a local route here (`ip route add local PREFIX dev
// lo`) and the target routes it back, the answers are counted. The last line is JSON: sent, failed, request_bytes (the
// ClientHello's datagram), answers, answer_bytes (the largest).
#include <arpa/inet.h>
#include <fmt/core.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <openssl/ssl.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "address.h"
#include "base/clock.h"
#include "tunnel/wire_format.h"

namespace {
using namespace banana;
using Bytes = std::vector<uint8_t>;

constexpr int64_t answers_wait_ns = 300'000'000;                       // after the last datagram
constexpr size_t random_at = 13 + 12 + 2, random_bytes_in_hello = 32;  // RFC 6347: record, handshake header, version

// What a client sends first.
Bytes client_hello() {
    std::unique_ptr<SSL_CTX, void (*)(SSL_CTX*)> context(SSL_CTX_new(DTLS_client_method()), SSL_CTX_free);
    std::unique_ptr<SSL, void (*)(SSL*)> client(SSL_new(context.get()), SSL_free);
    SSL_set_min_proto_version(client.get(), DTLS1_2_VERSION);
    SSL_set_cipher_list(client.get(), "ECDHE+AESGCM:ECDHE+CHACHA20");
    SSL_set_options(client.get(), SSL_OP_NO_QUERY_MTU);
    SSL_set_mtu(client.get(), 1200);
    BIO* out = BIO_new(BIO_s_mem());
    SSL_set_bio(client.get(), BIO_new(BIO_s_mem()), out);
    SSL_connect(client.get());
    Bytes hello(2048);
    int size = BIO_read(out, hello.data(), static_cast<int>(hello.size()));
    hello.resize(size > 0 ? static_cast<size_t>(size) : 0);
    return hello;
}

struct Plan {
    sockaddr_in to{};
    uint32_t prefix = 0, host_mask = 0;  // host byte order
    uint64_t count = 0, rate = 50'000, lanes = 1;
    enum class Kind { hello, plain_hello, random } kind = Kind::hello;
};

class Flood {
public:
    Flood(const Plan& plan, uint64_t seed) : plan_(plan), random_(seed), hello_(client_hello()) {}
    Status open();
    void run();
    std::string result() const;

private:
    size_t payload(uint8_t* to);
    size_t header(uint8_t* to, tunnel::DatagramKind kind);
    void fill(uint8_t* to, size_t bytes);
    void send();
    void count_answers();

    Plan plan_;
    std::mt19937_64 random_;
    Bytes hello_;
    Fd out_, in_;
    std::array<uint8_t, 2048> packet_{};
    uint64_t sent_ = 0, failed_ = 0, answers_ = 0;
    size_t request_bytes_ = 0, answer_bytes_ = 0;
};

Status Flood::open() {
    if (hello_.size() < random_at + random_bytes_in_hello) return Error("make a ClientHello: OpenSSL gave none");
    out_.reset(::socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW));
    in_.reset(::socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_UDP));
    if (!out_ || !in_) return errno_error(errno, "open raw socket");
    int bytes = 16 << 20;
    (void)::setsockopt(in_.get(), SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof bytes);
    return {};
}

void Flood::fill(uint8_t* to, size_t bytes) {
    std::generate(to, to + bytes, [&] { return static_cast<uint8_t>(random_()); });
}

size_t Flood::header(uint8_t* to, tunnel::DatagramKind kind) {
    tunnel::DatagramHeader header;
    header.kind = kind;
    header.lane = static_cast<uint8_t>(random_() % plan_.lanes);
    header.index = kind == tunnel::DatagramKind::hello ? uint16_t{0} : static_cast<uint16_t>(random_() % 16);
    header.from_lane = header.lane;
    header.from_index = static_cast<uint16_t>(random_() % 65535 + 1);
    return tunnel::write_header(to, header);
}

size_t Flood::payload(uint8_t* to) {
    if (plan_.kind != Plan::Kind::random) {
        size_t head = plan_.kind == Plan::Kind::hello ? header(to, tunnel::DatagramKind::hello) : 0;
        std::copy(hello_.begin(), hello_.end(), to + head);
        fill(to + head + random_at, random_bytes_in_hello);
        return request_bytes_ = head + hello_.size();
    }
    size_t bytes = random_() % 1400, head = 0;
    uint64_t shape = random_() % 3;
    fill(to, bytes + 32);
    if (shape == 0) return bytes;
    head = header(to, static_cast<tunnel::DatagramKind>(random_() % 3));
    if (shape == 1) return head + bytes;
    const uint8_t record[] = {23, 0xfe, 0xfd, 0, 2, 0, 0, 0};  // frames, by their epoch
    std::copy(std::begin(record), std::end(record), to + head);
    to[head + 11] = static_cast<uint8_t>(bytes >> 8);
    to[head + 12] = static_cast<uint8_t>(bytes);
    return head + 13 + bytes;
}

void Flood::send() {
    constexpr size_t headers = sizeof(iphdr) + sizeof(udphdr);
    size_t bytes = payload(packet_.data() + headers);
    iphdr network{};
    network.version = 4;
    network.ihl = 5;
    network.ttl = 64;
    network.protocol = IPPROTO_UDP;
    network.saddr = htonl(plan_.prefix | (static_cast<uint32_t>(random_()) & plan_.host_mask));
    network.daddr = plan_.to.sin_addr.s_addr;
    udphdr transport{};  // no checksum, as IPv4 allows; the kernel fills in the IP header's and the lengths
    transport.source = htons(static_cast<uint16_t>(random_() % 64511 + 1024));
    transport.dest = plan_.to.sin_port;
    transport.len = htons(static_cast<uint16_t>(sizeof transport + bytes));
    std::memcpy(packet_.data(), &network, sizeof network);
    std::memcpy(packet_.data() + sizeof network, &transport, sizeof transport);
    ssize_t sent = ::sendto(out_.get(), packet_.data(), headers + bytes, 0,
                            reinterpret_cast<const sockaddr*>(&plan_.to), sizeof plan_.to);
    (sent < 0 ? failed_ : sent_)++;
}

// UDP that comes from the target's port; the raw socket sees it whole, from the IP header on.
void Flood::count_answers() {
    std::array<uint8_t, 4096> bytes;
    for (ssize_t got; (got = ::recv(in_.get(), bytes.data(), bytes.size(), MSG_DONTWAIT)) >= 0;) {
        iphdr network;
        udphdr transport;
        if (got < static_cast<ssize_t>(sizeof network + sizeof transport)) continue;
        std::memcpy(&network, bytes.data(), sizeof network);
        std::memcpy(&transport, bytes.data() + network.ihl * size_t{4}, sizeof transport);
        if (network.saddr != plan_.to.sin_addr.s_addr || transport.source != plan_.to.sin_port) continue;
        answers_++;
        answer_bytes_ = std::max<size_t>(answer_bytes_, ntohs(transport.len) - sizeof transport);
    }
}

void Flood::run() {
    int64_t begin = monotonic_ns();
    for (uint64_t i = 0; i < plan_.count; ++i) {
        int64_t due = begin + static_cast<int64_t>(i * 1'000'000'000 / plan_.rate), now = monotonic_ns();
        if (now < due) {
            count_answers();
            timespec left{0, static_cast<long>(std::min<int64_t>(due - now, 999'999'999))};
            if (due - now > 50'000) (void)::nanosleep(&left, nullptr);
        }
        send();
    }
    for (int64_t end = monotonic_ns() + answers_wait_ns; monotonic_ns() < end;) {
        count_answers();
        timespec pause{0, 10'000'000};
        (void)::nanosleep(&pause, nullptr);
    }
}

std::string Flood::result() const {
    return fmt::format(R"({{"sent":{},"failed":{},"request_bytes":{},"answers":{},"answer_bytes":{}}})", sent_, failed_,
                       request_bytes_, answers_, answer_bytes_);
}

Result<Plan> read_plan(std::map<std::string, std::string>& given) {
    Plan plan;
    TRY_SET(tunnel::Endpoint to, relay::parse_endpoint(given["to"]));
    if (to.family() != AF_INET) return Error(Errc::invalid, "senders can be forged for IPv4 only");
    std::memcpy(&plan.to, &to.raw, sizeof plan.to);
    std::string from = given["from"];
    size_t slash = from.find('/');
    TRY_SET(IpAddress address, IpAddress::parse(from.substr(0, slash)));
    uint64_t bits = slash == std::string::npos ? 32 : std::strtoull(from.c_str() + slash + 1, nullptr, 10);
    if (address.family != AF_INET || bits > 32) return Error(Errc::invalid, "\"" + from + "\" is no IPv4 prefix");
    std::memcpy(&plan.prefix, address.bytes.data(), 4);
    plan.host_mask = bits == 0 ? 0xffffffff : (uint32_t{1} << (32 - bits)) - 1;
    plan.prefix = ntohl(plan.prefix) & ~plan.host_mask;
    for (auto [name, kind] : {std::pair{"hello", Plan::Kind::hello},
                              {"plain-hello", Plan::Kind::plain_hello},
                              {"random", Plan::Kind::random}})
        if (given.count(name)) {
            plan.kind = kind;
            plan.count = std::strtoull(given[name].c_str(), nullptr, 10);
        }
    if (plan.count == 0) return Error(Errc::invalid, "one of --hello, --plain-hello and --random, with a number");
    if (given.count("rate")) plan.rate = std::strtoull(given["rate"].c_str(), nullptr, 10);
    if (given.count("lanes")) plan.lanes = std::strtoull(given["lanes"].c_str(), nullptr, 10);
    if (plan.rate == 0 || plan.lanes == 0 || plan.lanes > 256)
        return Error(Errc::invalid, "--rate from 1, --lanes from 1 to 256");
    return plan;
}
}  // namespace

int main(int argc, char** argv) {
    std::map<std::string, std::string> given;
    for (int i = 1; i + 1 < argc; i += 2) given[argv[i] + (std::strncmp(argv[i], "--", 2) == 0 ? 2 : 0)] = argv[i + 1];
    auto plan = read_plan(given);
    if (!plan) {
        fmt::print(stderr, "flood: {}\n", plan.error().message());
        return 2;
    }
    Flood flood(*plan, std::strtoull(given["seed"].c_str(), nullptr, 10));
    if (Status opened = flood.open(); !opened) {
        fmt::print(stderr, "flood: {}\n", opened.error().message());
        return 1;
    }
    flood.run();
    fmt::print("{}\n", flood.result());
    return 0;
}
