#include "controller/hook_files.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <sstream>

namespace banana::controller {

namespace {

constexpr std::string_view program = "/banana-hook";

std::string read(const std::string& path) {
    std::ostringstream text;
    text << std::ifstream(path).rdbuf();
    return text.str();
}

// The banana-hook that a script calls, by its whole path; "" if none.
std::string called_by(const std::string& script) {
    constexpr const char* separators = " \t\n='\";";
    for (size_t begin = 0; (begin = script.find_first_not_of(separators, begin)) != std::string::npos;) {
        const size_t end = std::min(script.find_first_of(separators, begin), script.size());
        const std::string word = script.substr(begin, end - begin);
        if (word.ends_with(program)) return word;
        begin = end;
    }
    return "";
}

std::string problem_of(const std::string& hook, const std::vector<std::string>& directories) {
    std::string problem;
    for (const auto& directory : directories) {
        for (const auto& path :
             {fmt::format("{}/{}.d/50-banana", directory, hook), fmt::format("{}/{}", directory, hook)}) {
            const std::string called = called_by(read(path));
            if (called.empty()) continue;
            if (access(path.c_str(), X_OK) != 0)
                problem = path + " cannot be run";
            else if (access(called.c_str(), X_OK) != 0)
                problem = fmt::format("{} calls {}, which cannot be run", path, called);
            else
                return "";
        }
    }
    return problem.empty() ? fmt::format("the hook {} is not Banana's", hook) : problem;
}

}  // namespace

std::string hook_problem(const std::vector<std::string>& directories) {
    const std::string qemu = problem_of("qemu", directories);
    return qemu.empty() ? problem_of("network", directories) : qemu;
}

}  // namespace banana::controller
