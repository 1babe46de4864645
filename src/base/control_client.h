// A blocking JSON-RPC client of the control socket, for programs that ask once and end: the CLI, the hook.
//
// Concepts: connect, call, call again; every wait is bounded. A call whose answer did not come in time leaves the
// client usable: a late reply is thrown away. Notifications are skipped. Threading: one thread. Errors: unreachable (no
// daemon, or it hung up), timeout, else what the daemon answered.
#pragma once

#include <chrono>
#include <string>

#include "base/fd.h"
#include "base/json.h"
#include "base/result.h"

namespace banana::rpc {

// Lists are answered whole: of 12 000 Spikes, 900 bytes each, and more.
inline constexpr size_t control_answer_max = 16u << 20;

class BlockingClient {
public:
    static Result<BlockingClient> connect(const std::string& path, std::chrono::milliseconds timeout);
    Result<Json> call(const std::string& method, const Json& params, std::chrono::milliseconds timeout);

private:
    BlockingClient(Fd fd, std::string path) : fd_(std::move(fd)), path_(std::move(path)) {}
    Status send_all(const std::string& line, int64_t deadline_ns);
    Result<std::string> read_line(int64_t deadline_ns);

    Fd fd_;
    std::string path_;
    std::string buffer_;
    int64_t next_id_ = 1;
};

}  // namespace banana::rpc
