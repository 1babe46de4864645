// Result<T>: a value or an Error, for everything that can fail for reasons outside the program.
//
// Concepts: libraries return Result and never log; the edges (daemon, CLI) log or print an Error once.
// An Error reads "operation object: cause"; an outer layer adds what only it knows with `context()`.
// Exceptions are left for bugs (std::bad_variant_access when a Result is misread).
// Threading: values, no shared state.
#pragma once

#include <string>
#include <utility>
#include <variant>

namespace banana {

// What kind of failure, for those who must act on it; the text is for people.
enum class Errc {
    failed,       // the operation did not work, nothing more is known
    invalid,      // the caller's input is wrong; repeating it cannot help
    not_found,    // the named object does not exist
    exists,       // an object of that name exists already
    refused,      // understood and possible, but not permitted (policy, ownership, fencing)
    unreachable,  // a peer or daemon cannot be reached; may work later
    timeout,      // a deadline passed
    busy,         // a conflicting operation is under way; may work later
    unsupported,  // this kernel, library or peer cannot do it
};

const char* errc_name(Errc code);
Errc errc_from_name(const std::string& name);

class Error {
public:
    Error(Errc code, std::string message) : code_(code), message_(std::move(message)) {}
    explicit Error(std::string message) : Error(Errc::failed, std::move(message)) {}

    Errc code() const { return code_; }
    const std::string& message() const { return message_; }

    // The same error, seen from one layer further out: "<outer>: <message>".
    Error context(const std::string& outer) const { return {code_, outer + ": " + message_}; }

private:
    Errc code_;
    std::string message_;
};

// `what: strerror(err)`; EEXIST, ENOENT/ENODEV, EPERM and ETIMEDOUT keep their meaning as an Errc.
Error errno_error(int err, const std::string& what);

template <class T>
class [[nodiscard]] Result {
public:
    Result(T value) : data_(std::in_place_index<0>, std::move(value)) {}
    Result(Error error) : data_(std::in_place_index<1>, std::move(error)) {}

    bool ok() const { return data_.index() == 0; }
    explicit operator bool() const { return ok(); }

    T& value() & { return std::get<0>(data_); }
    const T& value() const& { return std::get<0>(data_); }
    T&& value() && { return std::get<0>(std::move(data_)); }
    T& operator*() & { return value(); }
    const T& operator*() const& { return value(); }
    T&& operator*() && { return std::move(*this).value(); }
    T* operator->() { return &value(); }
    const T* operator->() const { return &value(); }

    const Error& error() const { return std::get<1>(data_); }
    Result context(const std::string& outer) const { return ok() ? *this : Result(error().context(outer)); }

private:
    std::variant<T, Error> data_;
};

struct Unit {};

template <>
class [[nodiscard]] Result<void> {
public:
    Result() = default;
    Result(Error error) : data_(std::in_place_index<1>, std::move(error)) {}

    bool ok() const { return data_.index() == 0; }
    explicit operator bool() const { return ok(); }
    const Error& error() const { return std::get<1>(data_); }
    Result context(const std::string& outer) const { return ok() ? *this : Result(error().context(outer)); }

private:
    std::variant<Unit, Error> data_;
};

using Status = Result<void>;

}  // namespace banana

#define BANANA_CAT2(a, b) a##b
#define BANANA_CAT(a, b) BANANA_CAT2(a, b)

// TRY(expr): return the error of `expr` from this function, else go on.
#define TRY(expr)                                              \
    do {                                                       \
        if (auto try_r = (expr); !try_r) return try_r.error(); \
    } while (0)

// TRY_SET(decl, expr): `decl = value of expr`, or return its error.
#define TRY_SET(decl, expr) TRY_SET_(BANANA_CAT(try_r_, __LINE__), decl, expr)
#define TRY_SET_(tmp, decl, expr) \
    auto tmp = (expr);            \
    if (!tmp) return tmp.error(); \
    decl = std::move(*tmp)

// The same two in a coroutine (asio::awaitable<Result<T>>).
#define CO_TRY(expr)                                              \
    do {                                                          \
        if (auto try_r = (expr); !try_r) co_return try_r.error(); \
    } while (0)
#define CO_TRY_SET(decl, expr) CO_TRY_SET_(BANANA_CAT(try_r_, __LINE__), decl, expr)
#define CO_TRY_SET_(tmp, decl, expr) \
    auto tmp = (expr);               \
    if (!tmp) co_return tmp.error(); \
    decl = std::move(*tmp)
