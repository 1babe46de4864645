// Files that are there whole or not at all: several new ones at once, each 0600 or 0644 from its first byte.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "base/result.h"

namespace banana::pki {

struct NewFile {
    std::string path;
    std::string content;
    mode_t mode;
};

// All or none: every file is written and synced beside its name before the first is given it. Without `overwrite`, a
// name that exists is Errc::exists and nothing changes.
Status write_files(const std::vector<NewFile>& files, bool overwrite);

Result<std::string> read_file(const std::string& path, size_t max = 1 << 20);
Status make_private_dir(const std::string& path);  // mode 0700; one that exists is left as it is

}  // namespace banana::pki
