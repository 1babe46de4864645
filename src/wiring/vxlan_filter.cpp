// Theory. The verdict is reached by exclusion: a datagram to our port is let go when its VNI can be read and is not
// ours, or when (source, VNI) is a pair that we know; what is left is dropped. So a datagram whose VNI cannot be read
// does not slip through, which matters for IPv6: there the input hook sees fragments before they are put together
// (IPv4's are whole by then), and a first fragment might end before the VXLAN header. Later fragments carry no port and
// pass; without their first they come to nothing. The kernel itself refuses a first fragment that lacks the UDP header
// (RFC 8200, 4.5).
//
// The VNI is bits 96..119 behind the UDP header's start: 8 bytes UDP, then flags (1), reserved (3), VNI (3).
//
// libnftables parses text. All of it is made here from numbers and addresses; the table's name is checked.
#include "wiring/vxlan_filter.h"

#include <fmt/core.h>
#include <nftables/libnftables.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <utility>

#include "base/json.h"

namespace banana::wiring {
namespace {

constexpr uint32_t vni_limit = 1u << 24;
constexpr size_t listing_max = 64u << 20;  // about 70 bytes a pair

// "delete element inet banana vnis { 7, 8 }".
class Elements {
public:
    Elements(std::string verb, std::string table) : verb_(std::move(verb)), table_(std::move(table)) {}

    void vni(uint32_t vni) { append(vnis_, fmt::format("{}", vni)); }
    void pair(const VxlanPeer& peer) {
        append(peer.address.family == AF_INET ? pairs4_ : pairs6_,
               fmt::format("{} . {}", peer.address.text(), peer.vni));
    }
    std::string text() const {
        return command("vnis", vnis_) + command("pairs4", pairs4_) + command("pairs6", pairs6_);
    }

private:
    static void append(std::string& list, const std::string& element) {
        if (!list.empty()) list += ", ";
        list += element;
    }
    std::string command(const char* set, const std::string& list) const {
        return list.empty() ? "" : fmt::format("{} element inet {} {} {{ {} }}\n", verb_, table_, set, list);
    }

