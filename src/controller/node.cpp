#include "controller/node.h"

#include <fmt/core.h>

#include <algorithm>
#include <asio/redirect_error.hpp>
#include <asio/steady_timer.hpp>
#include <asio/use_awaitable.hpp>

#include "base/clock.h"
#include "netlink/address.h"

namespace banana::controller {

namespace {

peer::Config peer_config(const Config& config, const Json& capabilities) {
    peer::Config out;
    out.host = config.host;
    out.site = config.site;
    out.version = BANANA_VERSION;
    out.listen = config.listen;
    out.port = config.port;
    out.ca = config.tls.ca;
    out.certificate = config.tls.certificate;
    out.key = config.tls.key;
    out.capabilities = capabilities;
    for (const auto& p : config.peers) out.peers.push_back({p.name, p.address, p.port});
    return out;
}

}  // namespace

Node::Node(asio::io_context& io_context, Config configuration, wiring::Engine engine_, registry::Store store_)
    : io(io_context),
      config(std::move(configuration)),
      engine(std::move(engine_)),
      plans(io, engine),
      store(std::move(store_)),
      locks(io),
      prober(io),
      tunnel(io, config, store),
      peers(io, peer_config(config, self().json()), dispatcher),
      libvirt(io, config.libvirt_uri),
      started_ns(monotonic_ns()) {
    engine.set_tunnel(&tunnel);
    refresh_underlay();
}

Result<netlink::Link> Node::underlay_device() {
    auto& socket = engine.socket();
    TRY_SET(const auto links, netlink::links(socket, {0, "", false}));
    for (const auto& link : links) {
        const auto addresses = netlink::addresses(socket, link.index);
        if (!addresses) continue;
        for (const auto& address : *addresses)
            if (address.ip == config.underlay) return link;
    }
    return Error(Errc::not_found, fmt::format("{} is on no device of this host", config.underlay.text()));
}

uint32_t Node::find_underlay_mtu() {
    if (config.underlay_mtu) return static_cast<uint32_t>(*config.underlay_mtu);
    const auto device = underlay_device();
    return device ? device->mtu : 0;
}

Json Node::peer_status() const {
    const Json all = peers.status();
    for (size_t i = 0; i < all.size(); ++i) {
        Json peer = all.at(i), ours = tunnel.peer_status(peer.get("name").as_string());
        // The peer knows better than we do why it does not answer.
        const std::string its = peer.get("info").get("capabilities").get("tunnel").get("problem").as_string();
        if (ours.get("state").as_string() != "up" && !its.empty()) ours.set("reason", "there: " + printable(its));
        peer.set("tunnel", ours);
    }
    return all;
}

void Node::refresh_underlay() {
    underlay_mtu_ = find_underlay_mtu();
    tell_abilities();
}

void Node::tell_abilities() {
    const Json now = self().json();
    if (now.dump() == told_abilities_) return;
    told_abilities_ = now.dump();
    peers.set_capabilities(now);
}

void Node::peer_changed(const std::string& name) {
    if (const auto known = host(name)) tunnel.set_peer(*known);
}

model::Host Node::self() const {
    using model::Format;
    model::Host self{config.host, config.site, config.underlay, underlay_mtu_, {Format::native, Format::vxlan}, {}};
    self.tunnel = tunnel.end();
    if (self.tunnel.problem.empty()) self.formats.push_back(Format::dtls);
    return self;
}

Result<model::Host> Node::host(const std::string& name) const {
    if (name == config.host) return self();
    const auto configured =
        std::find_if(config.peers.begin(), config.peers.end(), [&](const auto& p) { return p.name == name; });
    if (configured == config.peers.end())
        return Error(Errc::not_found,
                     fmt::format("host {} is not among the peers of {} (bananad.toml)", name, config.host));
    const Json info = peers.info(name);
    if (info.is_null())
        return Error(Errc::unreachable, fmt::format("host {} is not connected (banana peer list)", name));
    TRY_SET(auto host, model::Host::from_json(info.get("capabilities")).context("capabilities of host " + name));
    if (configured->underlay) host.underlay = *configured->underlay;
    host.name = name;  // what the certificate says, not what the peer says
    return host;
}

Async<Json> Node::call(std::string host, std::string method, Json params) {
    const auto timeout = config.limits.peer_call_timeout;
    co_return co_await call(std::move(host), std::move(method), std::move(params), timeout);
}

Async<Json> Node::call(std::string host, std::string method, Json params, milliseconds timeout) {
    if (host != config.host)
        co_return co_await peers.call(std::move(host), std::move(method), std::move(params), timeout);
    const auto handler = dispatcher.find(method);
    if (!handler) co_return Error(fmt::format("bug: no method {} on this host", method));
    rpc::Context context;
    context.peer = config.host;
    context.role = "self";
    context.from = "this host";
    co_return co_await (*handler)(context, std::move(params));
}

void Node::spawn(asio::awaitable<void> coroutine, const char* what) {
    rpc::spawn(io.get_executor(), std::move(coroutine), what);
}

asio::awaitable<void> Node::sleep(milliseconds duration) {
    asio::steady_timer timer(io, duration);
    asio::error_code ignored;
    co_await timer.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
}

bool is_device_of(const netlink::Link& link, const Mac& mac) {
    return link.kind != "tun" || std::equal(mac.bytes.begin() + 1, mac.bytes.end(), link.mac.bytes.begin() + 1);
}

std::string caller(const Node& node, const rpc::Context& context) {
    return context.peer.empty() ? node.config.host : context.peer;
}

}  // namespace banana::controller
