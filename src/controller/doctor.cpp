#include "controller/doctor.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>

#include "base/clock.h"
#include "base/fd.h"
#include "controller/certificates.h"
#include "controller/hook_files.h"
#include "libvirt-hooks/domain_xml.h"
#include "model/names.h"

namespace banana::controller {

bool bridge_nf_call() {
    std::ifstream file("/proc/sys/net/bridge/bridge-nf-call-iptables");
    int value = 0;
    return (file >> value) && value != 0;
}

namespace {

std::string texts(const std::vector<std::string>& all) { return fmt::format("{}", fmt::join(all, "; ")); }

// What records take: the store's own words name no cause such as "Read-only file system".
Status try_to_write(const std::string& path) {
    const std::string what = "write " + path, page(4096, '\0');
    const Fd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!fd) return errno_error(errno, what);
    const ssize_t written = ::write(fd.get(), page.data(), page.size());
    const int error = written < 0 ? errno : ENOSPC;
    ::unlink(path.c_str());
    return written == static_cast<ssize_t>(page.size()) ? Status() : errno_error(error, what);
}

// Whether a step can only be taken when these devices are there.
bool needs(const wiring::Step& step, const std::set<std::string>& devices) {
    if (const auto* port = std::get_if<wiring::AttachPort>(&step)) return devices.contains(port->want.device);
    const auto* entry = std::get_if<wiring::SetEntry>(&step);
    return entry != nullptr && (devices.contains(entry->want.device) || devices.contains(entry->want.target));
}

}  // namespace

Doctor::Doctor(Node& node, Corms& corms, Wires& wires, Spikes& spikes, std::string state_dir)
    : node_(node),
      corms_(corms),
      wires_(wires),
      spikes_(spikes),
      state_dir_(std::move(state_dir)),
      peers_(node.peer_status()),
      checks_(Json::array()) {}

void Doctor::add(const std::string& name, bool ok, const std::string& text, const std::string& advice) {
    checks_.push(Json::object({{"name", name}, {"ok", ok}, {"text", text}, {"advice", ok ? "" : advice}}));
}

void Doctor::warn(const std::string& name, const std::string& text, const std::string& advice) {
    checks_.push(Json::object({{"name", name}, {"ok", true}, {"text", text}, {"advice", advice}, {"warning", true}}));
}

asio::awaitable<Json> Doctor::examine() {
    node_.refresh_underlay();
    add("bridge-nf-call", !bridge_nf_call(), "whether frames through bridges pass iptables",
        "sysctl net.bridge.bridge-nf-call-iptables=0");
    const bool tcx = node_.engine.crossconnect().mode() == xconnect::AttachMode::tcx;
    add("cross-connect", true,
        tcx ? "attached by tcx" : "attached by clsact: this kernel has no tcx, which Linux 6.6 brings", "");
    look_at_state();
    look_at_certificates();
    look_at_underlay();
    look_at_libvirt();
    look_at_tunnel();
    look_at_peers();
    look_at_corms();
    look_at_devices();
    co_await look_at_taps();
    look_at_kernel();
    look_at_senders();
    co_return Json::object({{"checks", checks_}});
}

void Doctor::look_at_state() {
    Status written = try_to_write(state_dir_ + "/doctor.tmp");
    if (written) {
        const auto record = node_.store.put("doctor", "written", Json::object());
        written = record ? node_.store.erase("doctor", "written") : record.error();
        if (!written) written = written.error().context(state_dir_ + "/state.db");
    }
    add("state", written.ok(), written ? "records can be written in " + state_dir_ : written.error().message(),
        "make room on its file system, or mount it writable: until then nothing can be started, connected or migrated "
        "here; what is wired goes on");
}

