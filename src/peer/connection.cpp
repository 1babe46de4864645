// How a connection lives.
//
//   open --malformed input / close_after_flush--> draining --flushed and the other end gone, or linger over--> closed
//   open --end of input--> ended: no more requests; what is in service and queued is still answered --> closed
//   any  --I/O error, slow reader, silence, close()--> closed
//
// Three kinds of coroutines hold the object: one reader, one writer while output waits, one per request in service; a
// watchdog ticks. All I/O waits are inside the Stream, so closing that ends reader and writer; the watchdog's and the
// callers' timers are cancelled. `close()` is the only way into `closed` and may be called from anywhere.
#include <fmt/core.h>

#include <array>
#include <asio/post.hpp>
#include <asio/redirect_error.hpp>
#include <asio/steady_timer.hpp>
#include <asio/use_awaitable.hpp>
#include <deque>
#include <optional>

#include "base/bytes.h"
#include "peer/codec.h"
#include "peer/rpc.h"
#include "peer/spawn.h"

namespace banana::rpc {

Dispatcher::Dispatcher() : table_(std::make_shared<std::map<std::string, std::shared_ptr<const Handler>>>()) {}

void Dispatcher::on(const std::string& method, Handler handler) {
    (*table_)[method] = std::make_shared<const Handler>(std::move(handler));
}

std::shared_ptr<const Handler> Dispatcher::find(const std::string& method) const {
    const auto found = table_->find(method);
    return found == table_->end() ? nullptr : found->second;
}

std::vector<std::string> Dispatcher::methods() const {
    std::vector<std::string> out;
    for (const auto& [method, handler] : *table_) out.push_back(method);
    return out;
}

namespace {

using Clock = std::chrono::steady_clock;
constexpr milliseconds tick{250};
constexpr size_t write_batch = 1 << 16;

// A call that waits; it stands in its coroutine's frame.
struct Pending {
    explicit Pending(const asio::any_io_executor& executor) : timer(executor) {}
    asio::steady_timer timer;
    std::optional<Result<Json>> answer;
};

// Whatever ends the wait, a frame that is gone is never written to.
struct Forget {
    std::map<int64_t, Pending*>& pending;
    int64_t id;
    ~Forget() { pending.erase(id); }
};

enum class State { open, ended, draining, closed };

}  // namespace

struct Connection::Impl {
    Impl(std::unique_ptr<Stream> s, Dispatcher d, Context c, Limits l, OnClose o)
        : stream(std::move(s)),
          dispatcher(std::move(d)),
          context(std::move(c)),
          limits(l),
          on_close(std::move(o)),
          reader(l.max_line),
          watchdog(stream->executor()) {}

    std::unique_ptr<Stream> stream;
    Dispatcher dispatcher;
    Context context;
    Limits limits;
    OnClose on_close;
    LineReader reader;
    asio::steady_timer watchdog;

    State state = State::open;
    Error why{Errc::unreachable, "closed"};
    std::map<int64_t, Pending*> pending;
    int64_t next_id = 1;
    size_t serving = 0;
    std::deque<std::string> queue;
    size_t queued = 0;  // bytes, with those being written
    bool writing = false;
    size_t lingered = 0;
    Clock::time_point last_input = Clock::now();
    std::optional<Clock::time_point> line_since, write_since, drain_since;

    using Self = std::shared_ptr<Connection>;
    static asio::awaitable<void> read_loop(Self self);
    static asio::awaitable<void> write_loop(Self self);
    static asio::awaitable<void> watch(Self self);
    static asio::awaitable<void> serve(Self self, std::shared_ptr<const Handler> handler, Request request);

