// The host's side of a measurement: a stream each way and a TCP connection that is never silent for long, all three
// independent of each other. The control connection speaks before and after, never during.
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <sstream>

#include "modes.h"
#include "stream.h"

namespace traffic {

namespace {

constexpr int64_t kMs = 1'000'000;
constexpr int64_t kDrain = 1000 * kMs;     // how long after the last datagram an arrival still counts
constexpr int64_t kTcpGrace = 5000 * kMs;  // how long an exchange under way may take to end
constexpr uint64_t kFlowing = 20;          // datagrams each way before the run counts as begun

// Asks the guest one thing; an empty answer means that it could not be reached in time.
std::optional<std::string> ask(const sockaddr_in& peer, const std::string& request, int timeout_ms) {
    Fd connection = tcp_connect(peer, timeout_ms);
    std::string line = request + "\n";
    if (!connection || !write_all(connection, line.data(), line.size())) return std::nullopt;
    return read_line(connection);
}

// Request and response of 1 KiB, over and over, each checked byte for byte.
class TcpExchange {
public:
    TcpExchange(const sockaddr_in& echo, int interval_ms, int64_t run_start)
        : start_(run_start), interval_(interval_ms) {
        fd_ = tcp_connect(echo, 5000);
        if (!fd_) return;
        set_timeouts(fd_, 100);
        thread_ = std::thread([this] { loop(); });
    }
    ~TcpExchange() { stop(); }

    bool good() const { return static_cast<bool>(fd_); }
    uint64_t exchanges() const { return exchanges_; }
    void stop() {
        stopping_ = true;
        if (thread_.joinable()) thread_.join();
    }
    std::string json() const;
    std::string text() const;
    bool survived() const { return survived_; }

private:
    static constexpr size_t kChunk = 1024;

    void loop();
    bool exchange();

    Fd fd_;
    int64_t start_;
    int interval_;
    std::atomic<bool> stopping_ = false;
    std::atomic<uint64_t> exchanges_ = 0;
    bool survived_ = false;
    int64_t longest_ns_ = 0, longest_at_ns_ = 0;
    std::string error_;
    std::thread thread_;
};

void TcpExchange::loop() {
    survived_ = true;
    while (!stopping_ && survived_) {
        int64_t began = now_ns();
        survived_ = exchange();
        int64_t took = now_ns() - began;
        if (took > longest_ns_) {
            longest_ns_ = took;
            longest_at_ns_ = began - start_;
        }
        if (survived_) exchanges_++;
        sleep_until_ns(began + interval_ * kMs);
    }
}

bool TcpExchange::exchange() {
    std::string chunk(kChunk, static_cast<char>('a' + exchanges_ % 26)), reply;
    size_t sent = 0;
    int64_t give_up = 0;
    while (reply.size() < kChunk) {
        ssize_t moved = 0;
        if (sent < kChunk) {
            moved = send(fd_.get(), chunk.data() + sent, kChunk - sent, MSG_NOSIGNAL);
            if (moved > 0) sent += static_cast<size_t>(moved);
        } else {
            char buffer[kChunk];
            moved = recv(fd_.get(), buffer, kChunk - reply.size(), 0);
            if (moved > 0) reply.append(buffer, static_cast<size_t>(moved));
            if (moved == 0) error_ = "closed by the guest";
        }
        if (moved > 0) continue;
        if (moved < 0 && errno != EAGAIN && errno != EINTR) error_ = std::strerror(errno);
        if (stopping_ && give_up == 0) give_up = now_ns() + kTcpGrace;
        if (give_up && now_ns() > give_up) error_ = "no answer when the run ended";
        if (!error_.empty()) return false;
    }
    if (reply == chunk) return true;
    error_ = "the answer differs from what was sent";
    return false;
}

std::string TcpExchange::json() const {
    char text[256];
    std::snprintf(text, sizeof text,
                  "{\"bytes\":%llu,\"exchanges\":%llu,\"longest_stall_ms\":%.3f,\"stall_at_ms\":%.3f,\"survived\":%s,"
                  "\"error\":\"%s\"}",
                  static_cast<unsigned long long>(exchanges_ * kChunk * 2), static_cast<unsigned long long>(exchanges_),
                  static_cast<double>(longest_ns_) / 1e6, static_cast<double>(longest_at_ns_) / 1e6,
                  survived_ ? "true" : "false", error_.c_str());
    return text;
}

std::string TcpExchange::text() const {
    char text[256];
    std::snprintf(text, sizeof text, "%llu bytes in %llu exchanges, longest stall %.3f ms at %.3f ms, %s%s",
                  static_cast<unsigned long long>(exchanges_ * kChunk * 2), static_cast<unsigned long long>(exchanges_),
                  static_cast<double>(longest_ns_) / 1e6, static_cast<double>(longest_at_ns_) / 1e6,
                  survived_ ? "survived" : "broke: ", error_.c_str());
    return text;
}

class Run {
public:
    Run(const Options& options, const sockaddr_in& peer)
        : options_(options),
          peer_(peer),
          id_(std::random_device()() & 0x7ffffffe),
          receiver_(0),
          start_(now_ns()),
          deadline_(start_ + static_cast<int64_t>(options.timeout * 1e9)) {}

