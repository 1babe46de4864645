#include "qmp/message.h"

#include <fmt/core.h>

#include "base/bytes.h"

namespace banana::qmp {

namespace {

Result<Message> parse_greeting(const Json& body) {
    Greeting out;
    TRY_SET(const Json version, body.object_at("version"));
    TRY_SET(const Json qemu, version.object_at("qemu"));
    TRY_SET(out.major, qemu.integer("major", 0, INT32_MAX));
    TRY_SET(out.minor, qemu.integer("minor", 0, INT32_MAX));
    TRY_SET(out.micro, qemu.integer("micro", 0, INT32_MAX));
    out.package = version.get("package").as_string();
    TRY_SET(const Json capabilities, body.array_at("capabilities"));
    for (size_t i = 0; i < capabilities.size(); i++) out.capabilities.push_back(capabilities.at(i).as_string());
    return Message(out);
}

Result<Message> parse_failure(const Json& line) {
    TRY_SET(const Json error, line.object_at("error"));
    Failure out{.id = line.get("id"), .kind = {}, .text = {}};
    TRY_SET(out.kind, error.string("class"));
    TRY_SET(out.text, error.string("desc"));
    return Message(out);
}

Result<Message> parse_event(const Json& line) {
    Event out;
    TRY_SET(out.name, line.string("event"));
    if (line.has("data")) {
        TRY_SET(out.data, line.object_at("data"));
    }
    TRY_SET(const Json timestamp, line.object_at("timestamp"));
    TRY_SET(out.seconds, timestamp.integer("seconds"));
    TRY_SET(out.microseconds, timestamp.integer("microseconds"));
    return Message(out);
}

}  // namespace

Result<Message> parse_message(std::string_view line, size_t max_bytes, int max_depth) {
    auto parsed = Json::parse(line, max_bytes, max_depth);
    if (!parsed) return parsed.error().context("QMP line");
    const Json json = *parsed;
    if (!json.is_object()) return Error(Errc::invalid, "QMP line: not a JSON object");
    if (json.has("event")) return parse_event(json).context("QMP event");
    if (json.has("error")) return parse_failure(json).context("QMP error reply");
    if (json.has("return")) return Message(Return{.id = json.get("id"), .value = json.get("return")});
    if (json.has("QMP")) return parse_greeting(json.get("QMP")).context("QMP greeting");
    return Error(Errc::invalid, "QMP line: neither greeting, reply nor event");
}

std::string format_command(const std::string& name, const Json& arguments, const Json& id) {
    Json line = Json::object({{"execute", name}});
    if (!arguments.is_null()) line.set("arguments", arguments);
    if (!id.is_null()) line.set("id", id);
    return line.dump();
}

Error to_error(const std::string& command, const Failure& failure) {
    Errc code = Errc::failed;
    if (failure.kind == "CommandNotFound") code = Errc::unsupported;
    if (failure.kind == "DeviceNotFound") code = Errc::not_found;
    return {code, fmt::format("QMP {}: {} ({})", command, printable(failure.text, 500), printable(failure.kind, 60))};
}

}  // namespace banana::qmp
