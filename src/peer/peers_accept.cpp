// The connections that others make: accept, TLS handshake, name and role, hello; then the Dispatcher serves them.
//
// Whoever has not shown a certificate of this cluster costs one bounded slot for at most `handshake_timeout` and a
// bounded number of log lines, and gets no byte of JSON read. A slot is not free again before `refused_hold`, so that
// handshakes, which cost a millisecond each, are bounded in their rate as well: max_unauthenticated of them in that
// time, 64 a second, and half of that from one address. Slots for the configured peers' addresses (of a DNS name:
// those that it stood for when it was last dialled) are counted apart, so a flood from elsewhere cannot keep them out.
// No address gets more than half of them, so a peer that comes from an unexpected one (NAT) is not kept out by a single
// stranger either.
#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <asio/ip/v6_only.hpp>
#include <asio/redirect_error.hpp>
#include <asio/use_awaitable.hpp>

#include "base/bytes.h"
#include "base/log.h"
#include "peer/peers_impl.h"
#include "peer/spawn.h"

namespace banana::peer {

using rpc::spawn;

namespace {

constexpr milliseconds accept_pause_after_error{100};
constexpr milliseconds linger{500};
constexpr milliseconds refused_hold{500};
constexpr size_t max_lingered = 1 << 18;
constexpr int silent_pings = 5;  // a dialler pings each interval; so many missed, and it is gone

Error stopping() { return Error(Errc::unreachable, "the daemon is stopping"); }

// After a failed handshake: the alert must not be overtaken by the reset that closing with unread input causes.
asio::awaitable<void> drain(TlsStream& stream) {
    auto& socket = stream.layer().next_layer();
    const Deadline deadline(stream.executor(), linger, [&] { stream.close(); });
    stream.shutdown_send();
    std::array<char, 4096> waste;
    size_t total = 0;
    asio::error_code code;
    while (!code && total < max_lingered)
        total += co_await socket.async_read_some(asio::buffer(waste), asio::redirect_error(asio::use_awaitable, code));
}

bool has_address(const Peer& peer, const asio::ip::address& address) {
    return std::find(peer.addresses.begin(), peer.addresses.end(), address) != peer.addresses.end();
}

// The slot of a connection that has not yet said who it is.
class Slot {
public:
    Slot(Peers::Impl& impl, const asio::ip::address& from, bool known)
        : all_(known ? impl.unauthenticated_known : impl.unauthenticated),
          by_address_(impl.unauthenticated_from),
          from_(from) {
        ++all_;
        ++by_address_[from_];
    }
    ~Slot() {
        --all_;
        if (--by_address_[from_] == 0) by_address_.erase(from_);
    }
    Slot(const Slot&) = delete;
    Slot& operator=(const Slot&) = delete;

private:
    size_t& all_;
    std::map<asio::ip::address, size_t>& by_address_;
    const asio::ip::address from_;
};

}  // namespace

asio::ip::address plain(const asio::ip::address& address) {
    if (address.is_v6() && address.to_v6().is_v4_mapped())
        return asio::ip::make_address_v4(asio::ip::v4_mapped, address.to_v6());
    return address;
}

Status Peers::Impl::listen() {
    const std::string what = fmt::format("listen for peers on {} port {}", config.listen, config.port);
    asio::error_code code;
    const auto address = asio::ip::make_address(config.listen, code);
    if (code) return Error(Errc::invalid, what + ": not an IPv4 or IPv6 address");
    const Tcp::endpoint endpoint(address, config.port);
    const auto failed = [&] {
        asio::error_code ignored;
        acceptor.close(ignored);
        return errno_error(code.value(), what);
    };
    if (acceptor.open(endpoint.protocol(), code); code) return failed();
    if (acceptor.set_option(Tcp::acceptor::reuse_address(true), code); code) return failed();
    if (address.is_v6() && address.is_unspecified())
        if (acceptor.set_option(asio::ip::v6_only(false), code); code) return failed();
    if (acceptor.bind(endpoint, code); code) return failed();
    if (acceptor.listen(asio::socket_base::max_listen_connections, code); code) return failed();
    return {};
}

asio::awaitable<void> Peers::Impl::accept_loop(std::shared_ptr<Impl> self) {
    while (self->running) {
        asio::error_code code;
        Tcp::socket socket = co_await acceptor.async_accept(asio::redirect_error(asio::use_awaitable, code));
        if (!running) co_return;
        if (!code) {
            admit(std::move(socket));
            continue;
        }
        if (limiter.allow()) log::warning("peer listener: accept: {}", code.message());
        accept_pause.expires_after(accept_pause_after_error);
        co_await accept_pause.async_wait(asio::redirect_error(asio::use_awaitable, code));
    }
}

void Peers::Impl::admit(Tcp::socket socket) {
    asio::error_code code;
    const auto remote = socket.remote_endpoint(code);
    if (code) return;  // gone already
    const Tcp::endpoint from(plain(remote.address()), remote.port());
    bool known = false;
    for (const auto& [name, peer] : peers) known = known || has_address(peer, from.address());
    const auto same = unauthenticated_from.find(from.address());
    if ((known ? unauthenticated_known : unauthenticated) >= config.max_unauthenticated ||
        (same != unauthenticated_from.end() && same->second >= std::max<size_t>(config.max_unauthenticated / 2, 1))) {
        refuse_incoming(from, "", Error(Errc::busy, "too many connections have not yet said who they are"));
        return;
    }
    set_tcp_options(socket);
    spawn(io.get_executor(), authenticate(shared_from_this(), std::move(socket), from, known), "incoming peer");
}

asio::awaitable<void> Peers::Impl::authenticate(std::shared_ptr<Impl> self, Tcp::socket socket, Tcp::endpoint from,
                                                bool known) {
    const Slot slot(*self, from.address(), known);
    asio::steady_timer held(io, refused_hold);
    const auto used = identity;
    auto stream = make_tls_stream(std::move(socket), used);
    std::string host;
    Status taken = co_await shake_incoming(*stream, *used, host);
    if (taken) taken = co_await receive_hello(std::move(stream), host);
    if (taken || !running) co_return;
    refuse_incoming(from, host, taken.error());
    const Unfinished open(*this, [&] {
        held.cancel();
        if (stream) stream->close();
    });
    if (stream) co_await drain(*stream);  // the handshake failed
    asio::error_code ignored;
    co_await held.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
}

// `host`, here and below: whose it says that it is, as far as that is known.
asio::awaitable<Status> Peers::Impl::shake_incoming(TlsStream& stream, const Identity& used, std::string& host) {
    const auto verdict = watch_verification(stream.layer());
    const Unfinished open(*this, [&] { stream.close(); });
    const Deadline deadline(stream.executor(), config.handshake_timeout, [&] { stream.close(); });
    asio::error_code code;
    co_await stream.layer().async_handshake(asio::ssl::stream_base::server,
                                            asio::redirect_error(asio::use_awaitable, code));
    if (!running) co_return stopping();
    if (!code) co_return Status();
    host = verdict->certificate.host;
    if (deadline.expired()) co_return Error(Errc::timeout, "no TLS handshake in time");
    co_return verdict->error != X509_V_OK ? verdict_error(*verdict, used) : tls_error(code, used.own_path);
}

Status Peers::Impl::admit_certificate(const pki::CertInfo& certificate) const {
    TRY(check_role(certificate));
    if (certificate.host == config.host)
        return Error(Errc::refused, fmt::format("'{}' is this host's own name", config.host));
    if (peers.contains(certificate.host)) return {};
    return Error(Errc::refused,
                 fmt::format("host '{}' is not a configured peer of '{}'", certificate.host, config.host));
}

// The certificate's chain is good. Name and role are judged now and told in the answer to the first hello.
asio::awaitable<Status> Peers::Impl::receive_hello(std::unique_ptr<TlsStream> stream, std::string& host) {
    Result<PeerCertificate> shown = peer_certificate(stream->layer());
    if (!shown) co_return shown.error();
    host = shown->info.host;
    const auto greeting = std::make_shared<Greeting>(io, config.handshake_timeout);
    rpc::Context context;
    context.peer = host;
    context.role = shown->info.role;
    context.from = fmt::format("peer {}", host);
    rpc::Limits limits;
    limits.silence_is_death = true;
    auto connection = rpc::Connection::start(std::move(stream), gate(greeting, shown->info), context, limits,
                                             [greeting](const Error&) { greeting->done.cancel(); });
    const Unfinished open(*this, [&] { connection->close(stopping()); });
    asio::error_code ignored;
    co_await greeting->done.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
    if (!running) {
        connection->close(stopping());
        co_return stopping();
    }
    if (!connection->is_open()) co_return connection->close_reason();
    if (!greeting->verdict) {
        connection->close_after_flush(greeting->verdict.error());
        co_return greeting->verdict;
    }
    // The answer to hello is written after this, so the peer's next request already finds the real methods.
    connection->set_dispatcher(dispatcher);
    connection->set_idle_timeout(std::max(config.ping_interval * silent_pings, config.ping_timeout));
    take_accepted(peers.at(host), connection, std::move(shown->x509));
    co_return Status();
}

rpc::Dispatcher Peers::Impl::gate(std::shared_ptr<Greeting> greeting, pki::CertInfo certificate) {
    rpc::Dispatcher out;
    out.on("hello",
           [weak = weak_from_this(), greeting = std::move(greeting), certificate = std::move(certificate)](
               rpc::Context&, Json said) -> asio::awaitable<Result<Json>> {
               const auto self = weak.lock();
               if (!self || !self->running) co_return stopping();
               if (std::exchange(greeting->said, true)) co_return Error(Errc::refused, "hello was said already");
               greeting->verdict = self->admit_certificate(certificate);
               if (greeting->verdict) greeting->verdict = self->check_hello(said, certificate.host);
               greeting->done.cancel();
               CO_TRY(greeting->verdict);
               self->take_info(self->peers.at(certificate.host), said);
               co_return self->hello();
           });
    return out;
}

// One connection a peer: when it dials again, it has lost the old one, even where that looks open from here.
void Peers::Impl::take_accepted(Peer& peer, std::shared_ptr<rpc::Connection> connection, pki::X509Ptr certificate) {
    if (peer.accepted) peer.accepted->close(Error(Errc::unreachable, "replaced by a newer connection of this host"));
    peer.accepted = std::move(connection);
    peer.accepted_certificate = std::move(certificate);
    peer.incoming_error.clear();
    log::info("peer {}: accepted its connection", peer.where.name);
    if (peer.state == PeerState::connecting) kick(peer);
}

void Peers::Impl::refuse_incoming(const Tcp::endpoint& from, const std::string& host, const Error& why) {
    for (auto& [name, peer] : peers) {
        if (peers.contains(host) ? name == host : has_address(peer, from.address()))
            peer.incoming_error = why.message();
    }
    if (!limiter.allow()) return;
    const size_t held = limiter.take_held();
    const bool v4 = from.address().is_v4();
    log::warning("refused a peer's connection from {}{}{}:{}: {}{}", v4 ? "" : "[", from.address().to_string(),
                 v4 ? "" : "]", from.port(), printable(why.message(), 500),
                 held == 0 ? "" : fmt::format(" ({} more such lines were held back)", held));
}

}  // namespace banana::peer
