// Session: one QMP conversation as a state machine without I/O. Bytes go in, bytes come out, callbacks are called.
//
// Concepts:
//   greeting --greeting line--> negotiating --reply to qmp_capabilities--> ready
//       \_______________________________\_________________________________ \--> closed
//   greeting     nothing may be sent yet; commands are queued
//   negotiating  qmp_capabilities is out; commands are queued, events may come
//   ready        commands go out at once, any number at a time; replies are matched by id, in any order
//   closed       nothing more is read or sent; every command still waiting has been answered with the reason
// A line that is too long, too deep, not JSON or not QMP ends the session: after garbage nothing can be matched
// any more. A reply with an id that nobody waits for (a command given up) is dropped and counted.
// What is lost: events that QEMU sent while no session was open; query the state after connecting.
// Threading: none of its own; one thread at a time. A callback may call execute(), cancel() and close(), but must not
// destroy the Session.
// Errors: each command's callback is called exactly once, with its value or an Error naming the command, unless the
// command is cancelled first.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "qmp/message.h"

namespace banana::qmp {

enum class State { greeting, negotiating, ready, closed };
const char* state_name(State state);

struct Limits {
    size_t line_bytes = json_max_bytes;
    int depth = json_max_depth;
};

using Reply = std::function<void(Result<Json>)>;
using EventHandler = std::function<void(const Event&)>;
using ClosedHandler = std::function<void(const Error&)>;

class Session {
public:
    // `name` stands in errors: the domain's or the socket's.
    explicit Session(std::string name, Limits limits = {});

    void on_event(EventHandler handler) { event_handler_ = std::move(handler); }
    void on_closed(ClosedHandler handler) { closed_handler_ = std::move(handler); }

    // Queues a command; returns its id, for cancel(). On a closed session `reply` is called at once with the reason.
    int64_t execute(const std::string& command, const Json& arguments, Reply reply);
    void cancel(int64_t id);  // its reply, should it come, is dropped

    // What was read from QEMU, in pieces of any size. The error is the reason for which the session is closed now.
    Status feed(std::string_view bytes);
    // What is to be written to QEMU; the caller takes all of it.
    std::string take_output() { return std::exchange(output_, {}); }
    bool has_output() const { return !output_.empty(); }
    // The connection is gone, or is no longer wanted.
    void close(const Error& reason);

    State state() const { return state_; }
    const std::optional<Error>& closed_because() const { return closed_because_; }
    const Greeting& greeting() const { return greeting_; }
    size_t waiting() const { return waiting_.size(); }
    uint64_t stray_replies() const { return stray_replies_; }

private:
    struct Waiting {
        std::string command;
        Reply reply;
    };

    void become(State next);
    Status take_line(std::string_view line);
    Status handle(const Greeting& greeting);
    Status handle(const Return& reply);
    Status handle(const Failure& failure);
    Status handle(const Event& event);
    void send(const std::string& command, const Json& arguments, int64_t id);
    std::optional<Waiting> claim(const Json& id);

    const std::string name_;
    const Limits limits_;
    State state_ = State::greeting;
    Greeting greeting_;
    std::string input_, output_;
    std::string queued_;  // whole lines, until the session is ready
    std::map<int64_t, Waiting> waiting_;
    int64_t next_id_ = 1;
    uint64_t stray_replies_ = 0;
    std::optional<Error> closed_because_;
    EventHandler event_handler_;
    ClosedHandler closed_handler_;
};

}  // namespace banana::qmp
