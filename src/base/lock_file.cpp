#include "base/lock_file.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/file.h>

#include <cerrno>

namespace banana {

Result<Fd> lock_beside(const std::string& path) {
    const std::string name = path + ".lock";
    Fd fd(::open(name.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!fd) return errno_error(errno, fmt::format("open {}", name));
    if (::flock(fd.get(), LOCK_EX | LOCK_NB) == 0) return fd;
    if (errno != EWOULDBLOCK) return errno_error(errno, fmt::format("lock {}", name));
    return Error(Errc::exists, fmt::format("listen on {}: another process serves it", path));
}

}  // namespace banana
