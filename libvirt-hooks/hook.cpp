#include "libvirt-hooks/hook.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/control_client.h"
#include "libvirt-hooks/domain_xml.h"
#include "libvirt-hooks/network_xml.h"
#include "libvirt-hooks/xml_doc.h"

namespace banana::hooks {

namespace {

using std::chrono::milliseconds;

enum class Kind { ignored, may_refuse, told };

struct Operation {
    const char* driver;
    const char* name;
    Kind kind;
};
constexpr std::array<Operation, 10> operations{{{"qemu", "migrate", Kind::may_refuse},
                                                {"qemu", "restore", Kind::may_refuse},
                                                {"qemu", "prepare", Kind::may_refuse},
                                                {"qemu", "start", Kind::may_refuse},
                                                {"qemu", "started", Kind::told},
                                                {"qemu", "stopped", Kind::told},
                                                {"qemu", "release", Kind::told},
                                                {"qemu", "reconnect", Kind::told},
                                                {"network", "port-created", Kind::may_refuse},
                                                {"network", "port-deleted", Kind::told}}};

Kind kind_of(const Call& call) {
    for (const auto& known : operations)
        if (call.driver == known.driver && call.operation == known.name) return known.kind;
    return Kind::ignored;
}

class Deadline {
public:
    explicit Deadline(milliseconds length) : at_ns_(monotonic_ns() + length.count() * 1'000'000) {}
    milliseconds left() const { return milliseconds(std::max<int64_t>(0, (at_ns_ - monotonic_ns()) / 1'000'000)); }

private:
    int64_t at_ns_;
};

// --- stdin ---

// Appends to `out` until the end of input, so that the caller has what was read when it did not end.
Status read_input(int fd, const Deadline& deadline, std::string& out) {
    std::array<char, 65536> chunk;
    while (true) {
        // One more than the wait's remainder, so that poll() does not spin in the last millisecond.
        pollfd entry{.fd = fd, .events = POLLIN, .revents = 0};
        const int ready = poll(&entry, 1, static_cast<int>(deadline.left().count()) + 1);
        if (ready < 0 && errno == EINTR) continue;
        if (ready < 0) return errno_error(errno, "read libvirt's XML");
        if (ready == 0 || deadline.left().count() == 0)
            return Error(Errc::timeout, "read libvirt's XML: it did not end in time");
        const ssize_t got = read(fd, chunk.data(), chunk.size());
        if (got < 0 && (errno == EINTR || errno == EAGAIN)) continue;
        if (got < 0) return errno_error(errno, "read libvirt's XML");
        if (got == 0) return {};
        out.append(chunk.data(), static_cast<size_t>(got));
        if (out.size() > xml::max_bytes)
            return Error(Errc::invalid, fmt::format("read libvirt's XML: larger than {} bytes", xml::max_bytes));
    }
}

// Whether text that may not be parsed could concern us.
bool mentions_us(std::string_view text) {
    for (const char quote : {'\'', '"'})
        for (const auto prefix : {network_prefix, anchor_prefix, device_prefix})
            if (text.find(quote + std::string(prefix)) != std::string_view::npos) return true;
    return text.find("<name>" + std::string(network_prefix)) != std::string_view::npos;
}

// --- The request ---

// The XML as the request's member; null when the object is not ours.
struct Subject {
    const char* member = nullptr;
    Json facts;
    Status checked;
};

Result<Subject> read_subject(const Call& call, std::string_view text) {
    Subject out;
    if (call.driver == "qemu") {
        TRY_SET(const DomainFacts domain, parse_domain(text));
        if (domain.has_banana()) out = {.member = "domain", .facts = domain.to_json(), .checked = check(domain)};
    } else {
        TRY_SET(const NetworkPortFacts port, parse_network_port(text));
        if (is_banana(port.network)) out = {.member = "port", .facts = port.to_json(), .checked = check(port.network)};
    }
    return out;
}

Error not_running(const std::string& socket) {
    const char* cause = access(socket.c_str(), F_OK) == 0 ? "nobody answers there" : std::strerror(errno);
    return {
        Errc::unreachable,
        fmt::format("bananad is not running on this host (control socket {}: {}); start it: systemctl start bananad",
                    socket, cause)};
}

std::chrono::milliseconds limit_of(const Call& call, const Environment& environment) {
    return may_refuse(call) ? environment.deadline : std::min(environment.deadline, told_deadline);
}

Status ask(const Call& call, const Subject& subject, const Environment& environment, const Deadline& deadline) {
    auto client = rpc::BlockingClient::connect(environment.socket, deadline.left());
    if (!client) return client.error().code() == Errc::unreachable ? not_running(environment.socket) : client.error();
    Json params = Json::object({{"object", call.object},
                                {"operation", call.operation},
                                {"suboperation", call.suboperation},
                                {"extra", call.extra}});
    params.set(subject.member, subject.facts);
    auto answer = client->call("hook." + call.driver, params, deadline.left());
    if (answer) return {};
    // bananad's own answer may be a time-out, too: that of a probe, whose words are the ones to show.
    if (answer.error().code() == Errc::timeout && deadline.left().count() == 0)
        return Error(Errc::timeout, fmt::format("bananad did not answer the {} of {} within {} ms", call.operation,
                                                printable(call.object), limit_of(call, environment).count()));
    return answer.error();
}

// What is shown to the user: one line, without what could upset a terminal. UTF-8 is kept.
std::string shown(const std::string& text) {
    std::string out;
    for (const char c : text.substr(0, 2000)) out += static_cast<uint8_t>(c) < 0x20 || c == 0x7f ? ' ' : c;
    return out;
}

Outcome conclude(Kind kind, const Error& error) {
    return {.status = kind == Kind::may_refuse ? 1 : 0, .message = "banana: " + shown(error.message())};
}

}  // namespace

Result<Call> parse_arguments(const std::vector<std::string>& arguments) {
    const auto get = [&](size_t i) { return i < arguments.size() ? arguments[i] : "-"; };
    const Call call{.driver = get(0), .object = get(1), .operation = get(2), .suboperation = get(3), .extra = get(4)};
    if (arguments.size() < 3 || arguments.size() > 5 || (call.driver != "qemu" && call.driver != "network"))
        return Error(Errc::invalid,
                     "usage: banana-hook qemu|network OBJECT OPERATION [SUBOPERATION [EXTRA]] < XML (run by libvirt)");
    return call;
}

bool may_refuse(const Call& call) { return kind_of(call) == Kind::may_refuse; }

Outcome run(const Call& call, const Environment& environment) {
    const Kind kind = kind_of(call);
    if (kind == Kind::ignored) return {};
    const Deadline deadline(environment.deadline);
    std::string text;
    if (auto read = read_input(environment.input, deadline, text); !read)
        return mentions_us(text) ? conclude(kind, read.error()) : Outcome{};
    // Most guests of most hosts end here: nothing of ours can go wrong for them.
    if (!mentions_us(text)) return {};
    auto subject = read_subject(call, text);
    if (!subject) return conclude(kind, subject.error());
    if (subject->member == nullptr) return {};
    if (kind == Kind::may_refuse && !subject->checked) return conclude(kind, subject->checked.error());
    const Deadline answer(std::min(deadline.left(), limit_of(call, environment)));
    if (auto asked = ask(call, *subject, environment, answer); !asked) return conclude(kind, asked.error());
    return {};
}

}  // namespace banana::hooks
