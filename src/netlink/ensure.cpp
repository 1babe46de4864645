#include "netlink/ensure.h"

#include "netlink/change.h"

namespace banana::netlink {

namespace {

std::string shown(const IpAddress& address) { return address.family ? address.text() : "none"; }

std::optional<std::string> differs(const std::string& what, const std::string& is, const std::string& wanted) {
    if (is == wanted) return std::nullopt;
    return "its " + what + " is " + is + ", not " + wanted;
}

std::optional<std::string> kind_differs(const Link& link, const std::string& wanted) {
    return differs("kind", link.kind.empty() ? "hardware" : link.kind, wanted);
}

// Found or made, the link is there: give it what it lacks, and say what it is then.
Result<Link> settle(Socket& socket, Link found, const LinkOptions& options) {
    Requests steps = corrections(found, options);
    if (steps.empty()) return found;
    TRY(socket.sequence(steps));
    return link(socket, found.index);
}

template <class Spec>
Result<Link> found_or_error(Socket& socket, const Spec& spec) {
    TRY_SET(Link found, link(socket, spec.name));
    if (auto why = difference(found, spec))
        return Error(Errc::exists, "use the existing link " + spec.name + ": " + *why);
    return found;
}

template <class Spec>
Result<Link> ensure_made(Socket& socket, const Spec& spec) {
    Requests steps = create(spec);
    Status made = socket.request(steps.front());
    if (!made && made.error().code() == Errc::exists) {
        // Or something else of it is taken (a VNI): then there is no link of that name, and the kernel's text stands.
        auto found = found_or_error(socket, spec);
        if (!found && found.error().code() == Errc::not_found) return made.error();
        if (!found) return found.error();
        return settle(socket, std::move(*found), spec.options);
    }
    TRY(made);
    made = socket.sequence(std::span(steps).subspan(1));
    if (made) return link(socket, spec.name);
    (void)socket.request(delete_link(spec.name));
    return made.error();
}
}  // namespace

std::optional<std::string> difference(const Link& link, const VethSpec&) { return kind_differs(link, "veth"); }

std::optional<std::string> difference(const Link& link, const BridgeSpec& spec) {
    if (auto why = kind_differs(link, "bridge")) return why;
    // It could be switched, but whoever has VLANs configured there would not thank us.
    bool filtering = link.bridge && link.bridge->vlan_filtering;
    return differs("VLAN filtering", filtering ? "on" : "off", spec.vlan_filtering ? "on" : "off");
}

std::optional<std::string> difference(const Link& link, const TapSpec&) { return kind_differs(link, "tun"); }

std::optional<std::string> difference(const Link& link, const MacvtapSpec& spec) {
    if (auto why = kind_differs(link, "macvtap")) return why;
    if (auto why = differs("lower device", "#" + std::to_string(link.peer), "#" + std::to_string(spec.lower)))
        return why;
    return differs("mode", std::to_string(link.macvlan_mode), std::to_string(spec.mode));
}

std::optional<std::string> difference(const Link& link, const VxlanSpec& spec) {
    if (auto why = kind_differs(link, "vxlan")) return why;
    if (!link.vxlan) return "the kernel does not say what it is";
    const VxlanInfo& is = *link.vxlan;
    if (auto why = differs("VNI", std::to_string(is.vni), std::to_string(spec.vni))) return why;
    if (auto why = differs("remote address", shown(is.remote), shown(spec.remote))) return why;
    if (auto why = differs("local address", shown(is.local), shown(spec.local))) return why;
    if (auto why = differs("UDP port", std::to_string(is.port), std::to_string(spec.port))) return why;
    if (auto why = differs("lower device", "#" + std::to_string(is.lower), "#0")) return why;
    return differs("learning", is.learning ? "on" : "off", spec.learning ? "on" : "off");
}

Requests corrections(const Link& link, const LinkOptions& options) {
    LinkChange change;
    if (options.mac && link.mac != *options.mac) change.mac = options.mac;
    if (options.mtu && link.mtu != options.mtu) change.mtu = options.mtu;
    if (options.txqueuelen && link.txqueuelen != options.txqueuelen) change.txqueuelen = options.txqueuelen;
    if (options.master && link.master != options.master) change.master = options.master;
    if (!options.alias.empty() && link.alias != options.alias) change.alias = options.alias;
    if (options.up && !link.up) change.up = true;
    Requests steps;
    if (!options.ipv6 && !link.ipv6_disabled) steps.push_back(disable_ipv6(link.name));
    bool any = change.mac || change.mtu || change.txqueuelen || change.master || change.alias || change.up;
    if (any) steps.push_back(set_link(link.index, change));
    return steps;
}

Result<Link> ensure(Socket& socket, const BridgeSpec& spec) {
    TRY_SET(Link made, ensure_made(socket, spec));
    BridgeInfo wanted{false, spec.multicast_snooping, spec.vlan_filtering, 0, spec.ageing_s * 100};
    if (made.bridge == wanted) return made;
    TRY(socket.request(set_bridge(made.index, spec)));
    return link(socket, made.index);
}
Result<Link> ensure(Socket& socket, const VxlanSpec& spec) { return ensure_made(socket, spec); }
Result<Link> ensure(Socket& socket, const MacvtapSpec& spec) { return ensure_made(socket, spec); }

Result<Link> ensure(Socket& socket, const VethSpec& spec) {
    TRY_SET(Link made, ensure_made(socket, spec));
    auto peer = link(socket, spec.peer);
    if (!peer || peer->index != made.peer || made.peer_elsewhere)
        return Error(Errc::exists, "use the existing link " + spec.name + ": its peer is not " + spec.peer);
    TRY(settle(socket, std::move(*peer), spec.peer_options));
    return made;
}

Result<Link> ensure(Socket& socket, const TapSpec& spec, const LinkOptions& options) {
    auto found = found_or_error(socket, spec);
    if (!found && found.error().code() != Errc::not_found) return found.error();
    bool made = !found.ok();
    if (made) {
        TapSpec persistent = spec;
        persistent.persistent = true;
        TRY(create_tap(persistent));
        found = link(socket, spec.name);
        if (!found) return found.error();
    }
    auto settled = settle(socket, std::move(*found), options);
    if (!settled && made) (void)socket.request(delete_link(spec.name));
    return settled;
}

}  // namespace banana::netlink
