#include <iostream>

#include "cli/run.h"

int main(int argc, char** argv) {
    const int code = banana::cli::run({argv + 1, argv + argc}, std::cout, std::cerr);
    std::cout.flush();
    // A full disk behind a redirection must not look like success.
    if (!std::cout && code == 0) {
        std::cerr << "banana: write to stdout: failed\n";
        return banana::cli::exit_failed;
    }
    return code;
}
