// What a configuration that was read again changes, and which of it a running daemon can take.
//
// Threading: values and pure functions.
#pragma once

#include <string>
#include <vector>

#include "controller/config.h"

namespace banana::controller {

struct ConfigChange {
    bool limits = false, log_level = false;
    std::vector<PeerConfig> new_peers;
    std::vector<std::string> restart;  // what waits for the next start, named as in the file: "[tunnel] lanes"
};

ConfigChange compare(const Config& running, const Config& fresh);

}  // namespace banana::controller
