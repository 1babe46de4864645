// The calls that concern libvirt's networks.
//
// Why running guests notice nothing: libvirt changes a running network by destroying and creating it only, and forgets
// its guests' ports thereby (their later unplugging then fails). So that is done to one without ports alone. A new
// definition beside a running network is harmless: it waits for the next start.
#include "controller/libvirt_network_xml.h"

#include <optional>

#include "controller/libvirt_core.h"

namespace banana::controller {

namespace {

// A null owner: there is no such network.
Result<NetworkOwner> look_up(virConnectPtr connection, const std::string& name, const std::string& what) {
    NetworkOwner network(virNetworkLookupByName(connection, name.c_str()));
    if (!network && virGetLastErrorCode() != VIR_ERR_NO_NETWORK) return last_error(what);
    return network;
}

Result<NetworkDefinition> definition_of(virNetworkPtr network, unsigned flags, const std::string& what) {
    const LibvirtText text(virNetworkGetXMLDesc(network, flags));
    if (!text) return last_error(what);
    auto parsed = parse_network_definition(text.get());
    return parsed ? parsed : parsed.error().context(what);
}

Result<bool> yes(int answer, const std::string& what) {
    if (answer < 0) return last_error(what);
    return answer > 0;
}

Status done(int answer, const std::string& what) {
    if (answer < 0) return last_error(what);
    return {};
}

Status define(virConnectPtr connection, const std::string& xml, const std::string& what) {
    const NetworkOwner defined(virNetworkDefineXML(connection, xml.c_str()));
    if (!defined) return last_error(what);
    return {};
}

Status autostart(virNetworkPtr network, const std::string& what) {
    int set = 0;
    TRY(done(virNetworkGetAutostart(network, &set), what));
    return set ? Status() : done(virNetworkSetAutostart(network, 1), what + ": autostart");
}

// Unknown counts as in use.
bool in_use(virNetworkPtr network) {
    LibvirtList<virNetworkPort> ports;
    const int count = virNetworkListAllPorts(network, ports.out(), 0);
    ports.set_size(count < 0 ? 0 : count);
    return count != 0;
}

// Brings the running network to `wanted`, or says that it must wait.
Result<NetworkOutcome> run_as_defined(virNetworkPtr network, const NetworkDefinition& wanted, const std::string& what) {
    TRY_SET(const bool active, yes(virNetworkIsActive(network), what));
    if (active) {
        TRY_SET(const NetworkDefinition running, definition_of(network, 0, what));
        if (running.same(wanted)) return NetworkOutcome::unchanged;
        if (in_use(network)) return NetworkOutcome::pending;
        TRY(done(virNetworkDestroy(network), what + ": stop the old one"));
    }
    TRY(done(virNetworkCreate(network), what + ": start"));
    return NetworkOutcome::changed;
}

Result<NetworkOutcome> ensure(virConnectPtr connection, const NetworkDefinition& wanted, const std::string& xml,
                              const std::string& what) {
    TRY_SET(NetworkOwner network, look_up(connection, wanted.name, what));
    const bool create = !network;
    bool redefine = create;
    std::string text = xml;
    if (!create) {
        TRY_SET(const NetworkDefinition present, definition_of(network.get(), VIR_NETWORK_XML_INACTIVE, what));
        if (!present.ours()) return Error(Errc::exists, what + ": a network of this name exists and is not Banana's");
        TRY_SET(const bool persistent, yes(virNetworkIsPersistent(network.get()), what));
        redefine = !persistent || !present.same(wanted);
        TRY_SET(text, with_uuid(xml, present.uuid));
    }
    if (redefine) {
        TRY(define(connection, text, what));
        TRY_SET(network, look_up(connection, wanted.name, what));
        if (!network) return Error(Errc::busy, what + ": somebody removed it just now");
    }
    TRY(autostart(network.get(), what));
    TRY_SET(const NetworkOutcome outcome, run_as_defined(network.get(), wanted, what));
    if (create) return NetworkOutcome::created;
    return redefine && outcome == NetworkOutcome::unchanged ? NetworkOutcome::changed : outcome;
}

Status remove(virConnectPtr connection, const std::string& name, const std::string& what) {
    TRY_SET(const NetworkOwner network, look_up(connection, name, what));
    if (!network) return {};
    TRY_SET(const NetworkDefinition present, definition_of(network.get(), VIR_NETWORK_XML_INACTIVE, what));
    if (!present.ours()) return Error(Errc::refused, what + ": it is not Banana's");
    TRY_SET(const bool persistent, yes(virNetworkIsPersistent(network.get()), what));
    TRY_SET(const bool active, yes(virNetworkIsActive(network.get()), what));
    if (active) TRY(done(virNetworkDestroy(network.get()), what + ": stop"));
    // A transient network is gone once it has stopped.
    return persistent ? done(virNetworkUndefine(network.get()), what) : Status();
}

Result<NetworkEntry> entry_of(virNetworkPtr network, const std::string& what) {
    TRY_SET(const NetworkDefinition definition, definition_of(network, 0, what));
    NetworkEntry entry{definition.name, definition.uuid, definition.bridge, false, false, definition.ours()};
    TRY_SET(entry.active, yes(virNetworkIsActive(network), what));
    int set = 0;
    if (virNetworkGetAutostart(network, &set) < 0 && virGetLastErrorCode() == VIR_ERR_NO_NETWORK)
        return last_error(what);
    entry.autostart = set != 0;  // a transient network has none
    return entry;
}

Result<std::vector<NetworkEntry>> list_networks(virConnectPtr connection, const std::string& what) {
    LibvirtList<virNetwork> networks;
    const int count = virConnectListAllNetworks(connection, networks.out(), 0);
    if (count < 0) return last_error(what);
    networks.set_size(count);
    std::vector<NetworkEntry> entries;
    for (virNetworkPtr network : networks) {
        auto entry = entry_of(network, what);
        if (entry) {
            entries.push_back(std::move(*entry));
        } else if (entry.error().code() != Errc::not_found) {  // gone since it was listed
            return entry.error();
        }
    }
    return entries;
}

// Checked before libvirtd is asked: the wrong XML is our own mistake.
Result<NetworkDefinition> check(const std::string& name, const std::string& xml, const std::string& what) {
    auto wanted = parse_network_definition(xml);
    if (!wanted) return wanted.error().context(what);
    if (wanted->name != name) return Error(Errc::invalid, what + ": the XML defines network " + wanted->name);
    if (!wanted->ours()) return Error(Errc::invalid, what + ": the XML has no metadata of " + metadata_uri);
    return wanted;
}

}  // namespace

Libvirt::Awaitable<std::vector<NetworkEntry>> Libvirt::networks(Milliseconds deadline) {
    const std::string what = "list networks";
    return LibvirtCore::run<std::vector<NetworkEntry>>(
        core_, what, deadline, [what](virConnectPtr connection) { return list_networks(connection, what); });
}

Libvirt::Awaitable<NetworkOutcome> Libvirt::ensure_network(std::string name, std::string xml, Milliseconds deadline) {
    const std::string what = "ensure network " + name;
    return LibvirtCore::run<NetworkOutcome>(core_, what, deadline,
                                            [what, name, xml](virConnectPtr connection) -> Result<NetworkOutcome> {
                                                TRY_SET(const NetworkDefinition wanted, check(name, xml, what));
                                                return ensure(connection, wanted, xml, what);
                                            });
}

Libvirt::Awaitable<void> Libvirt::remove_network(std::string name, Milliseconds deadline) {
    const std::string what = "remove network " + name;
    return LibvirtCore::run<void>(core_, what, deadline,
                                  [what, name](virConnectPtr connection) { return remove(connection, name, what); });
}

}  // namespace banana::controller