    void take_lines(Connection& self, std::string_view data);
    void take_message(Connection& self, const std::string& line);
    void take_request(Connection& self, Request request);
    void take_reply(Reply& reply);
    void fail_pending(const Error& error);
    void enqueue(Connection& self, std::string line);
    void refuse(Connection& self, int code, const std::string& text, const Json& id);
    void end_of_input(Connection& self);
    void close_if_done(Connection& self);
    std::optional<Error> overdue(Clock::time_point now) const;
};

Connection::Connection(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Connection::~Connection() = default;

std::shared_ptr<Connection> Connection::start(std::unique_ptr<Stream> stream, Dispatcher dispatcher, Context context,
                                              Limits limits, OnClose on_close) {
    auto impl = std::make_unique<Impl>(std::move(stream), std::move(dispatcher), std::move(context), limits,
                                       std::move(on_close));
    std::shared_ptr<Connection> self(new Connection(std::move(impl)));
    self->impl_->context.connection = self;
    const auto executor = self->impl_->stream->executor();
    spawn(executor, Impl::read_loop(self), "connection reader");
    spawn(executor, Impl::watch(self), "connection watchdog");
    return self;
}

// --- input, in the order in which a message meets it ---

asio::awaitable<void> Connection::Impl::read_loop(Self self) {
    Impl& impl = *self->impl_;
    std::array<char, 16384> chunk;
    while (impl.state != State::closed) {
        const auto got = co_await impl.stream->read_some(chunk.data(), chunk.size());
        if (!got) {
            self->close(got.error());
            co_return;
        }
        if (*got == 0) {
            impl.end_of_input(*self);
            co_return;
        }
        impl.last_input = Clock::now();
        if (impl.state == State::open) {
            impl.take_lines(*self, {chunk.data(), *got});
        } else if (impl.lingered += *got; impl.lingered > impl.limits.max_lingered) {
            self->close(impl.why);
        }
    }
}

void Connection::Impl::take_lines(Connection& self, std::string_view data) {
    reader.feed(data);
    while (state == State::open) {
        auto line = reader.next();
        if (!line) return refuse(self, code_invalid_request, line.error().message(), {});
        if (!*line) break;
        line_since.reset();
        if ((*line)->find_first_not_of(" \t\r") != std::string::npos) take_message(self, **line);
    }
    if (!reader.mid_line()) {
        line_since.reset();
    } else if (!line_since) {
        line_since = Clock::now();
    }
}

void Connection::Impl::take_message(Connection& self, const std::string& line) {
    Message message = decode(line);
    if (auto* bad = std::get_if<Malformed>(&message)) return refuse(self, bad->code, bad->text, bad->id);
    if (auto* reply = std::get_if<Reply>(&message)) return take_reply(*reply);
    take_request(self, std::move(std::get<Request>(message)));
}

void Connection::Impl::take_request(Connection& self, Request request) {
    const auto handler = dispatcher.find(request.method);
    const Json id = request.id.value_or(Json());
    std::string problem;
    if (!handler) {
        problem =
            encode_error(id, code_unknown_method,
                         fmt::format("method '{}' is not known", printable(request.method, 80)), Errc::unsupported);
    } else if (serving >= limits.max_serving) {
        problem = encode_error(id, Error(Errc::busy, fmt::format("{} requests are in service", serving)));
    }
    if (!problem.empty()) {
        if (request.id) enqueue(self, std::move(problem));
        return;
    }
    ++serving;
    spawn(stream->executor(), serve(self.shared_from_this(), handler, std::move(request)), "request");
}

asio::awaitable<void> Connection::Impl::serve(Self self, std::shared_ptr<const Handler> handler, Request request) {
    Impl& impl = *self->impl_;
    Context context = impl.context;
    std::string line;
    try {
        const Result<Json> result = co_await (*handler)(context, std::move(request.params));
        if (request.id) line = result ? encode_result(*request.id, *result) : encode_error(*request.id, result.error());
    } catch (const std::exception& e) {
        log::error("bug: method {} for {} threw: {}", printable(request.method, 80), context.from, e.what());
        line.clear();
        if (request.id) line = encode_error(*request.id, code_internal, "internal error", Errc::failed);
    }
    --impl.serving;
    if (line.size() > impl.limits.max_answer + 1) {
        const std::string text =
            fmt::format("the answer has {} bytes; a message holds {}", line.size(), impl.limits.max_answer);
        line = encode_error(*request.id, Error(Errc::failed, text));
    }
    if (!line.empty()) impl.enqueue(*self, std::move(line));
    impl.close_if_done(*self);
}

void Connection::Impl::take_reply(Reply& reply) {
    const auto found = pending.find(reply.id);
    if (found == pending.end()) return;  // its caller's time was over
    found->second->answer = std::move(reply.result);
    found->second->timer.cancel();
    pending.erase(found);
}

// What cannot be understood is answered once; then input is thrown away for a moment, so that the answer arrives
// before the reset that closing with unread input makes of it.
void Connection::Impl::refuse(Connection& self, int code, const std::string& text, const Json& id) {
    enqueue(self, encode_error(id, code, text, Errc::invalid));
    self.close_after_flush(Error(Errc::invalid, "malformed input: " + text));
}

void Connection::Impl::end_of_input(Connection& self) {
    if (state == State::closed) return;
    if (state == State::open && reader.mid_line()) {
        why = Error(Errc::invalid, "malformed input: it ended inside a message");
        enqueue(self, encode_error({}, code_parse_error, "the input ended inside a message", Errc::invalid));
    } else if (state == State::open) {
        why = Error(Errc::unreachable, "the other end closed the connection");
    }
    if (state == State::closed) return;
    state = State::ended;
    line_since.reset();
    fail_pending(Error(Errc::unreachable, why.message()));
    close_if_done(self);
}

// --- output ---

void Connection::Impl::enqueue(Connection& self, std::string line) {
    if (state == State::closed || state == State::draining) return;
    if (queued + line.size() > limits.max_queued) {
        self.close(Error(Errc::failed, fmt::format("it does not read: {} bytes of output wait", queued)));
        return;
    }
    queued += line.size();
    queue.push_back(std::move(line));
    if (std::exchange(writing, true)) return;
    spawn(stream->executor(), write_loop(self.shared_from_this()), "connection writer");
}

asio::awaitable<void> Connection::Impl::write_loop(Self self) {
    Impl& impl = *self->impl_;
    while (!impl.queue.empty() && impl.state != State::closed) {
        std::string batch;
        while (!impl.queue.empty() && (batch.empty() || batch.size() + impl.queue.front().size() <= write_batch)) {
            batch += impl.queue.front();
            impl.queue.pop_front();
        }
        impl.write_since = Clock::now();
        const Status sent = co_await impl.stream->write(batch);
        impl.write_since.reset();
        impl.queued -= batch.size();
        if (!sent) self->close(sent.error());
    }
    impl.writing = false;
    if (impl.state == State::draining) impl.stream->shutdown_send();
    impl.close_if_done(*self);
}

void Connection::Impl::close_if_done(Connection& self) {
    if (state == State::ended && serving == 0 && !writing) self.close(Error(why));
}

// --- calls of our own ---

asio::awaitable<Result<Json>> Connection::call(std::string method, Json params, milliseconds timeout) {
    const auto keep = shared_from_this();
    Impl& impl = *impl_;
    if (impl.state != State::open) co_return Error(Errc::unreachable, impl.why.message());
    if (impl.pending.size() >= impl.limits.max_calls)
        co_return Error(Errc::busy, fmt::format("{} calls are under way", impl.pending.size()));
    const int64_t id = impl.next_id++;
    std::string line = encode_request(id, method, params);
    if (line.size() > impl.limits.max_line + 1)
        co_return Error(Errc::invalid,
                        fmt::format("a request of {} bytes; a message holds {}", line.size(), impl.limits.max_line));
    Pending waiting(impl.stream->executor());
    impl.pending[id] = &waiting;
    const Forget forget{impl.pending, id};
    impl.enqueue(*this, std::move(line));
    if (!waiting.answer) {
        waiting.timer.expires_after(timeout);
        asio::error_code ignored;  // the answer says how the wait ended
        co_await waiting.timer.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
    }
    if (waiting.answer) co_return std::move(*waiting.answer);
    co_return Error(Errc::timeout, fmt::format("{}: no answer within {} ms", method, timeout.count()));
}

Status Connection::notify(const std::string& method, const Json& params) {
    if (impl_->state != State::open) return Error(Errc::unreachable, impl_->why.message());
    impl_->enqueue(*this, encode_notification(method, params));
    return {};
}

void Connection::Impl::fail_pending(const Error& error) {
    for (const auto& [id, waiting] : pending) {
        waiting->answer = Result<Json>(error);
        waiting->timer.cancel();
    }
    pending.clear();
}

// --- the end ---

void Connection::close(const Error& reason) {
    Impl& impl = *impl_;
    if (impl.state == State::closed) return;
    if (impl.state == State::open) impl.why = reason;
    impl.state = State::closed;
    impl.stream->close();
    impl.watchdog.cancel();
    impl.queue.clear();
    impl.fail_pending(Error(Errc::unreachable, impl.why.message()));
    if (impl.on_close)
        asio::post(impl.stream->executor(), [tell = std::exchange(impl.on_close, {}), why = impl.why] { tell(why); });
}

void Connection::close_after_flush(const Error& reason) {
    Impl& impl = *impl_;
    if (impl.state != State::open) return;
    impl.why = reason;
    impl.state = State::draining;
    impl.drain_since = Clock::now();
    impl.line_since.reset();
    impl.fail_pending(Error(Errc::unreachable, reason.message()));
    if (!impl.writing) impl.stream->shutdown_send();
}

// --- time limits ---

std::optional<Error> Connection::Impl::overdue(Clock::time_point now) const {
    if (drain_since && now - *drain_since > limits.linger) return why;
    if (line_since && now - *line_since > limits.line_timeout)
        return Error(Errc::timeout, "a message was begun and not ended in time");
    if (write_since && now - *write_since > limits.write_timeout)
        return Error(Errc::timeout, "it does not read what is sent");
    const bool quiet = limits.silence_is_death || (serving == 0 && pending.empty() && !writing);
    if (limits.idle_timeout.count() > 0 && quiet && now - last_input > limits.idle_timeout)
        return Error(Errc::timeout, fmt::format("silent for {} ms", limits.idle_timeout.count()));
    return std::nullopt;
}

asio::awaitable<void> Connection::Impl::watch(Self self) {
    Impl& impl = *self->impl_;
    while (impl.state != State::closed) {
        impl.watchdog.expires_after(tick);
        asio::error_code ignored;
        co_await impl.watchdog.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
        if (impl.state == State::closed) co_return;
        if (const auto error = impl.overdue(Clock::now())) self->close(*error);
    }
}

bool Connection::is_open() const { return impl_->state == State::open; }
Error Connection::close_reason() const { return impl_->why; }
size_t Connection::serving() const { return impl_->serving; }
Context& Connection::context() { return impl_->context; }
void Connection::set_dispatcher(Dispatcher dispatcher) { impl_->dispatcher = std::move(dispatcher); }
void Connection::set_idle_timeout(milliseconds timeout) { impl_->limits.idle_timeout = timeout; }

}  // namespace banana::rpc
