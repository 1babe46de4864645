#include "peer/codec.h"

#include <fmt/core.h>

#include "base/bytes.h"

namespace banana::rpc {

void LineReader::feed(std::string_view data) {
    buffer_.erase(0, start_);
    scanned_ -= start_;
    start_ = 0;
    buffer_.append(data);
}

Result<std::optional<std::string>> LineReader::next() {
    const size_t end = buffer_.find('\n', scanned_);
    const size_t length = (end == std::string::npos ? buffer_.size() : end) - start_;
    if (length > max_line_) return Error(Errc::invalid, fmt::format("message of more than {} bytes", max_line_));
    if (end == std::string::npos) {
        scanned_ = buffer_.size();
        return std::optional<std::string>{};
    }
    std::optional<std::string> line = buffer_.substr(start_, length);
    start_ = scanned_ = end + 1;
    if (start_ == buffer_.size()) {
        std::string().swap(buffer_);  // a large line's memory is not kept while the connection is idle
        start_ = scanned_ = 0;
    }
    return line;
}

namespace {

// The text of a failure comes from the other end and goes into logs and terminals.
std::string one_line(std::string text) {
    constexpr size_t max = 4000;
    if (text.size() > max) text.resize(max);
    for (char& c : text)
        if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
    return text;
}

Errc errc_of(int64_t code, const Json& error) {
    const Json name = error.get("data").get("code");
    if (name.is_string()) return errc_from_name(name.as_string());
    if (code == code_unknown_method) return Errc::unsupported;
    return code == code_invalid_params ? Errc::invalid : Errc::failed;
}

Message decode_reply(const Json& json) {
    if (!json.get("id").is_int()) {
        // Without an id nobody waits for it; the other end says that it could not read what we sent.
        const std::string text = one_line(json.get("error").get("message").as_string("an error without text"));
        return Malformed{code_invalid_request, "an error reply to no request: " + text, {}};
    }
    const int64_t id = json.get("id").as_int();
    if (!json.has("error")) return Reply{id, json.get("result")};
    const Json error = json.get("error");
    const std::string text = one_line(error.get("message").as_string("an error without text"));
    return Reply{id, Error(errc_of(error.get("code").as_int(), error), text)};
}

bool is_id(const Json& id) { return id.is_null() || id.is_int() || id.is_string(); }

std::string line_of(const Json& json) { return json.dump() + '\n'; }

Json message() { return Json::object({{"jsonrpc", "2.0"}}); }

}  // namespace

Message decode(std::string_view line) {
    auto parsed = Json::parse(line);
    if (!parsed) return Malformed{code_parse_error, parsed.error().message(), {}};
    const Json& json = *parsed;
    if (!json.is_object()) return Malformed{code_invalid_request, "a message is one JSON object", {}};
    const Json id = json.get("id");
    if (!is_id(id)) return Malformed{code_invalid_request, "member 'id' is no integer and no string", {}};
    if (json.get("jsonrpc").as_string() != "2.0")
        return Malformed{code_invalid_request, "member 'jsonrpc' is not \"2.0\"", id};
    if (!json.has("method")) {
        if (json.has("result") || json.has("error")) return decode_reply(json);
        return Malformed{code_invalid_request, "member 'method' is missing", id};
    }
    if (!json.get("method").is_string()) return Malformed{code_invalid_request, "member 'method' is not a string", id};
    Request request{std::nullopt, json.get("method").as_string(), json.get("params")};
    if (json.has("id")) request.id = id;
    return request;
}

std::string encode_request(int64_t id, const std::string& method, const Json& params) {
    Json json = message();
    json.set("id", id);
    json.set("method", method);
    if (!params.is_null()) json.set("params", params);
    return line_of(json);
}

std::string encode_notification(const std::string& method, const Json& params) {
    Json json = message();
    json.set("method", method);
    if (!params.is_null()) json.set("params", params);
    return line_of(json);
}

std::string encode_result(const Json& id, const Json& result) {
    Json json = message();
    json.set("id", id);
    json.set("result", result);
    return line_of(json);
}

std::string encode_error(const Json& id, int code, const std::string& text, Errc errc) {
    Json error = Json::object({{"code", code}, {"message", text}});
    error.set("data", Json::object({{"code", errc_name(errc)}}));
    Json json = message();
    json.set("id", id);
    json.set("error", error);
    return line_of(json);
}

std::string encode_error(const Json& id, const Error& error) {
    const int code = error.code() == Errc::invalid ? code_invalid_params : code_application;
    return encode_error(id, code, error.message(), error.code());
}

}  // namespace banana::rpc