void Doctor::look_at_certificates() {
    const auto& config = node_.config;
    const CertificateReport report = examine_certificates(config, wall_ns() / 1'000'000'000);
    const std::string name = "certificates", issue = "banana pki issue " + config.host;
    const std::string advice = fmt::format(
        "on the machine with the CA's key: {0} (and {0} --role tunnel); copy the files to this host, then banana "
        "reload "
        "here, and for the tunnel's systemctl restart banana-tunneld. The CA's own: banana pki init, and all hosts' "
        "anew",
        issue);
    const std::string in_use = node_.peers.problem();
    if (!report.refused.empty() || (!report.unusable.empty() && !tunnel_hosts().empty()))
        add(name, false, texts(report.problems()), advice);
    else if (!in_use.empty())
        add(name, false, "peers refuse this host, as the certificate in use is an older one: " + in_use,
            "banana reload takes the one in " + config.tls.certificate);
    else if (!report.problems().empty())
        warn(name, texts(report.problems()), advice);
    else
        add(name, true, texts(report.good), "");
}

void Doctor::look_at_underlay() {
    const auto device = node_.underlay_device();
    const std::string address = node_.config.underlay.text();
    if (!device)
        return add("underlay", false, device.error().message(),
                   "give the address to a device, or correct `underlay` in bananad.toml and restart bananad");
    add("underlay", device->running,
        fmt::format("{} is on {}, MTU {}{}", address, device->name, device->mtu,
                    device->running ? "" : ", which has no link"),
        fmt::format("ip link set {} up; look at its cable or its lower device", device->name));
}

void Doctor::look_at_libvirt() {
    if (!node_.libvirt.used()) return add("libvirt", true, "not used: [libvirt] uri is empty", "");
    const std::string problem = node_.libvirt.problem(), uri = node_.config.libvirt_uri;
    add("libvirt", node_.libvirt.connected(), problem.empty() ? uri : uri + ": " + problem,
        "start libvirtd, or correct [libvirt] uri in bananad.toml; bananad connects by itself");
    const std::string wrong = hook_problem({BANANA_SYSCONFDIR "/libvirt/hooks", "/etc/libvirt/hooks"});
    add("libvirt hooks", wrong.empty(), wrong.empty() ? "qemu and network tell bananad of guests" : wrong,
        "make install puts them into libvirt's hook directory; then restart libvirtd, which looks for them when it "
        "starts");
}

std::set<std::string> Doctor::tunnel_hosts() const {
    std::set<std::string> hosts;
    for (size_t i = 0; i < peers_.size(); ++i) {
        const std::string site = peers_.at(i).get("info").get("site").as_string();
        if (!site.empty() && site != node_.config.site) hosts.insert(peers_.at(i).get("name").as_string());
    }
    wires_.table().each([&](const model::Wire& wire) {
        for (const auto& half : {wire.active, wire.standby})
            if (half && half->format == model::Format::dtls) hosts.insert(half->host);
    });
    spikes_.table().each([&](const model::Spike& spike) {
        if (spike.attachment && spike.attachment->half.format == model::Format::dtls)
            hosts.insert(spike.attachment->corm_host);
    });
    hosts.erase(node_.config.host);
    return hosts;
}

void Doctor::look_at_tunnel() {
    const model::TunnelEnd tunnel = node_.tunnel.end();
    const auto hosts = tunnel_hosts();
    if (tunnel.problem.empty())
        add("tunnel", true, fmt::format("UDP port {}, {} lanes", tunnel.port, tunnel.lanes), "");
    else if (hosts.empty())
        add("tunnel", true, "none, and none is needed: no peer is of another site (" + tunnel.problem + ")", "");
    else
        add("tunnel", false,
            fmt::format("no DTLS wires to {}: {}", joined({hosts.begin(), hosts.end()}), tunnel.problem),
            fmt::format("they need a certificate of role tunnel (banana pki issue {} --role tunnel) in {}, and a "
                        "banana-tunneld that runs (systemctl status banana-tunneld)",
                        node_.config.host, node_.config.tunnel.certificate));
}

void Doctor::look_at_peers() {
    const auto with_reason = [](const std::string& state, const std::string& reason) {
        return state == "up" || reason.empty() ? state : state + ": " + reason;
    };
    const bool tunnel_here = node_.tunnel.end().problem.empty();
    const auto hosts = tunnel_hosts();
    for (size_t i = 0; i < peers_.size(); ++i) {
        const Json peer = peers_.at(i), session = peer.get("tunnel");
        const std::string name = peer.get("name").as_string(), state = peer.get("state").as_string();
        add("peer " + name, state == "up", with_reason(state, peer.get("error").as_string()),
            state == "refused"
                ? fmt::format(
                      "each needs a certificate of the same CA for its own name, and the other as a [[peer]] in "
                      "bananad.toml: banana pki show, here and on {}",
                      name)
                : fmt::format("is bananad running on {}, and TCP port {} open between the hosts?", name,
                              peer.get("port").as_int()));
        const std::string way = session.get("state").as_string();
        if (!tunnel_here || way == "unknown") continue;
        add("tunnel to " + name, way == "up" || !hosts.contains(name),
            with_reason(way, session.get("reason").as_string()),
            fmt::format("is banana-tunneld running on {} (banana doctor, there), and UDP port {} open between the "
                        "hosts?",
                        name, node_.config.tunnel.port));
    }
}

void Doctor::look_at_corms() {
    const auto problems = corms_.problems();
    add("Corms", problems.empty(),
        problems.empty() ? "each has its name and its libvirt network for itself" : texts(problems),
        "take a network that is not Banana's out of the way (virsh net-dumpxml, net-destroy, net-undefine), and "
        "bananad "
        "makes its own; of two Corms of one name, delete one");
}

// Adopted netdevs are somebody else's to make; no restart brings one back.
void Doctor::look_at_devices() {
    std::vector<std::string> missing;
    for (const auto& key : spikes_.without_device()) {
        const model::Spike* spike = spikes_.table().find(key);
        gone_.insert(spike->device);
        missing.push_back(fmt::format("device {} of Spike {} is not there", spike->device, spike->name));
    }
    add("adopted devices", missing.empty(), missing.empty() ? "each is there" : joined(missing),
        "make the device again, and bananad takes it up by itself; or give the Spike up: banana disconnect SPIKE, "
        "banana spike delete SPIKE");
}

asio::awaitable<std::string> Doctor::guest_of(std::string device) {
    const auto domains = co_await node_.libvirt.domains();
    if (!domains) co_return "";
    for (const auto& entry : *domains) {
        const std::string uuid = entry.domain.uuid;
        if (!entry.state.active()) continue;
        const auto xml = co_await node_.libvirt.domain_xml(uuid);
        const auto facts = xml ? hooks::parse_domain(*xml) : Result<hooks::DomainFacts>(xml.error());
        if (!facts) continue;
        for (const auto& interface : facts->interfaces)
            if (interface.target == device)
                co_return fmt::format("{} of domain {}", printable(interface.name, 60), printable(facts->name));
    }
    co_return "";
}

// An anchor is down: what is in one without being a Spike that is wired to that Corm is cut off.
asio::awaitable<void> Doctor::look_at_taps() {
    const auto links = netlink::links(node_.engine.socket(), {0, "", false});
    if (!links) co_return add("anchors' ports", false, links.error().message(), "");
    std::map<uint32_t, std::string> anchors;  // by index: the Corm
    for (const auto& corm : corms_.all())
        if (const auto index = node_.engine.ifindex(model::anchor_device(corm.name)))
            anchors[*index] = corm.full_name();
    std::vector<std::string> cut_off;
    for (const auto& link : *links) {
        const auto anchor = anchors.find(link.master);
        if (link.master == 0 || anchor == anchors.end()) continue;
        const model::Spike* spike = spikes_.by_device(link.name);
        const std::string where =
            fmt::format("{} in {}", link.name, model::anchor_device(model::corm_short_name(anchor->second)));
        if (spike == nullptr) {
            const std::string guest = co_await guest_of(link.name);
            cut_off.push_back(fmt::format("{} ({}) is no Spike", where, guest.empty() ? "of no domain" : guest));
        } else if (spike->state == model::SpikeState::unwired || spike->corm != anchor->second) {
            cut_off.push_back(
                fmt::format("{} is Spike {}, which is not wired to Corm {}", where, spike->name, anchor->second));
        }
    }
    add("anchors' ports", cut_off.empty(),
        cut_off.empty() ? "each is a Spike that is wired" : "cut off: " + joined(cut_off),
        "a guest joins a Corm by <interface type='network'> with network banana-CORM, and not by bridge bn-CORM: virsh "
        "detach-interface and attach it so; where it is so already, journalctl -u bananad says why it was not wired");
}

void Doctor::look_at_kernel() {
    wiring::Plan plan = corms_.plan();
    plan += wires_.plan();
    plan += spikes_.plan();
    auto missing = node_.engine.difference(plan);
    if (missing) std::erase_if(*missing, [&](const wiring::Step& step) { return needs(step, gone_); });
    const bool no_device = !missing && missing.error().code() == Errc::not_found;
    add("kernel", missing && missing->empty(),
        !missing ? missing.error().message()
        : missing->empty()
            ? "links, ports and entries are as the records say"
            : fmt::format("{} things differ, first: {}", missing->size(), wiring::describe(missing->front())),
        no_device ? "bring the device back, and bananad takes it up by itself; or delete what is on it"
                  : "systemctl restart bananad repairs it; traffic goes on meanwhile");
}

void Doctor::look_at_senders() {
    const auto dropped = node_.engine.filter().dropped();
    add("VXLAN senders", dropped && *dropped == 0,
        dropped ? fmt::format("{} frames of our VNIs came from foreign addresses and were dropped", *dropped)
                : dropped.error().message(),
        dropped ? fmt::format("somebody on the underlay sends frames into our wires: look at UDP port {}",
                              node_.config.vxlan_port)
                : "bananad makes the nftables table `banana` anew within seconds; if not, its log says why");
}

}  // namespace banana::controller
