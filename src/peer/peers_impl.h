// What the files of Peers share; nobody else includes it. peers.cpp: states, status, calls. peers_dial.cpp: the
// connections that we make. peers_accept.cpp: those that others make.
//
//   connecting --hello accepted--> up --connection lost--> connecting
//   connecting --certificate, name, role, protocol or hello refused--> refused --next attempt goes further--> the
//   others
// In `connecting` and `refused` the peer is dialled again and again; calls are made in `up` alone.
#pragma once

#include <asio/steady_timer.hpp>
#include <cstdint>
#include <list>
#include <map>

#include "peer/peers.h"
#include "peer/tls.h"

namespace banana::peer {

enum class PeerState { connecting, refused, up };
const char* state_name(PeerState state);

struct Peer {
    Peer(asio::io_context& io, PeerAddress address) : where(std::move(address)), retry(io), ping(io) {}
    PeerAddress where;
    std::vector<asio::ip::address> addresses;  // what where.address stood for when it was last dialled; plain()
    PeerState state = PeerState::connecting;
    int64_t since = 0;      // wall time, seconds
    std::string error;      // why it is not up
    std::string last_loss;  // what ended its last connection that stood
    std::string incoming_error;
    std::shared_ptr<rpc::Connection> dialled, accepted;
    pki::X509Ptr dialled_certificate, accepted_certificate;
    pki::CertInfo certificate;
    Json info;
    int64_t rtt_us = 0;
    asio::steady_timer retry, ping;
    bool kicked = false;  // dial now, and from the shortest back-off
};

// At most `burst` lines in `window`; what was held back is counted into the next line.
class LogLimiter {
public:
    bool allow();
    size_t take_held() { return std::exchange(held_, 0); }

private:
    static constexpr size_t burst = 5;
    static constexpr int64_t window_ns = 10'000'000'000;
    int64_t window_start_ = 0;
    size_t written_ = 0, held_ = 0;
};

// Calls `expire` once the time is over, unless it is gone by then.
class Deadline {
public:
    Deadline(const asio::any_io_executor& executor, milliseconds after, std::function<void()> expire);
    ~Deadline() { state_->armed = false; }
    Deadline(const Deadline&) = delete;
    Deadline& operator=(const Deadline&) = delete;
    bool expired() const { return state_->expired; }

private:
    struct State {
        bool armed = true, expired = false;
        std::function<void()> expire;
    };
    std::shared_ptr<State> state_;
    asio::steady_timer timer_;
};

// An IPv4-mapped IPv6 address as the IPv4 address that it is: what is equal then is the same host.
asio::ip::address plain(const asio::ip::address& address);

// The time between a connection's TLS handshake and its hello.
struct Greeting {
    Greeting(asio::io_context& io, milliseconds limit) : done(io, limit) {}
    asio::steady_timer done;  // cancelled when the verdict is there, or the connection gone
    Status verdict = Error(Errc::timeout, "no hello in time");
    bool said = false;
};

struct Peers::Impl : std::enable_shared_from_this<Peers::Impl> {
    Impl(asio::io_context& io, Config config, rpc::Dispatcher dispatcher);

    asio::io_context& io;
    Config config;
    rpc::Dispatcher dispatcher;
    std::shared_ptr<const Identity> identity;
    std::map<std::string, Peer> peers;
    bool running = false;
    Callback on_up, on_down, on_changed;
    asio::steady_timer sweep_timer;
    Tcp::acceptor acceptor;
    asio::steady_timer accept_pause;
    size_t unauthenticated = 0, unauthenticated_known = 0;
    std::map<asio::ip::address, size_t> unauthenticated_from;  // both, by address
    LogLimiter limiter;
    // What stop() has to end and no peer holds yet: handshakes and greetings under way.
    std::list<std::function<void()>> unfinished;

    // peers.cpp
    void add_own_methods();
    Peer* add(const PeerAddress& address);  // null: there is one of that name
    Status load(bool must_fit);
    void set_state(Peer& peer, PeerState state, const std::string& error);
    Json hello() const;
    Status check_hello(const Json& said, const std::string& expected_host) const;
    void take_info(Peer& peer, const Json& info);
    void kick(Peer& peer);
    void verify_connections();
    asio::awaitable<void> sweep_loop(std::shared_ptr<Impl> self);
    Result<std::shared_ptr<rpc::Connection>> connection_to(const std::string& name) const;

    // peers_dial.cpp
    using Dialled = Result<std::shared_ptr<rpc::Connection>>;
    asio::awaitable<void> dial_loop(std::shared_ptr<Impl> self, Peer& peer);
    asio::awaitable<Dialled> dial(Peer& peer);
    asio::awaitable<Status> connect(TlsStream& stream, Peer& peer);
    asio::awaitable<Status> shake_hands(TlsStream& stream, Peer& peer);
    asio::awaitable<Dialled> greet(std::unique_ptr<TlsStream> stream, Peer& peer);
    asio::awaitable<Error> keep_up(Peer& peer);

    // peers_accept.cpp
    Status listen();
    asio::awaitable<void> accept_loop(std::shared_ptr<Impl> self);
    void admit(Tcp::socket socket);
    asio::awaitable<void> authenticate(std::shared_ptr<Impl> self, Tcp::socket socket, Tcp::endpoint from, bool known);
    asio::awaitable<Status> shake_incoming(TlsStream& stream, const Identity& used, std::string& host);
    asio::awaitable<Status> receive_hello(std::unique_ptr<TlsStream> stream, std::string& host);
    rpc::Dispatcher gate(std::shared_ptr<Greeting> greeting, pki::CertInfo certificate);
    Status admit_certificate(const pki::CertInfo& certificate) const;
    void take_accepted(Peer& peer, std::shared_ptr<rpc::Connection> connection, pki::X509Ptr certificate);
    void refuse_incoming(const Tcp::endpoint& from, const std::string& host, const Error& why);
};

// Registers how to end something under way, for as long as it is under way.
class Unfinished {
public:
    Unfinished(Peers::Impl& impl, std::function<void()> end)
        : list_(impl.unfinished), at_(impl.unfinished.insert(impl.unfinished.end(), std::move(end))) {}
    ~Unfinished() { list_.erase(at_); }
    Unfinished(const Unfinished&) = delete;
    Unfinished& operator=(const Unfinished&) = delete;

private:
    std::list<std::function<void()>>& list_;
    std::list<std::function<void()>>::iterator at_;
};

}  // namespace banana::peer
