#include "netlink/tc.h"

#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>

#include <cerrno>

#include "netlink/message.h"

namespace banana::netlink {

namespace {
constexpr uint32_t filter_priority = 1, filter_handle = 1;

tcmsg qdisc_header(uint32_t ifindex) {
    tcmsg header{};
    header.tcm_family = AF_UNSPEC;
    header.tcm_ifindex = static_cast<int>(ifindex);
    header.tcm_parent = TC_H_INGRESS;  // clsact's too
    return header;
}

tcmsg block_header(uint32_t block) {
    tcmsg header{};
    header.tcm_family = AF_UNSPEC;
    header.tcm_ifindex = static_cast<int>(TCM_IFINDEX_MAGIC_BLOCK);
    header.tcm_parent = block;
    return header;
}

std::optional<Blocks> read_blocks(const nlmsghdr& reply) {
    if (reply.nlmsg_type != RTM_NEWQDISC) return std::nullopt;
    Attributes<TCA_MAX> in(reply, sizeof(tcmsg));
    const std::string kind = in.text(TCA_KIND);
    if (kind != "ingress" && kind != "clsact") return std::nullopt;
    return Blocks{in.get<uint32_t>(TCA_INGRESS_BLOCK), in.get<uint32_t>(TCA_EGRESS_BLOCK)};
}
}  // namespace

Request no_queue(uint32_t ifindex) {
    Message message("take the queue off #" + std::to_string(ifindex), RTM_NEWQDISC, NLM_F_CREATE | NLM_F_REPLACE);
    tcmsg header{};
    header.tcm_family = AF_UNSPEC;
    header.tcm_ifindex = static_cast<int>(ifindex);
    header.tcm_parent = TC_H_ROOT;
    message.header(header).text(TCA_KIND, "noqueue");
    return std::move(message).finish().accept(EOPNOTSUPP);  // a kernel without qdiscs
}

Request join_blocks(uint32_t ifindex, const Blocks& blocks) {
    Message message("join tc blocks with #" + std::to_string(ifindex), RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL);
    tcmsg header = qdisc_header(ifindex);
    header.tcm_handle = TC_H_MAKE(TC_H_INGRESS, 0);
    message.header(header).text(TCA_KIND, blocks.egress ? "clsact" : "ingress");
    if (blocks.ingress) message.u32(TCA_INGRESS_BLOCK, blocks.ingress);
    if (blocks.egress) message.u32(TCA_EGRESS_BLOCK, blocks.egress);
    return std::move(message).finish();
}

Request leave_blocks(uint32_t ifindex) {
    Message message("leave the tc blocks of #" + std::to_string(ifindex), RTM_DELQDISC, 0);
    message.header(qdisc_header(ifindex));
    return std::move(message).finish().accept(ENOENT).accept(EINVAL).accept(ENODEV);
}

Result<std::optional<Blocks>> blocks_of(Socket& socket, uint32_t ifindex) {
    // The kernel's answer is a notice to those who listen, and to who asks for an echo.
    Message message("look up the tc blocks of #" + std::to_string(ifindex), RTM_GETQDISC, NLM_F_ECHO);
    message.header(qdisc_header(ifindex));
    // No such qdisc is ENOENT for a device that never had one, EINVAL for one that had.
    const Request request = std::move(message).finish().accept(ENOENT).accept(EINVAL).accept(ENODEV);
    std::optional<Blocks> found;
    const auto done = socket.batch({&request, 1}, [&](size_t, const nlmsghdr& reply) {
        if (const auto blocks = read_blocks(reply)) found = blocks;
    });
    TRY(done[0]);
    return found;
}

Result<std::vector<Blocks>> all_blocks(Socket& socket) {
    Message message("list the tc blocks of devices", RTM_GETQDISC, NLM_F_DUMP);
    message.header(tcmsg{});
    return dump_all<Blocks>(socket, std::move(message).finish(), read_blocks);
}

Request put_program(uint32_t block, int program, const std::string& name, bool replace) {
    const auto flags = static_cast<uint16_t>(NLM_F_CREATE | (replace ? 0 : NLM_F_EXCL));
    Message message("put program " + name + " on tc block " + std::to_string(block), RTM_NEWTFILTER, flags);
    tcmsg header = block_header(block);
    header.tcm_handle = filter_handle;
    header.tcm_info = TC_H_MAKE(filter_priority << 16, htons(ETH_P_ALL));
    message.header(header).text(TCA_KIND, "bpf");
    message.nest(TCA_OPTIONS, [&] {
        message.u32(TCA_BPF_FD, static_cast<uint32_t>(program));
        message.text(TCA_BPF_NAME, name);
        message.u32(TCA_BPF_FLAGS, TCA_BPF_FLAG_ACT_DIRECT);
    });
    return std::move(message).finish();
}

Result<std::vector<BlockFilter>> filters_of(Socket& socket, uint32_t block) {
    Message message("list filters of tc block " + std::to_string(block), RTM_GETTFILTER, NLM_F_DUMP);
    message.header(block_header(block));
    return dump_all<BlockFilter>(
        socket, std::move(message).finish(), [](const nlmsghdr& header) -> std::optional<BlockFilter> {
            if (header.nlmsg_type != RTM_NEWTFILTER) return std::nullopt;
            const auto& info = *static_cast<const tcmsg*>(NLMSG_DATA(&header));
            Attributes<TCA_MAX> in(header, sizeof(tcmsg));
            // A priority without a filter is told of as well.
            if (!in.ok() || info.tcm_handle == 0) return std::nullopt;
            BlockFilter filter;
            filter.first = info.tcm_handle == filter_handle && TC_H_MAJ(info.tcm_info) == filter_priority << 16;
            if (in.text(TCA_KIND) == "bpf")
                filter.program_id = Attributes<TCA_BPF_MAX>(in.at(TCA_OPTIONS)).get<uint32_t>(TCA_BPF_ID);
            return filter;
        });
}

}  // namespace banana::netlink
