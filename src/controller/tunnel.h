// Tunnel: this host's DTLS wires, as banana-tunneld is told of them.
//
// Concepts: what is wanted (wires, by the engine; peers, by what their hosts say of themselves) is kept here; a
// coroutine keeps a connection to banana-tunneld, starts that where nobody else does, and after each connect makes what
// it has be what is wanted: settings, peers, then wires; what is the same already is not touched, so that bananad may
// come and go under traffic. Peers are remembered on the disk for that reason: one that is away must not lose its
// session because bananad was restarted. A wire's tap queues are opened for each telling, and only then.
//
//            connect                 told settings, peers, wires
//   away --------------> joining -------------------------------> ready
//    ^ ^                    |                                       |
//    | +--------------------+---------------------------------------+   connection lost, or it hangs
//
// Threading: the io_context's single thread; nothing here waits for banana-tunneld but coroutines. What is lost when:
// bananad's end, nothing; banana-tunneld's end, frames until it is started and told again. Errors: logged when they
// change; end().problem and await_up() tell them to those who ask.
#pragma once

#include <asio/steady_timer.hpp>
#include <map>
#include <optional>
#include <set>

#include "controller/config.h"
#include "controller/tunnel_channel.h"
#include "controller/tunnel_process.h"
#include "model/host.h"
#include "registry/table.h"
#include "wiring/tunnel_sink.h"

namespace banana::controller {

// How a peer's tunnel is reached: what its host said last.
struct TunnelPeer {
    std::string name;
    IpAddress address;
    uint16_t port = 0;
    uint32_t lanes = 0;
    bool operator==(const TunnelPeer&) const = default;
    Json json() const;
    static Result<TunnelPeer> from_json(const Json& json);
};

class Tunnel final : public wiring::TunnelSink {
public:
    Tunnel(asio::io_context& io, const Config& config, registry::Store& store);

    Status load();  // the peers that are remembered; those not configured any more are forgotten
    void start(const std::string& run_dir, std::function<void()> on_changed);  // on_changed: end() has
    void stop();                                                               // wires and sessions go on

    // TunnelSink
    const wiring::TunnelWire* wanted(uint32_t connector) const override;
    void want(const wiring::TunnelWire& wire) override;
    void unwant(uint32_t connector) override;

    void set_peer(const model::Host& host);
    model::TunnelEnd end() const;  // of this host
    // Until the wire is carried and its peer's session is up; else why not.
    asio::awaitable<Result<void>> await_up(uint32_t connector, std::chrono::milliseconds patience);

    asio::awaitable<Result<Json>> show(uint32_t connector);  // wire.show of tunnel/control.h
    Json status() const;                                     // {state, problem, pid, port, lanes, cipher, gso, gro}
    Json peer_status(const std::string& name) const;         // {state, reason}

private:
    enum class State { away, joining, ready };
    struct Slot {
        wiring::TunnelWire wire;
        uint64_t told = 0;     // number of the last telling; 0: not since the connection began
        bool carried = false;  // answered
        std::string problem;   // why not
    };
    struct PeerState {
        std::string state = "connecting", reason;
    };

    asio::awaitable<void> run();
    asio::awaitable<Result<void>> serve();  // one connection, to its end
    asio::awaitable<Result<void>> join();
    asio::awaitable<Result<void>> configure(Json hello);
    asio::awaitable<Result<void>> compare_wires();
    asio::awaitable<Result<void>> learn_peers();
    Result<std::shared_ptr<TunnelChannel>> connect();
    Status start_process();
    asio::awaitable<void> outlive(Fd pidfd);
    bool starts_process() const;
    bool is_starting();
    void to(State next, const std::string& problem);
    void begin_grace();
    asio::awaitable<void> outlast_grace(int64_t lost_ns);

    void tell(Slot& slot);
    void told(uint32_t connector, uint64_t telling, const Result<Json>& answer);
    void tell_untold();
    void tell_peers();
    size_t queues_with(const std::string& peer) const;  // of a wire's tap, one a lane; 0: the peer has not said
    void retry_later();
    void event(const Json& message);
    void peer_is(const std::string& name, const std::string& state, const std::string& reason);
    void wake();
    std::string problem() const;                                        // while it is not ready
    asio::awaitable<void> changed(std::chrono::milliseconds patience);  // of a slot, a peer or the state
    std::string why_not(const Slot& slot) const;                        // "": it is up

    asio::io_context& io_;
    const Config& config_;
    registry::Table<TunnelPeer> peers_;
    std::map<uint32_t, Slot> slots_;
    std::map<std::string, PeerState> peer_states_;
    std::shared_ptr<TunnelChannel> channel_;
    std::optional<TunnelProcess> process_;
    int64_t process_started_ns_ = 0;
    std::string socket_, log_;
    State state_ = State::away;
    std::string problem_ = "banana-tunneld is being started";
    std::string logged_;
    int64_t lost_ns_ = 0;  // when it was ready last, or first started here; 0: never
    Json hello_;
    uint64_t tellings_ = 0;
    bool wires_known_ = false;  // compare_wires() is done: changes go out at once
    bool stopped_ = false;
    asio::steady_timer pause_, retry_;
    std::set<asio::steady_timer*> waiting_;
    std::function<void()> on_changed_;
};

}  // namespace banana::controller
