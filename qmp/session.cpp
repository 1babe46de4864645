#include "qmp/session.h"

#include <fmt/core.h>

#include <array>
#include <utility>

#include "base/log.h"

namespace banana::qmp {

namespace {

constexpr std::array<std::pair<State, State>, 5> edges{{{State::greeting, State::negotiating},
                                                        {State::negotiating, State::ready},
                                                        {State::greeting, State::closed},
                                                        {State::negotiating, State::closed},
                                                        {State::ready, State::closed}}};

bool is_edge(State from, State to) {
    for (const auto& [a, b] : edges)
        if (a == from && b == to) return true;
    return false;
}

}  // namespace

const char* state_name(State state) {
    switch (state) {
        case State::greeting: return "greeting";
        case State::negotiating: return "negotiating";
        case State::ready: return "ready";
        case State::closed: return "closed";
    }
    return "?";
}

Session::Session(std::string name, Limits limits) : name_(std::move(name)), limits_(limits) {}

void Session::become(State next) {
    if (!is_edge(state_, next)) {
        log::error("QMP session {}: no edge {} -> {}", name_, state_name(state_), state_name(next));
        return;
    }
    log::debug("QMP session {}: {} -> {}", name_, state_name(state_), state_name(next));
    state_ = next;
}

int64_t Session::execute(const std::string& command, const Json& arguments, Reply reply) {
    const int64_t id = next_id_++;
    if (state_ == State::closed) {
        if (reply) reply(closed_because_->context("QMP " + command));
        return id;
    }
    waiting_.emplace(id, Waiting{.command = command, .reply = std::move(reply)});
    send(command, arguments, id);
    return id;
}

void Session::send(const std::string& command, const Json& arguments, int64_t id) {
    // Until capabilities are agreed on, QEMU takes qmp_capabilities only.
    std::string& to = state_ == State::ready ? output_ : queued_;
    to += format_command(command, arguments, Json(id)) + "\n";
}

void Session::cancel(int64_t id) { waiting_.erase(id); }

Status Session::feed(std::string_view bytes) {
    if (state_ == State::closed) return *closed_because_;
    input_ += bytes;
    size_t start = 0;
    while (state_ != State::closed) {
        const size_t end = input_.find('\n', start);
        const size_t length = (end == std::string::npos ? input_.size() : end) - start;
        if (length > limits_.line_bytes) {
            close(Error(Errc::invalid, fmt::format("a line of more than {} bytes", limits_.line_bytes)));
            break;
        }
        if (end == std::string::npos) break;
        std::string_view line = std::string_view(input_).substr(start, length);
        if (line.ends_with('\r')) line.remove_suffix(1);
        start = end + 1;
        // QEMU writes no empty lines, but tolerates them; so do we.
        if (line.empty()) continue;
        if (auto taken = take_line(line); !taken) close(taken.error());
    }
    input_.erase(0, state_ == State::closed ? input_.size() : start);
    if (state_ == State::closed) return *closed_because_;
    return {};
}

Status Session::take_line(std::string_view line) {
    TRY_SET(const Message message, parse_message(line, limits_.line_bytes, limits_.depth));
    return std::visit([this](const auto& m) { return handle(m); }, message);
}

Status Session::handle(const Greeting& greeting) {
    if (state_ != State::greeting) return Error(Errc::invalid, "a second QMP greeting");
    greeting_ = greeting;
    become(State::negotiating);
    const int64_t id = next_id_++;
    waiting_.emplace(id, Waiting{.command = "qmp_capabilities", .reply = [this](Result<Json> result) {
                                     if (state_ == State::closed) return;
                                     if (!result) return close(result.error());
                                     become(State::ready);
                                     output_ += std::exchange(queued_, {});
                                 }});
    output_ += format_command("qmp_capabilities", {}, Json(id)) + "\n";
    return {};
}

std::optional<Session::Waiting> Session::claim(const Json& id) {
    const auto found = id.is_int() ? waiting_.find(id.as_int()) : waiting_.end();
    if (found == waiting_.end()) return std::nullopt;
    auto out = std::move(found->second);
    waiting_.erase(found);
    return out;
}

Status Session::handle(const Return& reply) {
    if (state_ == State::greeting) return Error(Errc::invalid, "a QMP reply before the greeting");
    auto waiting = claim(reply.id);
    if (!waiting)
        stray_replies_++;
    else if (waiting->reply)
        waiting->reply(reply.value);
    return {};
}

Status Session::handle(const Failure& failure) {
    // Without an id it answers a line that QEMU could not read: whose command failed cannot be known.
    if (failure.id.is_null()) return to_error("line", failure);
    if (state_ == State::greeting) return Error(Errc::invalid, "a QMP reply before the greeting");
    auto waiting = claim(failure.id);
    if (!waiting)
        stray_replies_++;
    else if (waiting->reply)
        waiting->reply(to_error(waiting->command, failure));
    return {};
}

Status Session::handle(const Event& event) {
    if (state_ == State::greeting) return Error(Errc::invalid, "a QMP event before the greeting");
    if (event_handler_) event_handler_(event);
    return {};
}

void Session::close(const Error& reason) {
    if (state_ == State::closed) return;
    closed_because_ = reason.context("QMP session " + name_);
    become(State::closed);
    output_.clear();
    queued_.clear();
    // A callback may execute() again: that is answered at once, since the state is closed already.
    for (auto& [id, waiting] : std::exchange(waiting_, {}))
        if (waiting.reply) waiting.reply(closed_because_->context("QMP " + waiting.command));
    if (closed_handler_) closed_handler_(*closed_because_);
}

}  // namespace banana::qmp