    std::string verb_, table_, vnis_, pairs4_, pairs6_;
};

// Pairs are ordered by VNI first, so those of one VNI stand together.
bool has_vni(const std::set<VxlanPeer>& peers, uint32_t vni) {
    auto at = peers.lower_bound({vni, {}});
    return at != peers.end() && at->vni == vni;
}

Status check(const VxlanPeer& peer) {
    if (peer.vni >= vni_limit) return Error(Errc::invalid, fmt::format("VNI {}: it has 24 bits", peer.vni));
    if (peer.address.size() == 0) return Error(Errc::invalid, fmt::format("VNI {}: no peer address", peer.vni));
    return {};
}

bool is_table_name(const std::string& name) {
    auto good = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_'; };
    return !name.empty() && name.size() <= 64 && name[0] >= 'a' && std::all_of(name.begin(), name.end(), good);
}

// The object of this kind in a listing; null when there is none.
Json listed(const Json& listing, const char* kind) {
    auto items = listing.get("nftables");
    for (size_t i = 0; i < items.size(); i++)
        if (items.at(i).has(kind)) return items.at(i).get(kind);
    return {};
}

}  // namespace

void VxlanFilter::ContextDeleter::operator()(nft_ctx* context) const { nft_ctx_free(context); }

VxlanFilter::VxlanFilter(std::unique_ptr<nft_ctx, ContextDeleter> context, Fd socket, uint16_t port, std::string table)
    : context_(std::move(context)), socket_(std::move(socket)), port_(port), table_(std::move(table)) {}
VxlanFilter::VxlanFilter(VxlanFilter&&) noexcept = default;
VxlanFilter& VxlanFilter::operator=(VxlanFilter&&) noexcept = default;
VxlanFilter::~VxlanFilter() = default;

Result<VxlanFilter> VxlanFilter::open(uint16_t port, const std::string& table) {
    if (!is_table_name(table)) return Error(Errc::invalid, "open VXLAN filter: bad table name '" + table + "'");
    std::unique_ptr<nft_ctx, ContextDeleter> context(nft_ctx_new(NFT_CTX_DEFAULT));
    if (!context || nft_ctx_buffer_output(context.get()) != 0 || nft_ctx_buffer_error(context.get()) != 0)
        return Error("open VXLAN filter " + table + ": out of memory");
    nft_ctx_output_set_flags(context.get(), NFT_CTX_OUTPUT_JSON);
    TRY_SET(Fd socket, open_nfnetlink());
    VxlanFilter filter(std::move(context), std::move(socket), port, table);
    TRY(filter.run(filter.frame(), "make VXLAN filter"));
    TRY(filter.remember_mark());
    TRY_SET(auto peers, filter.list());
    filter.peers_.insert(peers.begin(), peers.end());
    return filter;
}

Result<std::string> VxlanFilter::run(const std::string& commands, const std::string& what) {
    if (nft_run_cmd_from_buffer(context_.get(), commands.c_str()) == 0)
        return std::string(nft_ctx_get_output_buffer(context_.get()));
    // Several lines, the first of which holds the cause: "Error: Could not process rule: No such file or directory".
    std::string words = nft_ctx_get_error_buffer(context_.get());
    nft_ctx_get_output_buffer(context_.get());
    words = printable(words.substr(0, words.find('\n')));
    bool gone = words.find("No such file or directory") != std::string::npos;
    return Error(gone ? Errc::not_found : Errc::failed, fmt::format("{} (nftables table {}): {}", what, table_, words));
}

// Table, sets, counter and chain; every command in it may be repeated. In the order in which frames pay: what goes to
// another port meets one compare, a frame of ours one look-up more. All in the base chain: a jump costs as much as
// either. The first rule may take no heed of the protocol, since it only lets go; the last one asks for UDP. (Chain
// `vxlan` is an earlier version's.)
std::string VxlanFilter::frame() const {
    return fmt::format(
        "add table inet {0}\n"
        "add counter inet {0} foreign\n"
        "add set inet {0} vnis {{ typeof @th,96,24; }}\n"
        "add set inet {0} pairs4 {{ typeof ip saddr . @th,96,24; }}\n"
        "add set inet {0} pairs6 {{ typeof ip6 saddr . @th,96,24; }}\n"
        "add chain inet {0} vxlan\n"
        "add chain inet {0} input {{ type filter hook input priority 0; policy accept; }}\n"
        "flush chain inet {0} input\n"
        "delete chain inet {0} vxlan\n"
        "add rule inet {0} input @th,16,16 != {1} accept\n"
        "add rule inet {0} input ip saddr . @th,96,24 @pairs4 accept\n"
        "add rule inet {0} input ip6 saddr . @th,96,24 @pairs6 accept\n"
        "add rule inet {0} input @th,96,24 != @vnis accept\n"
        "add rule inet {0} input udp dport {1} counter name foreign drop\n",
        table_, port_);
}

// If the kernel has not what peers_ says (somebody flushed the ruleset), everything is put back.
Status VxlanFilter::change(const std::string& commands, const std::string& what) {
    if (commands.empty()) return {};
    auto done = run(commands, what);
    if (done) return {};
    if (done.error().code() != Errc::not_found) return done.error();
    return sync(std::vector(peers_.begin(), peers_.end()));
}

Status VxlanFilter::allow(uint32_t vni, const IpAddress& peer) { return allow(std::array{VxlanPeer{vni, peer}}); }

Status VxlanFilter::allow(std::span<const VxlanPeer> peers) {
    for (auto& peer : peers) TRY(check(peer));
    Elements in("add", table_);
    std::vector<VxlanPeer> added;
    for (auto& peer : peers) {
        bool known = has_vni(peers_, peer.vni);
        if (!peers_.insert(peer).second) continue;
        if (!known) in.vni(peer.vni);
        in.pair(peer);
        added.push_back(peer);
    }
    auto done = change(in.text(), fmt::format("allow {} VXLAN peers", added.size()));
    if (!done)
        for (auto& peer : added) peers_.erase(peer);
    return done;
}

Status VxlanFilter::remove(uint32_t vni) { return remove(std::array{vni}); }

Status VxlanFilter::remove(std::span<const uint32_t> vnis) {
    Elements out("delete", table_);
    std::vector<VxlanPeer> removed;
    for (auto vni : vnis) {
        if (has_vni(peers_, vni)) out.vni(vni);
        for (auto at = peers_.lower_bound({vni, {}}); at != peers_.end() && at->vni == vni; at = peers_.erase(at)) {
            out.pair(*at);
            removed.push_back(*at);
        }
    }
    auto done = change(out.text(), fmt::format("forget peers of {} VNIs", vnis.size()));
    if (!done) peers_.insert(removed.begin(), removed.end());
    return done;
}

Status VxlanFilter::sync(std::span<const VxlanPeer> peers) {
    for (auto& peer : peers) TRY(check(peer));
    std::set<VxlanPeer> next(peers.begin(), peers.end());
    Elements in("add", table_);
    for (auto at = next.begin(); at != next.end(); ++at) {
        if (at == next.begin() || std::prev(at)->vni != at->vni) in.vni(at->vni);
        in.pair(*at);
    }
    auto flush = fmt::format("flush set inet {0} vnis\nflush set inet {0} pairs4\nflush set inet {0} pairs6\n", table_);
    TRY(run(frame() + flush + in.text(), "set VXLAN peers"));
    peers_ = next;
    return remember_mark();
}

Status VxlanFilter::remember_mark() {
    TRY_SET(mark_, table_mark(socket_, table_, "input"));
    return {};
}

Result<bool> VxlanFilter::mend() {
    TRY_SET(const TableMark now, table_mark(socket_, table_, "input"));
    if (now == mark_) return false;
    TRY(sync(std::vector(peers_.begin(), peers_.end())));
    return true;
}

Result<std::vector<VxlanPeer>> VxlanFilter::list() {
    std::vector<VxlanPeer> out;
    for (const char* set : {"pairs4", "pairs6"}) {
        TRY_SET(auto text, run(fmt::format("list set inet {} {}\n", table_, set), "list VXLAN peers"));
        TRY_SET(auto listing, Json::parse(text, listing_max));
        auto elements = listed(listing, "set").get("elem");
        for (size_t i = 0; i < elements.size(); i++) {
            auto pair = elements.at(i).get("concat");
            TRY_SET(auto address, IpAddress::parse(pair.at(0).as_string()));
            out.push_back({static_cast<uint32_t>(pair.at(1).as_int()), address});
        }
    }
    std::sort(out.begin(), out.end());
    return out;
}

Result<uint64_t> VxlanFilter::dropped() {
    TRY_SET(auto text, run(fmt::format("list counter inet {} foreign\n", table_), "read VXLAN filter's counter"));
    TRY_SET(auto listing, Json::parse(text));
    return static_cast<uint64_t>(listed(listing, "counter").get("packets").as_int());
}

Status VxlanFilter::destroy() {
    // "add" first: deleting a table that is not there is then no error.
    TRY(run(fmt::format("add table inet {0}\ndelete table inet {0}\n", table_), "delete VXLAN filter"));
    peers_.clear();
    return {};
}

}  // namespace banana::wiring
