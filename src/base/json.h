// Json: a value type over json-c, the one JSON codec of the control socket, of peers and of QMP.
//
// Concepts: a Json shares its json_object by reference count; copying is cheap and two copies see each other's
// changes, as json-c objects do. A default Json is null. Integers are 64 bits.
// Parsing is bounded: `max_bytes` and `max_depth` (defaults are the protocol's: 1 MiB, 32 levels), strict, whole input.
// Reading is total: a missing or wrongly typed member is an Error that names the member.
// Threading: json-c counts references without locks; a Json and its copies belong to one thread.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

struct json_object;

namespace banana {

inline constexpr size_t json_max_bytes = 1 << 20;
inline constexpr int json_max_depth = 32;

class Json {
public:
    Json() = default;
    Json(const char* text);
    Json(const std::string& text);
    Json(std::string_view text);
    Json(bool value);
    Json(int value) : Json(static_cast<int64_t>(value)) {}
    Json(unsigned value) : Json(static_cast<int64_t>(value)) {}
    Json(int64_t value);
    Json(uint64_t value);
    Json(double value);
    Json(const Json& other);
    Json(Json&& other) noexcept;
    Json& operator=(Json other) noexcept;
    ~Json();

    static Json object();
    static Json object(std::initializer_list<std::pair<const char*, Json>> members);
    static Json array();
    static Json array(const std::vector<std::string>& texts);

    // Parses exactly one value; trailing blanks are allowed, anything else is an error.
    static Result<Json> parse(std::string_view text, size_t max_bytes = json_max_bytes, int max_depth = json_max_depth);
    std::string dump() const;         // one line, no newline in it
    std::string dump_pretty() const;  // for people

    bool is_null() const { return object_ == nullptr; }
    bool is_object() const;
    bool is_array() const;
    bool is_string() const;
    bool is_int() const;
    bool is_bool() const;

    // Objects.
    bool has(const char* key) const;
    Json get(const char* key) const;  // null when absent or when this is no object
    void set(const char* key, Json value);
    void erase(const char* key);
    std::vector<std::string> keys() const;

    // Arrays.
    size_t size() const;  // elements or members; 0 for anything else
    Json at(size_t index) const;
    void push(Json value);

    // This value itself; the fallback when it has another type.
    std::string as_string(std::string_view fallback = "") const;
    int64_t as_int(int64_t fallback = 0) const;
    double as_double(double fallback = 0) const;
    bool as_bool(bool fallback = false) const;

    // A required member; the error names it: "member 'epoch' is missing" / "... is not an integer".
    Result<std::string> string(const char* key) const;
    Result<int64_t> integer(const char* key, int64_t min = INT64_MIN, int64_t max = INT64_MAX) const;
    Result<bool> boolean(const char* key) const;
    Result<Json> object_at(const char* key) const;
    Result<Json> array_at(const char* key) const;

private:
    explicit Json(json_object* adopted, int) : object_(adopted) {}
    json_object* object_ = nullptr;
};

}  // namespace banana
