// Whether libvirt's hook directories hold what tells bananad of guests.
//
// Threading: reads files. Errors: told as text.
#pragma once

#include <string>
#include <vector>

namespace banana::controller {

// What is wrong with the hooks `qemu` and `network`: "" if one of each, in any of these directories (libvirt's
// "hooks"), can be run and calls a banana-hook that can be run.
std::string hook_problem(const std::vector<std::string>& directories);

}  // namespace banana::controller
