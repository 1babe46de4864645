#include "netlink/request.h"

#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <unistd.h>

#include <cctype>
#include <cerrno>
#include <iterator>

#include "base/fd.h"
#include "netlink/message.h"

namespace banana::netlink {

void MessageFree::operator()(nl_msg* message) const { nlmsg_free(message); }

Request Request::invalid(const std::string& what, const std::string& why) {
    Request request(what);
    request.invalid_ = Error(Errc::invalid, what + ": " + why);
    return request;
}

Request Request::sysctl(const std::string& path, const std::string& value, bool absent_ok) {
    std::string what = "set net/" + path + " to " + value;
    // A device's name is part of the path: it must not lead elsewhere.
    if (("/" + path + "/").find("/../") != std::string::npos) return invalid(what, "not a path below /proc/sys/net");
    Request request(what);
    request.path_ = "/proc/sys/net/" + path;
    request.value_ = value;
    request.absent_ok_ = absent_ok;
    return request;
}

Request&& Request::accept(int err) && {
    accepted_.push_back(err);
    return std::move(*this);
}

nlmsghdr* Request::header() const { return message_ ? nlmsg_hdr(message_.get()) : nullptr; }

Status Request::write_sysctl() const {
    Fd file(::open(path_.c_str(), O_WRONLY | O_CLOEXEC));
    if (!file) {
        if (errno == ENOENT && absent_ok_) return {};
        return errno_error(errno, what_);
    }
    if (::write(file.get(), value_.data(), value_.size()) != static_cast<ssize_t>(value_.size()))
        return errno_error(errno, what_);
    return {};
}

void append(Requests& all, Requests&& more) {
    all.insert(all.end(), std::make_move_iterator(more.begin()), std::make_move_iterator(more.end()));
}

std::string LinkRef::text() const { return name.empty() ? "#" + std::to_string(index) : name; }

std::optional<std::string> bad_name(std::string_view name) {
    if (name.empty()) return "the device name is empty";
    if (name.size() >= IFNAMSIZ) return "the device name is longer than 15 bytes";
    if (name == "." || name == "..") return "not a device name";
    for (char c : name) {
        // '%' would make the kernel number the device.
        if (c == '/' || c == ':' || c == '%' || std::isspace(static_cast<unsigned char>(c)) || c == '\0')
            return "the device name has a character that is not allowed";
    }
    return std::nullopt;
}

Message::Message(std::string what, uint16_t type, uint16_t flags, size_t room) : what_(std::move(what)) {
    message_.reset(nlmsg_alloc_size(room));
    if ((flags & NLM_F_DUMP) != NLM_F_DUMP) flags |= NLM_F_ACK;
    // Port and sequence number are filled in when it is sent.
    if (!message_ || !nlmsg_put(message_.get(), 0, 0, type, 0, flags | NLM_F_REQUEST)) fits_ = false;
}

Message& Message::put(int type, const void* data, size_t size) {
    if (nla_put(message_.get(), type, static_cast<int>(size), data) < 0) fits_ = false;
    return *this;
}

void Message::refuse(const std::string& why) {
    if (!refused_) refused_ = why;
}

Message& Message::device_name(int type, const std::string& name) {
    if (auto why = bad_name(name)) {
        refuse(*why);
        return *this;
    }
    return text(type, name);
}

Request Message::finish() && {
    if (!refused_ && !fits_) refused_ = "does not fit into one netlink message";
    if (refused_) return Request::invalid(what_, *refused_);
    return {std::move(what_), std::move(message_)};
}

IpAddress address_of(nlattr* attribute) {
    IpAddress ip;
    if (!attribute) return ip;
    size_t size = static_cast<size_t>(nla_len(attribute));
    if (size != 4 && size != 16) return ip;
    ip.family = size == 4 ? AF_INET : AF_INET6;
    std::memcpy(ip.bytes.data(), nla_data(attribute), size);
    return ip;
}

}  // namespace banana::netlink
