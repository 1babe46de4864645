#include "qmp/libvirt_transport.h"

#include <fmt/core.h>

#include "base/bytes.h"

namespace banana::qmp {

LibvirtTransport::LibvirtTransport(std::string domain, Monitor monitor, Limits limits)
    : domain_(std::move(domain)), monitor_(std::move(monitor)), limits_(limits) {}

void LibvirtTransport::execute(const std::string& command, const Json& arguments, Reply reply) {
    auto result = call(command, arguments);
    if (reply) reply(std::move(result));
}

Result<Json> LibvirtTransport::call(const std::string& command, const Json& arguments, Milliseconds) {
    const std::string what = fmt::format("domain {}", domain_);
    if (closed_because_) return closed_because_->context("QMP " + command);
    // libvirt gives the command an id of its own and waits for that reply: none is needed here.
    auto text = monitor_(format_command(command, arguments, {}));
    if (!text) return text.error().context(fmt::format("{}: QMP {}", what, command));
    auto message = parse_message(*text, limits_.line_bytes, limits_.depth);
    if (!message) return message.error().context(fmt::format("{}: QMP {}", what, command));
    if (const auto* failure = std::get_if<Failure>(&*message)) return to_error(command, *failure).context(what);
    if (const auto* reply = std::get_if<Return>(&*message)) return reply->value;
    return Error(Errc::invalid, fmt::format("{}: QMP {}: libvirt gave back no reply", what, command));
}

Status LibvirtTransport::deliver(const std::string& name, int64_t seconds, int64_t microseconds,
                                 const std::string& data) {
    Event event{.name = name, .data = {}, .seconds = seconds, .microseconds = microseconds};
    if (!data.empty()) {
        auto parsed = Json::parse(data, limits_.line_bytes, limits_.depth);
        if (!parsed) return parsed.error().context(fmt::format("domain {}: QMP event {}", domain_, printable(name)));
        event.data = *parsed;
    }
    if (event_handler_ && !closed_because_) event_handler_(event);
    return {};
}

void LibvirtTransport::close(const Error& reason) {
    if (closed_because_) return;
    closed_because_ = reason.context("domain " + domain_);
    if (closed_handler_) closed_handler_(*closed_because_);
}

}  // namespace banana::qmp
