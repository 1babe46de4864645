#include "controller/config_change.h"

#include <algorithm>

namespace banana::controller {

namespace {

const PeerConfig* find(const std::vector<PeerConfig>& peers, const std::string& name) {
    const auto found = std::find_if(peers.begin(), peers.end(), [&](const auto& peer) { return peer.name == name; });
    return found == peers.end() ? nullptr : &*found;
}

void compare_peers(const Config& running, const Config& fresh, ConfigChange& change) {
    for (const auto& peer : fresh.peers) {
        const PeerConfig* known = find(running.peers, peer.name);
        if (known == nullptr)
            change.new_peers.push_back(peer);
        else if (*known != peer)
            change.restart.push_back("[[peer]] " + peer.name);
    }
    for (const auto& peer : running.peers)
        if (find(fresh.peers, peer.name) == nullptr) change.restart.push_back("[[peer]] " + peer.name);
}

}  // namespace

ConfigChange compare(const Config& running, const Config& fresh) {
    ConfigChange change;
    change.limits = running.limits != fresh.limits;
    change.log_level = running.log_level != fresh.log_level;
    const auto key = [&](const char* name, const auto& before, const auto& after) {
        if (!(before == after)) change.restart.emplace_back(name);
    };
    key("host", running.host, fresh.host);
    key("site", running.site, fresh.site);
    key("underlay", running.underlay, fresh.underlay);
    key("underlay_mtu", running.underlay_mtu, fresh.underlay_mtu);
    key("listen", running.listen, fresh.listen);
    key("port", running.port, fresh.port);
    key("[tls] ca", running.tls.ca, fresh.tls.ca);
    key("[tls] certificate", running.tls.certificate, fresh.tls.certificate);
    key("[tls] key", running.tls.key, fresh.tls.key);
    key("[libvirt] uri", running.libvirt_uri, fresh.libvirt_uri);
    key("[vxlan] port", running.vxlan_port, fresh.vxlan_port);
    const TunnelConfig &before = running.tunnel, &after = fresh.tunnel;
    key("[tunnel] port", before.port, after.port);
    key("[tunnel] lanes", before.lanes, after.lanes);
    key("[tunnel] cpus", before.cpus, after.cpus);
    key("[tunnel] poll", before.poll, after.poll);
    key("[tunnel] certificate", before.certificate, after.certificate);
    key("[tunnel] key", before.key, after.key);
    key("[tunnel] socket", before.socket, after.socket);
    key("[tunnel] spawn", before.spawn, after.spawn);
    key("[tunnel] rekey_seconds", before.rekey_seconds, after.rekey_seconds);
    key("[tunnel] rekey_records", before.rekey_records, after.rekey_records);
    compare_peers(running, fresh, change);
    return change;
}

}  // namespace banana::controller
