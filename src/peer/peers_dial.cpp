// The connections that we make: one loop per peer, for ever. dial() goes through TCP, TLS, name and role, hello;
// keep_up() pings until the connection ends; between two attempts stands the back-off.
#include <fmt/core.h>

#include <algorithm>
#include <asio/redirect_error.hpp>
#include <asio/use_awaitable.hpp>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/log.h"
#include "peer/peers_impl.h"
#include "peer/spawn.h"

namespace banana::peer {

namespace {

constexpr int64_t settled_ns = 5'000'000'000;  // a connection that stood so long does not count as a failed attempt

// A quarter less to a quarter more, so that hosts that lost each other together do not come back together.
milliseconds jittered(milliseconds base) {
    const int64_t quarter = std::max<int64_t>(base.count() / 4, 1);
    return milliseconds(base.count() - quarter + static_cast<int64_t>(random_u32()) % (2 * quarter + 1));
}

// From the address that we listen on, where it is a certain one: the others know us by it.
asio::error_code open_towards(Tcp::socket& socket, const Tcp::endpoint& target, const std::string& listen) {
    asio::error_code code, none;
    socket.close(code);
    if (socket.open(target.protocol(), code); code) return code;
    const auto own = asio::ip::make_address(listen, none);
    if (own.is_unspecified() || own.is_v4() != target.address().is_v4()) return code;
    socket.bind(Tcp::endpoint(own, 0), code);
    return code;
}

std::string peer_text(const std::string& name) { return "peer " + name; }

}  // namespace

asio::awaitable<void> Peers::Impl::dial_loop(std::shared_ptr<Impl> self, Peer& peer) {
    milliseconds pause = config.retry_min;
    while (self->running) {
        Dialled dialled = co_await dial(peer);
        if (!running) break;
        std::optional<Error> why;
        if (dialled) {
            const int64_t up_since = monotonic_ns();
            peer.dialled = std::move(*dialled);
            set_state(peer, PeerState::up, "");
            if (on_up) on_up(peer.where.name);
            why = co_await keep_up(peer);
            if (!running) break;
            if (monotonic_ns() - up_since > settled_ns) pause = config.retry_min;
        } else {
            why = dialled.error();
        }
        const bool was_up = peer.state == PeerState::up;
        set_state(peer, why->code() == Errc::refused ? PeerState::refused : PeerState::connecting, why->message());
        if (was_up && on_down) on_down(peer.where.name);
        if (!std::exchange(peer.kicked, false)) {
            asio::error_code ignored;
            peer.retry.expires_after(jittered(pause));
            co_await peer.retry.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
            pause = std::min(pause * 2, config.retry_max);
        }
        if (std::exchange(peer.kicked, false)) pause = config.retry_min;
    }
    peer.dialled.reset();
}

asio::awaitable<Peers::Impl::Dialled> Peers::Impl::dial(Peer& peer) {
    auto stream = make_tls_stream(Tcp::socket(io), identity);
    {
        const Unfinished open(*this, [s = stream.get()] { s->close(); });
        CO_TRY(co_await connect(*stream, peer));
        CO_TRY(co_await shake_hands(*stream, peer));
    }
    co_return co_await greet(std::move(stream), peer);
}

asio::awaitable<Status> Peers::Impl::connect(TlsStream& stream, Peer& peer) {
    const PeerAddress& where = peer.where;
    const std::string what = fmt::format("connect to {}:{}", where.address, where.port);
    Tcp::resolver resolver(io);
    auto& socket = stream.layer().next_layer();
    const Deadline deadline(io.get_executor(), config.connect_timeout, [&] {
        resolver.cancel();
        stream.close();
    });
    const Error late(Errc::timeout, fmt::format("{}: no answer within {} ms", what, config.connect_timeout.count()));
    asio::error_code code;
    Tcp::resolver::results_type targets;
    if (const auto literal = asio::ip::make_address(where.address, code); !code)
        targets = Tcp::resolver::results_type::create(Tcp::endpoint(literal, where.port), "", "");
    else
        targets = co_await resolver.async_resolve(where.address, std::to_string(where.port),
                                                  asio::redirect_error(asio::use_awaitable, code));
    if (deadline.expired()) co_return late;
    if (code) co_return Error(Errc::unreachable, fmt::format("{}: {}", what, code.message()));
    peer.addresses.clear();
    for (const auto& target : targets) peer.addresses.push_back(plain(target.endpoint().address()));
    for (const auto& target : targets) {
        if (code = open_towards(socket, target.endpoint(), config.listen); !code)
            co_await socket.async_connect(target.endpoint(), asio::redirect_error(asio::use_awaitable, code));
        if (!code || deadline.expired() || !running) break;
    }
    if (deadline.expired()) co_return late;
    if (code) co_return Error(Errc::unreachable, fmt::format("{}: {}", what, code.message()));
    set_tcp_options(socket);
    co_return Status();
}

asio::awaitable<Status> Peers::Impl::shake_hands(TlsStream& stream, Peer& peer) {
    const auto used = identity;  // reload() may change it meanwhile
    const auto verdict = watch_verification(stream.layer());
    const Deadline deadline(io.get_executor(), config.handshake_timeout, [&] { stream.close(); });
    asio::error_code code;
    co_await stream.layer().async_handshake(asio::ssl::stream_base::client,
                                            asio::redirect_error(asio::use_awaitable, code));
    if (verdict->error != X509_V_OK) co_return verdict_error(*verdict, *used).context(peer_text(peer.where.name));
    if (deadline.expired())
        co_return Error(Errc::timeout,
                        fmt::format("TLS handshake with {}:{}: no answer within {} ms", peer.where.address,
                                    peer.where.port, config.handshake_timeout.count()));
    if (code)
        co_return tls_error(code, used->own_path)
            .context(fmt::format("TLS handshake with {}:{}", peer.where.address, peer.where.port));
    CO_TRY_SET(PeerCertificate certificate, peer_certificate(stream.layer()));
    CO_TRY(check_name(certificate.info, peer.where.name).context(peer_text(peer.where.name)));
    CO_TRY(check_role(certificate.info).context(peer_text(peer.where.name)));
    peer.dialled_certificate = std::move(certificate.x509);
    peer.certificate = std::move(certificate.info);
    co_return Status();
}

asio::awaitable<Peers::Impl::Dialled> Peers::Impl::greet(std::unique_ptr<TlsStream> stream, Peer& peer) {
    rpc::Context context;
    context.peer = peer.where.name;
    context.role = pki::role_controller;
    context.from = peer_text(peer.where.name);
    rpc::Limits limits;
    limits.write_timeout = config.ping_timeout;
    // The other end calls on the connection that it dials; nothing is served here.
    auto connection = rpc::Connection::start(std::move(stream), rpc::Dispatcher(), context, limits,
                                             [weak = weak_from_this(), &peer](const Error&) {
                                                 if (const auto self = weak.lock()) peer.ping.cancel();
                                             });
    const Unfinished open(*this, [&] { connection->close(Error(Errc::unreachable, "the daemon is stopping")); });
    const Json ours = hello();
    const Result<Json> theirs = co_await connection->call("hello", ours, config.handshake_timeout);
    std::optional<Error> why;
    if (theirs) {
        const Status good = check_hello(*theirs, peer.where.name);
        if (good) {
            take_info(peer, *theirs);
            co_return connection;
        }
        why = Error(Errc::refused, good.error().message());
    } else {
        // An alert about our certificate ends the connection, and says more than the failed call.
        why = connection->is_open() ? theirs.error() : connection->close_reason();
    }
    why = why->context(peer_text(peer.where.name));
    connection->close(*why);
    co_return *why;
}

// Returns when the connection has ended, with the reason.
asio::awaitable<Error> Peers::Impl::keep_up(Peer& peer) {
    const auto connection = peer.dialled;
    const Json nothing;
    while (running && connection->is_open()) {
        const int64_t asked = monotonic_ns();
        const Result<Json> answer = co_await connection->call("ping", nothing, config.ping_timeout);
        if (!answer && answer.error().code() == Errc::timeout)
            connection->close(
                Error(Errc::unreachable, fmt::format("no answer to a ping within {} ms", config.ping_timeout.count())));
        if (!running || !connection->is_open()) break;
        if (answer) peer.rtt_us = (monotonic_ns() - asked) / 1000;
        asio::error_code ignored;
        peer.ping.expires_after(config.ping_interval);
        co_await peer.ping.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
    }
    co_return connection->close_reason().context(peer_text(peer.where.name));
}

}  // namespace banana::peer
