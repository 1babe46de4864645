#include "tunnel/control_server.h"

#include <fmt/core.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "base/bytes.h"
#include "base/lock_file.h"
#include "base/log.h"
#include "tunnel/control.h"
#include "tunnel/tunnel.h"

namespace banana::tunnel {

namespace {

Result<sockaddr_un> address_of(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.empty() || path.size() >= sizeof(address.sun_path))
        return Error(Errc::invalid, fmt::format("control socket '{}': too long for a socket's path", path));
    std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
    return address;
}

const sockaddr* generic(const sockaddr_un& address) { return reinterpret_cast<const sockaddr*>(&address); }

// One message and its descriptors. Size 0: the end; an error: nothing there, or the connection is broken.
struct Message {
    ssize_t bytes = -1;
    bool cut = false;
    std::vector<Fd> descriptors;
};

Message receive(int socket, std::vector<char>& text) {
    alignas(cmsghdr) std::array<char, CMSG_SPACE(control_fds_max * sizeof(int))> control{};
    iovec piece{text.data(), text.size()};
    msghdr header{};
    header.msg_iov = &piece;
    header.msg_iovlen = 1;
    header.msg_control = control.data();
    header.msg_controllen = control.size();
    Message message;
    message.bytes = ::recvmsg(socket, &header, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (message.bytes < 0) return message;
    message.cut = (header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0;
    for (cmsghdr* part = CMSG_FIRSTHDR(&header); part != nullptr; part = CMSG_NXTHDR(&header, part)) {
        if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
        const size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int fd = -1;
            std::memcpy(&fd, CMSG_DATA(part) + i * sizeof(int), sizeof(int));
            message.descriptors.emplace_back(fd);
        }
    }
    return message;
}

Json error_json(const Error& error) {
    return Json::object({{"code", errc_name(error.code())}, {"message", error.message()}});
}

Result<Json> call(Tunnel& tunnel, const std::string& method, const Json& params, std::vector<Fd> descriptors) {
    if (method == "hello") return tunnel.hello();
    if (method == "configure") return tunnel.configure(params, std::move(descriptors));
    if (method == "peers") return tunnel.set_peers(params);
    if (method == "wire.add") return tunnel.add_wire(params, std::move(descriptors));
    if (method == "wire.remove") return tunnel.remove_wire(params);
    if (method == "wire.list") return tunnel.list_wires(params);
    if (method == "wire.show") return tunnel.show_wire(params);
    if (method == "status") return tunnel.status(params);
    if (method == "rekey") return tunnel.rekey(params);
    return Error(Errc::unsupported, fmt::format("method '{}': there is none of that name", printable(method, 40)));
}

}  // namespace

Result<std::unique_ptr<ControlServer>> ControlServer::open(const std::string& path) {
    TRY_SET(const sockaddr_un address, address_of(path));
    std::unique_ptr<ControlServer> server(new ControlServer);
    TRY_SET(server->lock_, lock_beside(path));
    server->path_ = path;
    ::unlink(path.c_str());
    server->listening_.reset(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    const mode_t before = ::umask(0177);
    const int bound = ::bind(server->listening_.get(), generic(address), sizeof(address));
    const int why = errno;
    ::umask(before);
    if (bound != 0) return errno_error(why, "bind control socket " + path);
    if (::listen(server->listening_.get(), 4) != 0) return errno_error(errno, "listen on control socket " + path);
    server->events_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    return server;
}

ControlServer::~ControlServer() {
    if (lock_) ::unlink(path_.c_str());
}

void ControlServer::serve(Tunnel& tunnel, int signals) {
    for (;;) {
        std::array<pollfd, 4> on{{{signals, POLLIN, 0},
                                  {events_.get(), POLLIN, 0},
                                  {listening_.get(), POLLIN, 0},
                                  {controller_.get(), POLLIN, 0}}};
        if (::poll(on.data(), controller_ ? 4 : 3, -1) < 0) {
            if (errno == EINTR) continue;
            log::error("{}", errno_error(errno, "wait for requests").message());
            return;
        }
        if (on[0].revents != 0) return;
        if (controller_ && on[3].revents != 0 && !read_request(tunnel)) controller_.reset();
        if (on[1].revents != 0) send_events(tunnel);
        if (on[2].revents != 0) accept();
    }
}

void ControlServer::accept() {
    Fd fresh(::accept4(listening_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!fresh) return;
    ucred who{};
    socklen_t size = sizeof(who);
    if (::getsockopt(fresh.get(), SOL_SOCKET, SO_PEERCRED, &who, &size) != 0 ||
        (who.uid != 0 && who.uid != ::geteuid())) {
        log::warning("control socket: user {} is not let in", who.uid);
        return;
    }
    if (controller_) log::notice("control socket: process {} takes over", who.pid);
    controller_ = std::move(fresh);
}

bool ControlServer::read_request(Tunnel& tunnel) {
    std::vector<char> text(control_max);
    Message message = receive(controller_.get(), text);
    if (message.bytes < 0) return errno == EAGAIN || errno == EINTR;
    if (message.bytes == 0) return false;
    if (message.cut) {
        log::error("control socket: a message of more than {} bytes, or with too many descriptors", control_max);
        return false;
    }
    return send(
        answer(tunnel, std::string(text.data(), static_cast<size_t>(message.bytes)), std::move(message.descriptors)));
}

Json ControlServer::answer(Tunnel& tunnel, const std::string& text, std::vector<Fd> descriptors) {
    const auto request = Json::parse(text, control_max);
    if (!request) return Json::object({{"id", Json()}, {"error", error_json(request.error())}});
    Json out = Json::object({{"id", request->get("id")}});
    const auto method = request->string("method");
    const Result<Json> result =
        method ? call(tunnel, *method, request->get("params"), std::move(descriptors)) : Result<Json>(method.error());
    if (result)
        out.set("result", *result);
    else
        out.set("error", error_json(result.error()));
    return out;
}

bool ControlServer::send(const Json& message) {
    const std::string text = message.dump();
    if (::send(controller_.get(), text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT) >= 0) return true;
    log::error("{}", errno_error(errno, fmt::format("answer the controller ({} bytes)", text.size())).message());
    return false;
}

void ControlServer::changed(const std::string& peer) {
    const std::lock_guard lock(mutex_);
    changed_.insert(peer);
    const uint64_t one = 1;
    (void)!::write(events_.get(), &one, sizeof(one));
}

void ControlServer::send_events(Tunnel& tunnel) {
    uint64_t ignored = 0;
    (void)!::read(events_.get(), &ignored, sizeof(ignored));
    std::set<std::string> peers;
    {
        const std::lock_guard lock(mutex_);
        peers.swap(changed_);
    }
    for (const auto& peer : peers) {
        if (!controller_) return;
        const Json event = tunnel.peer_event(peer);
        if (!event.is_null() && !send(event)) controller_.reset();
    }
}

}  // namespace banana::tunnel
