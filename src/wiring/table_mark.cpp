#include "wiring/table_mark.h"

#include <endian.h>
#include <fmt/core.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <map>
#include <vector>

namespace banana::wiring {

namespace {

using Attributes = std::map<uint16_t, std::string>;  // by type; values as they are on the wire

constexpr size_t head = NLMSG_HDRLEN + NLMSG_ALIGN(sizeof(nfgenmsg));

void append(std::vector<char>& message, uint16_t type, const std::string& text) {
    const nlattr header{static_cast<uint16_t>(NLA_HDRLEN + text.size() + 1), type};
    const size_t at = message.size();
    message.resize(at + NLA_ALIGN(header.nla_len));
    std::memcpy(&message[at], &header, sizeof header);
    std::memcpy(&message[at + NLA_HDRLEN], text.data(), text.size());
}

Attributes attributes_of(const char* data, size_t size) {
    Attributes out;
    for (nlattr header{}; size >= sizeof header;) {
        std::memcpy(&header, data, sizeof header);
        if (header.nla_len < NLA_HDRLEN || header.nla_len > size) break;
        out[header.nla_type & NLA_TYPE_MASK] = std::string(data + NLA_HDRLEN, header.nla_len - NLA_HDRLEN);
        const size_t step = std::min<size_t>(NLA_ALIGN(header.nla_len), size);
        data += step;
        size -= step;
    }
    return out;
}

template <class Number>
Number number(const Attributes& attributes, uint16_t type) {
    Number value = 0;
    const auto found = attributes.find(type);
    if (found != attributes.end() && found->second.size() == sizeof value)
        std::memcpy(&value, found->second.data(), sizeof value);
    return value;
}

// One object by its names; not_found when there is none.
Result<Attributes> ask(const Fd& socket, uint16_t type, const std::vector<std::pair<uint16_t, std::string>>& names,
                       const std::string& what) {
    std::vector<char> message(head);
    for (const auto& [attribute, name] : names) append(message, attribute, name);
    nlmsghdr header{};
    header.nlmsg_len = static_cast<uint32_t>(message.size());
    header.nlmsg_type = static_cast<uint16_t>(NFNL_SUBSYS_NFTABLES << 8 | type);
    header.nlmsg_flags = NLM_F_REQUEST;
    const nfgenmsg family{NFPROTO_INET, NFNETLINK_V0, 0};
    std::memcpy(message.data(), &header, sizeof header);
    std::memcpy(message.data() + NLMSG_HDRLEN, &family, sizeof family);
    if (::send(socket.get(), message.data(), message.size(), 0) < 0) return errno_error(errno, what);
    // The kernel has answered by the time that send() returns; there is nothing of an earlier question in the way.
    std::array<char, 8192> answer;
    const ssize_t size = ::recv(socket.get(), answer.data(), answer.size(), MSG_DONTWAIT);
    if (size < 0) return errno_error(errno, what);
    std::memcpy(&header, answer.data(), sizeof header);
    if (static_cast<size_t>(size) < NLMSG_HDRLEN || header.nlmsg_len > static_cast<size_t>(size))
        return Error(what + ": an answer that was cut");
    if (header.nlmsg_type == NLMSG_ERROR) {
        int error = -EPROTO;
        if (header.nlmsg_len >= NLMSG_LENGTH(sizeof error))
            std::memcpy(&error, answer.data() + NLMSG_HDRLEN, sizeof error);
        return errno_error(-error, what);
    }
    if (header.nlmsg_len < head) return Error(what + ": an answer that was cut");
    return attributes_of(answer.data() + head, header.nlmsg_len - head);
}

}  // namespace

Result<Fd> open_nfnetlink() {
    Fd socket(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_NETFILTER));
    if (!socket) return errno_error(errno, "open a netfilter socket");
    return socket;
}

Result<TableMark> table_mark(const Fd& socket, const std::string& table, const std::string& chain) {
    const std::string what = fmt::format("look at nftables table {}", table);
    TableMark mark;
    const auto made = ask(socket, NFT_MSG_GETTABLE, {{NFTA_TABLE_NAME, table}}, what);
    if (!made && made.error().code() == Errc::not_found) return mark;
    if (!made) return made.error();
    mark.handle = be64toh(number<uint64_t>(*made, NFTA_TABLE_HANDLE));
    const auto rules = ask(socket, NFT_MSG_GETCHAIN, {{NFTA_CHAIN_TABLE, table}, {NFTA_CHAIN_NAME, chain}}, what);
    if (!rules && rules.error().code() == Errc::not_found) return mark;
    if (!rules) return rules.error();
    mark.rules = be32toh(number<uint32_t>(*rules, NFTA_CHAIN_USE));
    return mark;
}

}  // namespace banana::wiring
