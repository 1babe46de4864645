// JSON-RPC 2.0 as Banana speaks it, without any I/O: cutting bytes into lines, lines into messages, messages into
// lines.
//
// Concepts: a message is one line of JSON, at most 1 MiB long and 32 levels deep. Batches are not taken. What is wrong
// with a line is a value (Malformed), because it has to be answered. An Error crosses the wire as a JSON-RPC error
// whose `data.code` is its Errc by name, so that the caller acts on the same kind of failure as the callee saw.
// Threading: values, no shared state. Reference: the JSON-RPC 2.0 specification, sections 4 and 5.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <variant>

#include "base/json.h"
#include "base/result.h"

namespace banana::rpc {

// Section 5.1 of the specification.
inline constexpr int code_parse_error = -32700;
inline constexpr int code_invalid_request = -32600;
inline constexpr int code_unknown_method = -32601;
inline constexpr int code_invalid_params = -32602;
inline constexpr int code_internal = -32603;
inline constexpr int code_application = -32000;

// Collects bytes and gives out whole lines. Holds at most `max_line` bytes and what was last fed.
class LineReader {
public:
    explicit LineReader(size_t max_line = json_max_bytes) : max_line_(max_line) {}
    void feed(std::string_view data);
    // The next line, without its newline; nothing: more must be fed. Error: the line is too long; it stays so.
    Result<std::optional<std::string>> next();
    // Input that ends now is cut off inside a message.
    bool mid_line() const { return buffer_.size() > start_; }
    size_t held() const { return buffer_.capacity(); }

private:
    size_t max_line_;
    std::string buffer_;
    size_t start_ = 0;    // where the next line begins
    size_t scanned_ = 0;  // no newline before this offset
};

struct Request {
    std::optional<Json> id;  // absent: a notification, which is never answered
    std::string method;
    Json params;  // null when absent
};

struct Reply {
    int64_t id;
    Result<Json> result;
};

struct Malformed {
    int code;
    std::string text;
    Json id;  // the request's, where it could be read
};

using Message = std::variant<Request, Reply, Malformed>;

Message decode(std::string_view line);

// Each gives a line with its newline.
std::string encode_request(int64_t id, const std::string& method, const Json& params);
std::string encode_notification(const std::string& method, const Json& params);
std::string encode_result(const Json& id, const Json& result);
std::string encode_error(const Json& id, int code, const std::string& text, Errc errc);
std::string encode_error(const Json& id, const Error& error);  // code by the Errc

}  // namespace banana::rpc
