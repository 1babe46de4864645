#include "base/result.h"

#include <array>
#include <cerrno>
#include <cstring>

namespace banana {

namespace {
struct Name {
    Errc code;
    const char* name;
};
constexpr std::array<Name, 9> names{{{Errc::failed, "failed"},
                                     {Errc::invalid, "invalid"},
                                     {Errc::not_found, "not-found"},
                                     {Errc::exists, "exists"},
                                     {Errc::refused, "refused"},
                                     {Errc::unreachable, "unreachable"},
                                     {Errc::timeout, "timeout"},
                                     {Errc::busy, "busy"},
                                     {Errc::unsupported, "unsupported"}}};
}  // namespace

const char* errc_name(Errc code) {
    for (const auto& n : names)
        if (n.code == code) return n.name;
    return "failed";
}

Errc errc_from_name(const std::string& name) {
    for (const auto& n : names)
        if (name == n.name) return n.code;
    return Errc::failed;
}

Error errno_error(int err, const std::string& what) {
    Errc code = Errc::failed;
    switch (err) {
        case EEXIST: code = Errc::exists; break;
        case ENOENT:
        case ENODEV:
        case ESRCH: code = Errc::not_found; break;
        case EACCES:
        case EPERM: code = Errc::refused; break;
        case ETIMEDOUT: code = Errc::timeout; break;
        case EBUSY: code = Errc::busy; break;
        case EOPNOTSUPP:
        case ENOSYS: code = Errc::unsupported; break;
        case ECONNREFUSED:
        case EHOSTUNREACH:
        case ENETUNREACH: code = Errc::unreachable; break;
        case EINVAL:
        case ERANGE: code = Errc::invalid; break;
        default: break;
    }
    return {code, what + ": " + std::strerror(err)};
}

}  // namespace banana
