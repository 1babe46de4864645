#include "base/json.h"

#include <fmt/core.h>
#include <json-c/json.h>

#include <memory>

namespace banana {

namespace {
constexpr int dump_flags = JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE;

Error member_error(const char* key, const char* problem) {
    return {Errc::invalid, fmt::format("member '{}' {}", key, problem)};
}
}  // namespace

Json::Json(const char* text) : object_(json_object_new_string(text)) {}
Json::Json(const std::string& text) : Json(std::string_view(text)) {}
Json::Json(std::string_view text) : object_(json_object_new_string_len(text.data(), static_cast<int>(text.size()))) {}
Json::Json(bool value) : object_(json_object_new_boolean(value)) {}
Json::Json(int64_t value) : object_(json_object_new_int64(value)) {}
Json::Json(uint64_t value) : object_(json_object_new_uint64(value)) {}
Json::Json(double value) : object_(json_object_new_double(value)) {}
Json::Json(const Json& other) : object_(json_object_get(other.object_)) {}
Json::Json(Json&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
Json& Json::operator=(Json other) noexcept {
    std::swap(object_, other.object_);
    return *this;
}
Json::~Json() { json_object_put(object_); }

Json Json::object() { return Json(json_object_new_object(), 0); }
Json Json::array() { return Json(json_object_new_array(), 0); }

Json Json::object(std::initializer_list<std::pair<const char*, Json>> members) {
    Json out = object();
    for (const auto& [key, value] : members) out.set(key, value);
    return out;
}

Json Json::array(const std::vector<std::string>& texts) {
    Json out = array();
    for (const auto& text : texts) out.push(text);
    return out;
}

Result<Json> Json::parse(std::string_view text, size_t max_bytes, int max_depth) {
    if (text.size() > max_bytes)
        return Error(Errc::invalid, fmt::format("JSON of {} bytes; at most {} are taken", text.size(), max_bytes));
    const std::unique_ptr<json_tokener, decltype(&json_tokener_free)> tokener(json_tokener_new_ex(max_depth),
                                                                              json_tokener_free);
    json_tokener_set_flags(tokener.get(), JSON_TOKENER_STRICT | JSON_TOKENER_VALIDATE_UTF8);
    Json value(json_tokener_parse_ex(tokener.get(), text.data(), static_cast<int>(text.size())), 0);
    auto error = json_tokener_get_error(tokener.get());
    // A bare number or `null` is complete only at the end of input, which json-c must be told of.
    if (error == json_tokener_continue) {
        value = Json(json_tokener_parse_ex(tokener.get(), "", 1), 0);
        error = json_tokener_get_error(tokener.get());
        if (error == json_tokener_success) return value;
    }
    if (error != json_tokener_success)
        return Error(Errc::invalid,
                     fmt::format("not valid JSON at byte {}: {}", json_tokener_get_parse_end(tokener.get()),
                                 json_tokener_error_desc(error)));
    const auto rest = text.substr(json_tokener_get_parse_end(tokener.get()));
    if (rest.find_first_not_of(" \t\r\n") != std::string_view::npos)
        return Error(Errc::invalid, "not valid JSON: text after the value");
    return value;
}

std::string Json::dump() const { return json_object_to_json_string_ext(object_, dump_flags); }
std::string Json::dump_pretty() const {
    return json_object_to_json_string_ext(object_, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_SPACED | dump_flags);
}

bool Json::is_object() const { return json_object_is_type(object_, json_type_object) != 0; }
bool Json::is_array() const { return json_object_is_type(object_, json_type_array) != 0; }
bool Json::is_string() const { return json_object_is_type(object_, json_type_string) != 0; }
bool Json::is_int() const { return json_object_is_type(object_, json_type_int) != 0; }
bool Json::is_bool() const { return json_object_is_type(object_, json_type_boolean) != 0; }

bool Json::has(const char* key) const { return is_object() && json_object_object_get_ex(object_, key, nullptr) != 0; }

Json Json::get(const char* key) const {
    json_object* found = nullptr;
    if (!is_object() || json_object_object_get_ex(object_, key, &found) == 0) return {};
    return Json(json_object_get(found), 0);
}

void Json::set(const char* key, Json value) {
    if (object_ == nullptr) object_ = json_object_new_object();
    json_object_object_add(object_, key, std::exchange(value.object_, nullptr));
}

void Json::erase(const char* key) {
    if (is_object()) json_object_object_del(object_, key);
}

std::vector<std::string> Json::keys() const {
    std::vector<std::string> out;
    if (!is_object()) return out;
    auto end = json_object_iter_end(object_);
    for (auto it = json_object_iter_begin(object_); json_object_iter_equal(&it, &end) == 0; json_object_iter_next(&it))
        out.emplace_back(json_object_iter_peek_name(&it));
    return out;
}

size_t Json::size() const {
    if (is_array()) return json_object_array_length(object_);
    return is_object() ? static_cast<size_t>(json_object_object_length(object_)) : 0;
}

Json Json::at(size_t index) const {
    if (!is_array() || index >= size()) return {};
    return Json(json_object_get(json_object_array_get_idx(object_, index)), 0);
}

void Json::push(Json value) {
    if (object_ == nullptr) object_ = json_object_new_array();
    json_object_array_add(object_, std::exchange(value.object_, nullptr));
}

std::string Json::as_string(std::string_view fallback) const {
    if (!is_string()) return std::string(fallback);
    return {json_object_get_string(object_), static_cast<size_t>(json_object_get_string_len(object_))};
}
int64_t Json::as_int(int64_t fallback) const { return is_int() ? json_object_get_int64(object_) : fallback; }
double Json::as_double(double fallback) const {
    return is_int() || json_object_is_type(object_, json_type_double) ? json_object_get_double(object_) : fallback;
}
bool Json::as_bool(bool fallback) const { return is_bool() ? json_object_get_boolean(object_) != 0 : fallback; }

Result<std::string> Json::string(const char* key) const {
    if (!has(key)) return member_error(key, "is missing");
    if (!get(key).is_string()) return member_error(key, "is not a string");
    return get(key).as_string();
}

Result<int64_t> Json::integer(const char* key, int64_t min, int64_t max) const {
    if (!has(key)) return member_error(key, "is missing");
    if (!get(key).is_int()) return member_error(key, "is not an integer");
    const int64_t value = get(key).as_int();
    if (value < min || value > max)
        return Error(Errc::invalid, fmt::format("member '{}' is {}; it must be {} to {}", key, value, min, max));
    return value;
}

Result<bool> Json::boolean(const char* key) const {
    if (!has(key)) return member_error(key, "is missing");
    if (!get(key).is_bool()) return member_error(key, "is not true or false");
    return get(key).as_bool();
}

Result<Json> Json::object_at(const char* key) const {
    if (!has(key)) return member_error(key, "is missing");
    if (!get(key).is_object()) return member_error(key, "is not an object");
    return get(key);
}

Result<Json> Json::array_at(const char* key) const {
    if (!has(key)) return member_error(key, "is missing");
    if (!get(key).is_array()) return member_error(key, "is not an array");
    return get(key);
}

}  // namespace banana
