// Peers: the other hosts' controllers, reached by JSON-RPC over mutually verified TLS 1.3.
//
// Concepts: each side dials, and makes its own calls on the connection that it dialled; so there is nothing to
// resolve when two hosts open at once, and "peer X is up" means: my connection to X stands, X's certificate was
// verified (cluster CA, validity, name X, role controller) and X accepted my `hello`. Requests of others come in on
// connections that they dialled, and go to the Dispatcher only after their certificate and `hello` were accepted.
// A peer that cannot be reached, or is refused, is dialled again after 0.1 s ... 5 s (doubling, with jitter), at once
// when it dials us or when certificates are reloaded. A ping each second notices a dead peer within 4 s.
// Methods of its own: "hello", "ping", "peer.update" (the sender's capabilities changed).
// The Dispatcher must be another than the control socket's: what stands in it can be asked for by every peer.
// Threading: the io_context's single thread, callbacks included. Call stop() before the io_context is destroyed.
// Errors: start() and reload() name the file or address; a peer's trouble never surfaces there, but in status().
#pragma once

#include <asio/io_context.hpp>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "peer/rpc.h"

namespace banana::peer {

using rpc::milliseconds;

inline constexpr uint16_t default_port = 7471;
inline constexpr int protocol_version = 1;

struct PeerAddress {
    std::string name;     // the host's name; its certificate must bear it
    std::string address;  // IPv4, IPv6 or a name to be resolved
    uint16_t port = default_port;
};

struct Config {
    std::string host, site, version;
    std::string listen = "0.0.0.0";    // a literal address; "::" takes both families
    uint16_t port = default_port;      // 0: any free one (tests)
    std::string ca, certificate, key;  // paths; PEM
    Json capabilities;                 // sent in hello
    std::vector<PeerAddress> peers;

    int protocol = protocol_version;  // tests only
    milliseconds connect_timeout{3000};
    milliseconds handshake_timeout{3000};  // TLS and hello together
    milliseconds ping_interval{1000};
    milliseconds ping_timeout{3000};
    milliseconds retry_min{100}, retry_max{5000};
    // Incoming connections that have not yet said who they are: so many from peers' addresses, so many from others,
    // half as many from one address.
    size_t max_unauthenticated = 32;
};

class Peers {
public:
    using Callback = std::function<void(const std::string& peer)>;

    Peers(asio::io_context& io, Config config, rpc::Dispatcher dispatcher);
    ~Peers();

    Status start();   // loads the certificates, listens, begins to dial
    void stop();      // ends every connection; waiting calls get unreachable
    Status reload();  // reads the certificate files again; on error, and if peers would refuse the new one, the old
                      // ones stay in use. Connections that the new CA does not vouch for are closed, the others go on;
                      // refused peers are dialled at once
    std::string problem() const;           // why peers refuse the certificate in use, by now; "": nothing known
    void add(const PeerAddress& address);  // one more, dialled from now on; a name that is known: nothing
    uint16_t port() const;                 // the one listened on

    void on_up(Callback callback);
    void on_down(Callback callback);
    void on_changed(Callback callback);  // the peer's info (site, version, capabilities) is new

    // unreachable at once, with the reason, when the peer is not up; not_found: not configured.
    asio::awaitable<Result<Json>> call(std::string peer, std::string method, Json params, milliseconds timeout);
    Status notify(const std::string& peer, const std::string& method, const Json& params);

    bool is_up(const std::string& peer) const;
    std::vector<std::string> names() const;
    Json info(const std::string& peer) const;  // its last hello {protocol, host, site, version, capabilities}, or null
    void set_capabilities(Json capabilities);  // told to every peer that is up
    // [{name, address, port, state: up|connecting|refused, since (wall, s), error: why it is not up, last_loss, rtt_us,
    // info, incoming, incoming_error}]
    Json status() const;

    struct Impl;

private:
    std::shared_ptr<Impl> impl_;
};

}  // namespace banana::peer
