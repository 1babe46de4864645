// rpc::Connection: one JSON-RPC peer at the other end of any byte stream; both ends may call and serve.
//
// Concepts: a Dispatcher holds the methods that are served; a Context says who asks; a Stream hides what the bytes
// travel on (UNIX socket, TLS). Each request is served by a coroutine of its own, begun in order of arrival, so a slow
// one holds up nobody. Replies are matched by id.
// What ends a connection: end of input, an I/O error, malformed input (answered first), a peer that does not read its
// replies, and close(). Unknown methods and members do not. When it ends, waiting calls get Errc::unreachable with the
// reason; requests in service run to their end, as half of a change is worse than an answer nobody reads.
// Threading: everything runs on the io_context's single thread. Coroutines hold the connection alive; handlers may
// outlive it. All of these objects must be gone, or closed and the io_context never run again, before it is destroyed.
// For handlers, g++ 12: keep `Json::object({...})` out of the expression of a co_await; name it in a variable first.
#pragma once

#include <asio/any_io_executor.hpp>

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "peer/coroutine.h"

namespace banana::rpc {

using std::chrono::milliseconds;

class Connection;

// Who asks.
struct Context {
    std::string peer;                      // host name from the certificate; "" on the control socket
    std::string role;                      // the certificate's role; "control" on the control socket
    bool is_control = false;               // root on this host
    std::string from;                      // for log lines: "control pid 4711", "peer hv2"
    std::weak_ptr<Connection> connection;  // to notify the asker later
};

// `context` lives as long as the coroutine. Errors go to the caller with their Errc.
using Handler = std::function<asio::awaitable<Result<Json>>(Context& context, Json params)>;

// The methods served. A handle: copies share the table, so methods may be added after connections were made.
class Dispatcher {
public:
    Dispatcher();
    void on(const std::string& method, Handler handler);  // replaces an earlier one
    std::shared_ptr<const Handler> find(const std::string& method) const;
    std::vector<std::string> methods() const;

private:
    std::shared_ptr<std::map<std::string, std::shared_ptr<const Handler>>> table_;
};

// A duplex stream of bytes; at most one read and one write are under way.
class Stream {
public:
    virtual ~Stream() = default;
    virtual asio::any_io_executor executor() = 0;
    virtual asio::awaitable<Result<size_t>> read_some(char* data, size_t size) = 0;  // 0: end of input
    virtual asio::awaitable<Status> write(const std::string& data) = 0;              // all of it
    virtual void shutdown_send() = 0;                                                // the other end reads end of input
    virtual void close() = 0;  // at once; what waits ends with an error
};

struct Limits {
    size_t max_line = json_max_bytes;
    size_t max_answer = json_max_bytes;  // what goes out in answer to a request
    size_t max_serving = 64;             // requests in service; further ones are answered `busy`
    size_t max_calls = 1024;             // own calls under way
    size_t max_queued = 4u << 20;        // bytes of output that wait; past it the connection is closed
    milliseconds line_timeout{10000};    // a line that has begun must end
    milliseconds write_timeout{10000};
    milliseconds idle_timeout{0};   // closed after so long without input while nothing is in service; 0: never
    bool silence_is_death = false;  // idle_timeout counts while requests are in service, too
    milliseconds linger{1000};      // how long input is thrown away after a fatal error reply
    size_t max_lingered = 16u << 20;
};

class Connection : public std::enable_shared_from_this<Connection> {
public:
    using OnClose = std::function<void(const Error& why)>;

    // Starts reading at once. `on_close` is called once, from the event loop.
    static std::shared_ptr<Connection> start(std::unique_ptr<Stream> stream, Dispatcher dispatcher, Context context,
                                             Limits limits = {}, OnClose on_close = {});
    ~Connection();

    // unreachable: closed or lost meanwhile; timeout; busy: too many calls under way; else what the other end answered.
    asio::awaitable<Result<Json>> call(std::string method, Json params, milliseconds timeout);
    Status notify(const std::string& method, const Json& params);

    void close(const Error& why);
    void close_after_flush(const Error& why);  // what is queued is written first, input is no longer served
    bool is_open() const;
    Error close_reason() const;  // meaningful once closed
    size_t serving() const;
    Context& context();
    void set_dispatcher(Dispatcher dispatcher);
    void set_idle_timeout(milliseconds timeout);

private:
    struct Impl;
    explicit Connection(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

}  // namespace banana::rpc
