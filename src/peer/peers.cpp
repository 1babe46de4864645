#include "peer/peers.h"

#include <fmt/core.h>

#include <asio/redirect_error.hpp>
#include <asio/use_awaitable.hpp>
#include <tuple>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/log.h"
#include "peer/peers_impl.h"
#include "peer/spawn.h"

namespace banana::peer {

using rpc::spawn;

namespace {
constexpr std::chrono::seconds sweep_interval{60};  // certificates expire while their connection stands
int64_t now_s() { return wall_ns() / 1'000'000'000; }
}  // namespace

const char* state_name(PeerState state) {
    switch (state) {
        case PeerState::connecting: return "connecting";
        case PeerState::refused: return "refused";
        case PeerState::up: return "up";
    }
    return "?";
}

bool LogLimiter::allow() {
    const int64_t now = monotonic_ns();
    if (now - window_start_ > window_ns) {
        window_start_ = now;
        written_ = 0;
    }
    if (written_ < burst) {
        ++written_;
        return true;
    }
    ++held_;
    return false;
}

Deadline::Deadline(const asio::any_io_executor& executor, milliseconds after, std::function<void()> expire)
    : state_(std::make_shared<State>()), timer_(executor, after) {
    state_->expire = std::move(expire);
    timer_.async_wait([state = state_](const asio::error_code& code) {
        if (code || !state->armed) return;
        state->expired = true;
        state->expire();
    });
}

Peers::Impl::Impl(asio::io_context& i, Config c, rpc::Dispatcher d)
    : io(i), config(std::move(c)), dispatcher(std::move(d)), sweep_timer(i), acceptor(i), accept_pause(i) {
    for (const auto& address : config.peers) add(address);
}

Peer* Peers::Impl::add(const PeerAddress& address) {
    const auto [at, is_new] = peers.emplace(std::piecewise_construct, std::forward_as_tuple(address.name),
                                            std::forward_as_tuple(io, address));
    if (!is_new) return nullptr;
    at->second.since = now_s();
    at->second.error = "not tried yet";
    return &at->second;
}

Peers::Peers(asio::io_context& io, Config config, rpc::Dispatcher dispatcher)
    : impl_(std::make_shared<Impl>(io, std::move(config), std::move(dispatcher))) {
    impl_->add_own_methods();
}
Peers::~Peers() { stop(); }

void Peers::Impl::add_own_methods() {
    dispatcher.on("ping", [](rpc::Context&, Json) -> asio::awaitable<Result<Json>> { co_return Json::object(); });
    dispatcher.on("peer.update",
                  [weak = weak_from_this()](rpc::Context& context, Json params) -> asio::awaitable<Result<Json>> {
                      const auto self = weak.lock();
                      if (!self) co_return Error(Errc::unreachable, "the daemon is stopping");
                      CO_TRY(self->check_hello(params, context.peer));
                      if (const auto found = self->peers.find(context.peer); found != self->peers.end())
                          self->take_info(found->second, params);
                      co_return Json::object();
                  });
}

Status Peers::Impl::load(bool must_fit) {
    TRY_SET(auto loaded, Identity::load(config.ca, config.certificate, config.key));
    if (const auto problem = loaded->problem(config.host); !problem.empty()) {
        const std::string text = fmt::format("peers will refuse this host ({}): {}", config.certificate, problem);
        if (must_fit) return Error(Errc::refused, text + "; the one that was in use stays");
        log::warning("{}", text);
    }
    identity = std::move(loaded);
    return {};
}

std::string Peers::problem() const {
    return impl_->identity ? impl_->identity->problem(impl_->config.host) : "no certificate is loaded";
}

Status Peers::start() {
    TRY(impl_->load(false).context("peer certificates"));
    TRY(impl_->listen());
    impl_->running = true;
    spawn(impl_->io.get_executor(), impl_->accept_loop(impl_), "peer listener");
    spawn(impl_->io.get_executor(), impl_->sweep_loop(impl_), "peer certificate sweep");
    for (auto& [name, peer] : impl_->peers)
        spawn(impl_->io.get_executor(), impl_->dial_loop(impl_, peer), "peer dialler");
    return {};
}

void Peers::stop() {
    Impl& impl = *impl_;
    if (!std::exchange(impl.running, false)) return;
    asio::error_code ignored;
    impl.acceptor.close(ignored);
    impl.accept_pause.cancel();
    impl.sweep_timer.cancel();
    const Error why(Errc::unreachable, "the daemon is stopping");
    for (const auto& end : impl.unfinished) end();
    for (auto& [name, peer] : impl.peers) {
        peer.retry.cancel();
        peer.ping.cancel();
        if (peer.dialled) peer.dialled->close(why);
        if (peer.accepted) peer.accepted->close(why);
    }
}

Status Peers::reload() {
    TRY(impl_->load(true).context("peer certificates"));
    impl_->verify_connections();
    for (auto& [name, peer] : impl_->peers) impl_->kick(peer);
    return {};
}

void Peers::add(const PeerAddress& address) {
    Peer* peer = impl_->add(address);
    if (peer != nullptr && impl_->running)
        spawn(impl_->io.get_executor(), impl_->dial_loop(impl_, *peer), "peer dialler");
}

uint16_t Peers::port() const {
    asio::error_code code;
    return impl_->acceptor.local_endpoint(code).port();
}

void Peers::on_up(Callback callback) { impl_->on_up = std::move(callback); }
void Peers::on_down(Callback callback) { impl_->on_down = std::move(callback); }
void Peers::on_changed(Callback callback) { impl_->on_changed = std::move(callback); }

// The one place where a peer's state changes. A peer that fails the same way again and again is logged once.
void Peers::Impl::set_state(Peer& peer, PeerState state, const std::string& error) {
    const PeerState old = peer.state;
    const bool news = old != state || (peer.error != error && !error.empty());
    if (old == PeerState::up && state != old) peer.last_loss = error;
    peer.error = error;
    if (old != state) peer.since = now_s();
    peer.state = state;
    if (!news) return;
    const auto level = state == PeerState::up ? log::Level::notice : log::Level::warning;
    log::write(level,
               fmt::format("peer {} ({}:{}): {} -> {}{}", peer.where.name, peer.where.address, peer.where.port,
                           state_name(old), state_name(state), error.empty() ? "" : ": " + printable(error, 500)));
}

Json Peers::Impl::hello() const {
    Json out = Json::object();
    out.set("protocol", config.protocol);
    out.set("host", config.host);
    out.set("site", config.site);
    out.set("version", config.version);
    out.set("capabilities", config.capabilities.is_null() ? Json::object() : config.capabilities);
    return out;
}

Status Peers::Impl::check_hello(const Json& said, const std::string& expected_host) const {
    TRY_SET(const int64_t protocol, said.integer("protocol"));
    if (protocol != config.protocol)
        return Error(Errc::refused, fmt::format("'{}' speaks protocol {}, '{}' speaks {}", expected_host, protocol,
                                                config.host, config.protocol));
    TRY_SET(const std::string host, said.string("host"));
    if (host == expected_host) return {};
    return Error(Errc::refused, fmt::format("certificate of host '{}', but it says that it is '{}'", expected_host,
                                            printable(host, 40)));
}

void Peers::Impl::take_info(Peer& peer, const Json& info) {
    const bool news = peer.info.dump() != info.dump();
    peer.info = info;
    if (news && running && on_changed) on_changed(peer.where.name);
}

void Peers::Impl::kick(Peer& peer) {
    if (peer.state == PeerState::up) return;
    peer.kicked = true;
    peer.retry.cancel();
}

void Peers::Impl::verify_connections() {
    const auto check = [this](const std::shared_ptr<rpc::Connection>& connection, X509* certificate) {
        if (!connection || !connection->is_open() || certificate == nullptr) return;
        if (auto good = identity->verify(certificate); !good) connection->close(good.error());
    };
    for (auto& [name, peer] : peers) {
        check(peer.dialled, peer.dialled_certificate.get());
        check(peer.accepted, peer.accepted_certificate.get());
    }
}

asio::awaitable<void> Peers::Impl::sweep_loop(std::shared_ptr<Impl> self) {
    while (self->running) {
        asio::error_code ignored;
        sweep_timer.expires_after(sweep_interval);
        co_await sweep_timer.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
        if (running) verify_connections();
    }
}

Result<std::shared_ptr<rpc::Connection>> Peers::Impl::connection_to(const std::string& name) const {
    const auto found = peers.find(name);
    if (found == peers.end()) return Error(Errc::not_found, fmt::format("'{}' is not a peer", printable(name, 40)));
    const Peer& peer = found->second;
    if (peer.state == PeerState::up && peer.dialled && peer.dialled->is_open()) return peer.dialled;
    const bool just_lost = peer.state == PeerState::up && peer.dialled;
    return Error(Errc::unreachable, fmt::format("peer {} is not up: {}", name,
                                                just_lost ? peer.dialled->close_reason().message() : peer.error));
}

asio::awaitable<Result<Json>> Peers::call(std::string name, std::string method, Json params, milliseconds timeout) {
    CO_TRY_SET(const auto connection, impl_->connection_to(name));
    const Result<Json> answer = co_await connection->call(std::move(method), std::move(params), timeout);
    co_return answer.context("peer " + name);
}

Status Peers::notify(const std::string& name, const std::string& method, const Json& params) {
    TRY_SET(const auto connection, impl_->connection_to(name));
    return connection->notify(method, params).context("peer " + name);
}

bool Peers::is_up(const std::string& name) const { return impl_->connection_to(name).ok(); }

std::vector<std::string> Peers::names() const {
    std::vector<std::string> out;
    for (const auto& [name, peer] : impl_->peers) out.push_back(name);
    return out;
}

Json Peers::info(const std::string& name) const {
    const auto found = impl_->peers.find(name);
    return found == impl_->peers.end() ? Json() : found->second.info;
}

void Peers::set_capabilities(Json capabilities) {
    impl_->config.capabilities = std::move(capabilities);
    // A peer that is just being greeted may miss this: its hello then says it.
    for (const auto& name : names()) [[maybe_unused]] const auto told = notify(name, "peer.update", impl_->hello());
}

Json Peers::status() const {
    Json out = Json::array();
    for (const auto& [name, peer] : impl_->peers) {
        Json entry = Json::object();
        entry.set("name", name);
        entry.set("address", peer.where.address);
        entry.set("port", int{peer.where.port});
        entry.set("state", state_name(peer.state));
        entry.set("since", peer.since);
        entry.set("error", peer.error);
        if (!peer.last_loss.empty()) entry.set("last_loss", peer.last_loss);
        entry.set("rtt_us", peer.rtt_us);
        entry.set("info", peer.info);
        if (peer.state == PeerState::up) entry.set("certificate", peer.certificate.json());
        entry.set("incoming", peer.accepted && peer.accepted->is_open());
        entry.set("incoming_error", peer.incoming_error);
        out.push(entry);
    }
    return out;
}

}  // namespace banana::peer