    int go();

private:
    bool begin(std::string& problem);
    bool flowing();
    int finish();
    void drain(uint64_t to_guest, uint64_t from_guest);
    std::optional<std::string> ask_guest(const std::string& verb, const std::string& rest = "");
    uint32_t to_guest() const { return id_; }
    uint32_t from_guest() const { return id_ + 1; }

    Options options_;
    sockaddr_in peer_;
    uint32_t id_;
    Receiver receiver_;
    int64_t start_, deadline_, flowing_since_ = 0;
    std::unique_ptr<Sender> sender_;
    std::unique_ptr<TcpExchange> tcp_;
};

// A reply without its "ok"; empty when the guest did not say ok.
std::optional<std::string> Run::ask_guest(const std::string& verb, const std::string& rest) {
    for (;;) {  // a freshly migrated or booted guest may need a moment
        int64_t left = (deadline_ - now_ns()) / kMs;
        if (left <= 0) return std::nullopt;
        auto reply = ask(peer_, verb + " " + rest, static_cast<int>(std::min<int64_t>(left, 3000)));
        if (reply && reply->starts_with("ok")) return reply->substr(2);
        if (reply) return std::nullopt;
        sleep_until_ns(now_ns() + 20 * kMs);
    }
}

bool Run::begin(std::string& problem) {
    std::string peer = to_string(peer_);
    problem = "make a UDP socket: " + std::string(std::strerror(errno));
    if (!receiver_.good()) return false;
    problem = "no answer from " + peer + " within " + std::to_string(static_cast<int>(options_.timeout)) +
              " s: is `traffic serve` running there, and the network up?";
    if (!ask_guest("hello") || !ask_guest("recv", std::to_string(to_guest()))) return false;
    receiver_.open(from_guest());
    sockaddr_in echo = peer_;
    echo.sin_port = htons(options_.port + kEchoOffset);
    tcp_ = std::make_unique<TcpExchange>(echo, options_.tcp_interval_ms, start_);
    problem = "connect to the TCP echo at " + to_string(echo) + ": " + std::strerror(errno);
    if (!tcp_->good()) return false;
    Flow flow{.stream = to_guest(), .rate = options_.rate, .count = 0, .size = options_.size};
    sender_ = std::make_unique<Sender>(peer_, flow);
    problem = "make a UDP socket: " + std::string(std::strerror(errno));
    if (!sender_->good()) return false;
    problem = "the guest at " + peer + " did not begin to send";
    if (!ask_guest("send", std::to_string(from_guest()) + " " + std::to_string(receiver_.port()) + " " +
                               std::to_string(options_.rate) + " " + std::to_string(options_.size)))
        return false;
    problem = "the streams to and from " + peer + " do not both flow";
    while (!flowing()) {
        if (now_ns() > deadline_) return false;
        sleep_until_ns(now_ns() + 10 * kMs);
    }
    return true;
}

bool Run::flowing() {
    if (receiver_.received(from_guest()) < kFlowing || tcp_->exchanges() == 0) return false;
    auto stats = ask_guest("stats", std::to_string(to_guest()) + " 0");
    return stats && decode(*stats).received >= kFlowing;
}

// Until all has arrived, or a second has passed: what comes later than that is lost to any protocol.
void Run::drain(uint64_t to_guest_sent, uint64_t from_guest_sent) {
    int64_t until = now_ns() + kDrain;
    while (now_ns() < until) {
        auto stats = ask_guest("stats", std::to_string(to_guest()) + " " + std::to_string(to_guest_sent));
        if (stats && decode(*stats).lost == 0 && receiver_.received(from_guest()) >= from_guest_sent) return;
        sleep_until_ns(now_ns() + 20 * kMs);
    }
}

int Run::finish() {
    int64_t ended = now_ns();
    deadline_ = ended + static_cast<int64_t>(options_.timeout * 1e9);
    sender_->stop();
    tcp_->stop();
    Report to = sender_->sent();
    auto stopped = ask_guest("stop", std::to_string(from_guest()));
    Report from = decode(stopped.value_or(""));
    drain(to.sent, from.sent);

    auto stats = ask_guest("stats", std::to_string(to_guest()) + " " + std::to_string(to.sent));
    ask_guest("drop", std::to_string(to_guest()));
    auto combine = [](const Report& sent, Report seen) {
        seen.late_sends = sent.late_sends;
        seen.longest_late_ns = sent.longest_late_ns;
        seen.send_errors = sent.send_errors;
        return seen;
    };
    Report to_whole = combine(to, decode(stats.value_or("")));
    Report from_whole = combine(from, receiver_.report(from_guest(), from.sent));
    bool complete = stopped && stats;
    double seconds = static_cast<double>(ended - flowing_since_) / 1e9;
    if (options_.json) {
        std::printf("{\"complete\":%s,\"seconds\":%.3f,\"rate\":%llu,\"to_guest\":%s,\"from_guest\":%s,\"tcp\":%s}\n",
                    complete ? "true" : "false", seconds, static_cast<unsigned long long>(options_.rate),
                    to_json(to_whole).c_str(), to_json(from_whole).c_str(), tcp_->json().c_str());
    } else {
        std::printf("%.1f s at %llu datagrams/s each way\nto guest:   %s\nfrom guest: %s\nTCP:        %s\n", seconds,
                    static_cast<unsigned long long>(options_.rate), to_text(to_whole).c_str(),
                    to_text(from_whole).c_str(), tcp_->text().c_str());
    }
    std::fflush(stdout);
    if (complete) return 0;
    return complain("the guest at " + to_string(peer_) +
                    " did not give its figures: what stands above is half the truth");
}

int Run::go() {
    std::string problem;
    if (!begin(problem)) {
        complain(problem);
        if (tcp_) tcp_->stop();
        return 1;
    }
    std::printf("READY\n");
    std::fflush(stdout);
    flowing_since_ = now_ns();
    int64_t until = options_.seconds > 0 ? flowing_since_ + static_cast<int64_t>(options_.seconds * 1e9) : 0;
    wait_for_end(options_.until_eof, until);
    return finish();
}

}  // namespace

int run(const Options& options) {
    auto peer = parse_address(options.peer, options.port);
    if (!peer) return complain("--peer must be an IPv4 address, not '" + options.peer + "'");
    return Run(options, *peer).go();
}

}  // namespace traffic
