#include "pki/files.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "base/bytes.h"
#include "base/fd.h"

namespace banana::pki {

namespace {

// A file under a name of its own; removed with its owner.
class Temporary {
public:
    explicit Temporary(std::string path) : path_(std::move(path)) {}
    Temporary(Temporary&& other) noexcept : path_(std::exchange(other.path_, "")) {}
    Temporary(const Temporary&) = delete;
    Temporary& operator=(Temporary&&) = delete;
    ~Temporary() {
        if (!path_.empty()) ::unlink(path_.c_str());
    }
    const std::string& path() const { return path_; }

private:
    std::string path_;
};

std::string folder_of(const std::string& path) {
    const size_t slash = path.rfind('/');
    if (slash == std::string::npos) return ".";
    return slash == 0 ? "/" : path.substr(0, slash);
}

Status write_all(int fd, const std::string& content, const std::string& what) {
    size_t done = 0;
    while (done < content.size()) {
        const ssize_t n = ::write(fd, content.data() + done, content.size() - done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return errno_error(errno, what);
        done += static_cast<size_t>(n);
    }
    // Some file systems report a full disk only here.
    if (::fsync(fd) != 0) return errno_error(errno, what);
    return {};
}

Result<Temporary> write_beside(const NewFile& file) {
    const std::string what = fmt::format("write {}", file.path);
    const std::string name = fmt::format("{}.{}.tmp", file.path, random_hex(4));
    Fd fd(::open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, file.mode));
    if (!fd) return errno_error(errno, what);
    Temporary temporary(name);
    if (::fchmod(fd.get(), file.mode) != 0) return errno_error(errno, what);  // whatever the umask
    TRY(write_all(fd.get(), file.content, what));
    return temporary;
}

void sync_folder(const std::string& path) {
    const Fd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (fd) ::fsync(fd.get());
}

}  // namespace

Status write_files(const std::vector<NewFile>& files, bool overwrite) {
    std::vector<Temporary> temporaries;
    for (const auto& file : files) {
        struct stat info {};
        if (!overwrite && ::lstat(file.path.c_str(), &info) == 0)
            return Error(Errc::exists,
                         fmt::format("write {}: it is there already; --overwrite replaces it", file.path));
        TRY_SET(auto temporary, write_beside(file));
        temporaries.push_back(std::move(temporary));
    }
    // link() refuses an existing name, so two runs at once cannot overwrite each other either.
    for (size_t i = 0; i < files.size(); ++i) {
        const char* from = temporaries[i].path().c_str();
        const char* to = files[i].path.c_str();
        if ((overwrite ? ::rename(from, to) : ::link(from, to)) == 0) continue;
        const int error = errno;
        for (size_t done = 0; !overwrite && done < i; ++done) ::unlink(files[done].path.c_str());
        return errno_error(error, fmt::format("write {}", files[i].path));
    }
    for (const auto& file : files) sync_folder(folder_of(file.path));
    return {};
}

Result<std::string> read_file(const std::string& path, size_t max) {
    const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd) return errno_error(errno, fmt::format("read {}", path));
    std::string out;
    std::string chunk(4096, '\0');
    while (true) {
        const ssize_t n = ::read(fd.get(), chunk.data(), chunk.size());
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return errno_error(errno, fmt::format("read {}", path));
        if (n == 0) return out;
        out.append(chunk, 0, static_cast<size_t>(n));
        if (out.size() > max) return Error(Errc::invalid, fmt::format("read {}: larger than {} bytes", path, max));
    }
}

Status make_private_dir(const std::string& path) {
    if (::mkdir(path.c_str(), 0700) == 0) return {};
    const int error = errno;
    struct stat info {};
    if (error == EEXIST && ::stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode)) return {};
    return errno_error(error == EEXIST ? ENOTDIR : error, fmt::format("make directory {}", path));
}

}  // namespace banana::pki
