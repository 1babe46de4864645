// TunnelChannel: one connection to banana-tunneld's control socket (tunnel/control.h is the protocol).
//
// Concepts: requests are sent in order, at most `window` unanswered ones at a time, so that hundreds of wires are told
// without a pause between them and without their descriptors all being open here at once. Descriptors are made when
// their request is sent, and closed here when it was. A tunnel process that leaves a request unanswered for `patience`
// is taken for hung: the connection is closed, nothing waits for it. Threading: the io_context's thread; callbacks too.
// Errors: connect() tells the socket's path; a request's answer is its result, its refusal ("METHOD: message"), or
// unreachable, when the connection ended before. Each request gets exactly one answer.
#pragma once

#include <asio/io_context.hpp>
#include <asio/posix/stream_descriptor.hpp>
#include <asio/steady_timer.hpp>
#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/json.h"
#include "peer/coroutine.h"

namespace banana::controller {

class TunnelChannel : public std::enable_shared_from_this<TunnelChannel> {
public:
    using Answer = std::function<void(const Result<Json>&)>;
    using MakeFds = std::function<Result<std::vector<Fd>>()>;

    static constexpr size_t window = 32;
    static constexpr std::chrono::milliseconds default_patience{2000};

    static Result<std::shared_ptr<TunnelChannel>> connect(asio::io_context& io, const std::string& path,
                                                          std::chrono::milliseconds patience = default_patience);
    TunnelChannel(asio::io_context& io, Fd socket, std::chrono::milliseconds patience);

    // on_closed: once, whoever closed it; not called by close() itself.
    void start(std::function<void(const Json&)> on_event, std::function<void(const Error&)> on_closed);
    void close();

    void request(const std::string& method, const Json& params, Answer answer, MakeFds fds = {});
    static asio::awaitable<Result<Json>> call(std::shared_ptr<TunnelChannel> self, std::string method, Json params,
                                              MakeFds fds = {});
    pid_t pid() const;  // of the process at the other end; 0: not known

private:
    struct Request {
        int64_t id = 0;
        std::string method, text;
        Answer answer;
        MakeFds fds;
        int64_t sent_ns = 0;
    };
    void wait_readable();
    void read_all();
    void received(std::string_view text);
    void send_queued();
    enum class Sent { done, blocked, failed };
    Sent send_one(Request& request);
    void watch();
    void fail(const Error& why);

    asio::io_context& io_;
    asio::posix::stream_descriptor descriptor_;
    asio::steady_timer watchdog_;
    std::chrono::milliseconds patience_;
    std::deque<Request> queued_, unanswered_;
    std::vector<Fd> made_;  // of the queue's first request, when the socket was full
    std::vector<char> buffer_;
    int64_t last_id_ = 0;
    bool closed_ = false, sending_ = false, waits_writable_ = false;
    std::function<void(const Json&)> on_event_;
    std::function<void(const Error&)> on_closed_;
};

}  // namespace banana::controller
