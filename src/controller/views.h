// Views: what the CLI asks to be shown; nothing here changes anything but `reload`.
//
// Methods served (control): status, wire.list, wire.show, wire.probe, peer.list, doctor, reload.
// Threading: the io_context's single thread.
#pragma once

#include "controller/options.h"
#include "controller/spikes.h"

namespace banana::controller {

class Views {
public:
    Views(Node& node, Corms& corms, Wires& wires, Spikes& spikes, migration::Grants& grants, Options options);
    void serve();

private:
    Json status();
    bool wired_elsewhere(const model::Spike& spike) const;
    Json wire_list();
    Result<Json> wire_show(const std::string& name);
    asio::awaitable<void> add_tunnel(Json& shown);
    Async<Json> probe(Json params);
    Result<Json> reload();

    // A wire as either side knows it; both, when Corm and Spike are on this host.
    Json json_of(const model::Wire& wire) const;
    Json json_of(const model::Spike& spike) const;
    Json port_counters(const std::string& port, const std::string& device, wiring::Direction direction);
    Json underlay_of(model::Format format, const IpAddress& remote, uint32_t mtu) const;
    std::vector<std::string> warnings() const;

    Node& node_;
    Corms& corms_;
    Wires& wires_;
    Spikes& spikes_;
    migration::Grants& grants_;
    Options options_;
};

}  // namespace banana::controller
