// Include this in place of <asio/awaitable.hpp>.
//
// g++ 12 raises two warnings in correct coroutines, each at the coroutine's end, so they stay off for the rest of a
// file that includes this:
// - mismatched-new-delete: it inlines the operator new of Asio's frames and not the matching operator delete;
// - maybe-uninitialized: with sanitizers on, it takes the inactive member of a Result's variant for one that is read.
#pragma once

#include <asio/awaitable.hpp>

#pragma GCC diagnostic ignored "-Wmismatched-new-delete"
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
