#include "netlink/fdb.h"

#include <linux/neighbour.h>
#include <sys/socket.h>

#include <cerrno>

#include "netlink/message.h"

namespace banana::netlink {

namespace {
Request entry_message(const FdbEntry& entry, bool add) {
    std::string what = std::string(add ? "add" : "delete") + " forwarding entry " + entry.mac.text() + " of #";
    Message message(what + std::to_string(entry.index), add ? RTM_NEWNEIGH : RTM_DELNEIGH,
                    add ? NLM_F_CREATE | NLM_F_REPLACE : 0);
    ndmsg header{};
    header.ndm_family = AF_BRIDGE;
    header.ndm_ifindex = static_cast<int>(entry.index);
    header.ndm_state = entry.permanent || entry.own ? NUD_PERMANENT : NUD_NOARP;
    header.ndm_flags = entry.own ? NTF_SELF : NTF_MASTER;
    message.header(header).mac(NDA_LLADDR, entry.mac);
    if (entry.destination.family) message.address(NDA_DST, entry.destination);
    return std::move(message).finish();
}

std::optional<FdbEntry> parse_entry(const nlmsghdr& header) {
    if (header.nlmsg_type != RTM_NEWNEIGH || header.nlmsg_len < NLMSG_LENGTH(sizeof(ndmsg))) return std::nullopt;
    const auto& info = *static_cast<const ndmsg*>(NLMSG_DATA(&header));
    Attributes<NDA_MAX> in(header, sizeof(ndmsg));
    if (info.ndm_family != AF_BRIDGE || !in.ok() || !in.has(NDA_LLADDR)) return std::nullopt;
    FdbEntry entry;
    entry.index = static_cast<uint32_t>(info.ndm_ifindex);
    entry.mac = in.get<Mac>(NDA_LLADDR);
    entry.own = info.ndm_flags & NTF_SELF;
    entry.permanent = info.ndm_state & NUD_PERMANENT;
    entry.learned = !(info.ndm_state & (NUD_PERMANENT | NUD_NOARP));
    entry.destination = in.address(NDA_DST);
    entry.master = in.get<uint32_t>(NDA_MASTER);
    return entry;
}

Result<std::vector<FdbEntry>> list(Socket& socket, uint32_t device, uint32_t bridge) {
    Message message("list forwarding entries of #" + std::to_string(device ? device : bridge), RTM_GETNEIGH,
                    NLM_F_DUMP);
    ndmsg header{};
    header.ndm_family = AF_BRIDGE;
    header.ndm_ifindex = static_cast<int>(device);
    message.header(header);
    if (bridge) message.u32(NDA_MASTER, bridge);
    return dump_all<FdbEntry>(socket, std::move(message).finish(), [&](const nlmsghdr& entry_header) {
        auto entry = parse_entry(entry_header);
        bool wanted = entry && (!device || entry->index == device) && (!bridge || entry->master == bridge);
        return wanted ? entry : std::nullopt;
    });
}
}  // namespace

Request add_fdb(const FdbEntry& entry) { return entry_message(entry, true); }
Request delete_fdb(const FdbEntry& entry) { return entry_message(entry, false).accept(ENOENT); }
Result<std::vector<FdbEntry>> fdb(Socket& socket, uint32_t ifindex) { return list(socket, ifindex, 0); }
Result<std::vector<FdbEntry>> fdb_of_bridge(Socket& socket, uint32_t bridge) { return list(socket, 0, bridge); }

}  // namespace banana::netlink
