// The guest's side. Every connection has a thread of its own that ends with it; streams belong to the server, not to
// the connection, so that a run can ask for its figures on a new one.
#include <sys/socket.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <sstream>

#include "modes.h"
#include "stream.h"

namespace traffic {

namespace {

class Server {
public:
    explicit Server(uint16_t port)
        : port_(port),
          control_(tcp_listen(port)),
          echo_(tcp_listen(port + kEchoOffset)),
          reflector_(udp_socket(port + kReflectorOffset)),
          receiver_(port) {}

    bool good() const { return control_ && echo_ && reflector_ && receiver_.good(); }
    void run();

private:
    void accept_all(const Fd& listener, void (Server::*serve)(Fd));
    void serve_control(Fd connection);
    void serve_echo(Fd connection);
    void reflect();
    std::string answer(const std::string& request, const sockaddr_in& asker);
    std::string start(uint32_t stream, const sockaddr_in& asker, std::istringstream& words);
    std::string stop(uint32_t stream);

    uint16_t port_;
    Fd control_, echo_, reflector_;
    Receiver receiver_;
    std::mutex mutex_;
    std::map<uint32_t, std::unique_ptr<Sender>> senders_;
};

void Server::run() {
    std::thread([this] { accept_all(echo_, &Server::serve_echo); }).detach();
    std::thread([this] { reflect(); }).detach();
    accept_all(control_, &Server::serve_control);
}

void Server::accept_all(const Fd& listener, void (Server::*serve)(Fd)) {
    for (;;) {
        Fd connection(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
        if (!connection) continue;
        std::thread([this, serve, held = connection.release()] { (this->*serve)(Fd(held)); }).detach();
    }
}

void Server::serve_control(Fd connection) {
    sockaddr_in asker{};
    socklen_t length = sizeof asker;
    if (getpeername(connection.get(), reinterpret_cast<sockaddr*>(&asker), &length) < 0) return;
    while (auto request = read_line(connection)) {
        std::string reply = answer(*request, asker) + "\n";
        if (!write_all(connection, reply.data(), reply.size())) return;
    }
}

std::string Server::answer(const std::string& request, const sockaddr_in& asker) {
    std::istringstream words(request);
    std::string verb;
    uint32_t stream = 0;
    words >> verb;
    if (verb == "hello") return "ok";
    if (!(words >> stream)) return "error no stream number: " + verb;
    if (verb == "recv") {
        receiver_.open(stream);
        return "ok";
    }
    if (verb == "send") return start(stream, asker, words);
    if (verb == "stop") return stop(stream);
    if (verb == "stats") {
        uint64_t sent = 0;
        words >> sent;
        return "ok " + encode(receiver_.report(stream, sent));
    }
    if (verb == "drop") {
        receiver_.close(stream);
        return stop(stream);
    }
    return "error unknown request: " + verb;
}

std::string Server::start(uint32_t stream, const sockaddr_in& asker, std::istringstream& words) {
    uint16_t port = 0;
    Flow flow;
    flow.stream = stream;
    if (!(words >> port >> flow.rate >> flow.size)) return "error send needs STREAM PORT RATE SIZE";
    sockaddr_in to = asker;
    to.sin_port = htons(port);
    auto sender = std::make_unique<Sender>(to, flow);
    if (!sender->good()) return std::string("error make a UDP socket: ") + std::strerror(errno);
    std::lock_guard lock(mutex_);
    senders_[stream] = std::move(sender);
    return "ok";
}

std::string Server::stop(uint32_t stream) {
    std::lock_guard lock(mutex_);
    auto at = senders_.find(stream);
    if (at == senders_.end()) return "ok";
    at->second->stop();
    Report report = at->second->sent();
    senders_.erase(at);
    return "ok " + encode(report);
}

void Server::serve_echo(Fd connection) {
    char buffer[16384];
    for (;;) {
        ssize_t got = recv(connection.get(), buffer, sizeof buffer, 0);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0 || !write_all(connection, buffer, static_cast<size_t>(got))) return;
    }
}

void Server::reflect() {
    // Answers are as large as what came and may not be cut either, so both directions are probed.
    int never_fragment = IP_PMTUDISC_DO;
    setsockopt(reflector_.get(), IPPROTO_IP, IP_MTU_DISCOVER, &never_fragment, sizeof never_fragment);
    std::string buffer(65536, '\0');
    for (;;) {
        sockaddr_in from{};
        socklen_t length = sizeof from;
        auto* address = reinterpret_cast<sockaddr*>(&from);
        ssize_t got = recvfrom(reflector_.get(), buffer.data(), buffer.size(), 0, address, &length);
        if (got >= 0) sendto(reflector_.get(), buffer.data(), static_cast<size_t>(got), 0, address, length);
    }
}

}  // namespace

int serve(const Options& options) {
    auto server = std::make_unique<Server>(options.port);
    if (!server->good())
        return complain("serve on ports " + std::to_string(options.port) + " to " +
                        std::to_string(options.port + kEchoOffset) + ": " + std::strerror(errno));
    std::printf("LISTENING %u\n", options.port);
    std::fflush(stdout);
    std::thread([held = server.release()] { held->run(); }).detach();  // it lives as long as the process
    wait_for_end(false, 0);
    std::_Exit(0);
}

}  // namespace traffic
