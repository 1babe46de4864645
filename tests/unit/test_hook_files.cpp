#include "controller/hook_files.h"

#include <doctest/doctest.h>
#include <fmt/core.h>

#include <filesystem>
#include <fstream>

#include "base/bytes.h"

using namespace banana;
namespace fs = std::filesystem;

namespace {

struct Hooks {
    fs::path folder = fs::temp_directory_path() / ("banana-hooks-" + random_hex(8));
    std::string directory = folder / "hooks", program = folder / "banana-hook";

    Hooks() {
        write(program, "");
        write(directory + "/qemu.d/50-banana", stub("qemu"));
        write(directory + "/network.d/50-banana", stub("network"));
    }
    ~Hooks() { fs::remove_all(folder); }

    std::string stub(const char* hook) const { return fmt::format("#!/bin/sh\nexec {} {} \"$@\"\n", program, hook); }
    static void write(const fs::path& path, const std::string& text) {
        fs::create_directories(path.parent_path());
        std::ofstream(path) << text;
        fs::permissions(path, fs::perms::owner_all);
    }
    std::string problem() const { return controller::hook_problem({folder / "elsewhere", directory}); }
};

}  // namespace

TEST_CASE("both hooks are Banana's, in a .d directory or by themselves") {
    Hooks hooks;
    CHECK(hooks.problem() == "");
    fs::remove_all(hooks.directory + "/qemu.d");
    hooks.write(hooks.directory + "/qemu", fmt::format("hook={}\nexec \"$hook\" qemu\n", hooks.program));
    CHECK(hooks.problem() == "");
}

TEST_CASE("a hook that is missing, another's, not to be run, or calls nothing that can be run") {
    Hooks hooks;
    hooks.write(hooks.directory + "/network.d/50-banana", "#!/bin/sh\nexit 0\n");
    CHECK(hooks.problem() == "the hook network is not Banana's");
    fs::remove(hooks.directory + "/qemu.d/50-banana");
    CHECK(hooks.problem() == "the hook qemu is not Banana's");

    Hooks others;
    const std::string path = others.directory + "/qemu.d/50-banana";
    fs::remove(others.program);
    CHECK(others.problem() == fmt::format("{} calls {}, which cannot be run", path, others.program));
    fs::permissions(path, fs::perms::owner_read);
    CHECK(others.problem() == path + " cannot be run");
}
