// Lane: a thread with its sockets, its queue of each wire's tap, and its session with each peer.
//
// Concepts: lanes share nothing on the path; a flow stays in one (the tap's queues are chosen by the kernel's flow
// hash, and a lane writes what it receives to its own queue, by which the kernel learns where that flow's frames are to
// go). A frame's way out (lane_transmit.cpp): tap queue -> check -> pack or cut -> seal -> batch -> socket. And in
// (lane_receive.cpp): socket -> session by index -> open -> entries -> join -> check -> tap queue.
// A round takes what there is, in bounded portions; what it gathered is sent at its end, so nothing waits for a timer.
// Dynamic polling (Crossbow, section 5): while rounds find work, or found it so often that sleeping costs more than
// looking, the lane looks again without sleeping; else it sleeps until a descriptor is ready.
// While a peer has no session its wires' frames stay in their tap queues, for hold_ns; then they are read and dropped.
// Threading: everything but run(), wake() and the constructor happens on the lane's thread; run() gets a function done
// there and waits for it. What is lost when: nothing on a rekey or another lane's work; frames in flight when the
// process ends.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <thread>
#include <unordered_map>

#include "tunnel/channel.h"
#include "tunnel/udp_run.h"

namespace banana::tunnel {

struct LaneConfig {
    uint8_t number = 0;
    int cpu = -1;  // -1: any
    bool poll = true;
    RekeyLimits rekey;
    UdpCapabilities udp;
};

struct FrameCount {
    uint64_t frames = 0, bytes = 0;  // a GSO frame is one, of its whole length
};

// A wire, as far as it is in one lane.
struct LaneWire {
    uint32_t connector = 0;
    std::string device;
    std::string peer;
    uint32_t mtu = 0;
    Fd tap;
    Channel* channel = nullptr;  // null: no such peer (yet)
    bool udp_gso = false;        // the kernel takes UDP GSO frames from its tap
    bool reading = false;        // in the epoll set for input
    bool lost = false;           // its device was deleted
    int64_t held_since = 0;      // its frames wait for a session; 0: they do not
    FrameCount sent, received;
    std::array<uint64_t, static_cast<size_t>(Drop::count_)> drops{};
    uint64_t wakeups = 0;  // sleeps that its tap ended
};

struct LaneCounters {
    uint64_t wakeups = 0;                                             // times that the lane slept and was woken by work
    uint64_t polls = 0;                                               // rounds without sleeping
    uint64_t frames = 0;                                              // both ways
    uint64_t strangers = 0, no_session = 0;                           // datagrams that are nobody's
    std::array<uint64_t, static_cast<size_t>(Drop::count_)> drops{};  // that are no known wire's
    // Over the last whole second.
    double wakeups_per_s = 0, frames_per_s = 0;
};

// Makes a queue of a tap hand over and take all that it may: partial checksums, TCP segmentation, and UDP's where the
// kernel has it (6.2 and later), which is the answer.
bool set_offloads(int tap);

// How much may begin: so many at once, and so many a second from then on.
class Budget {
public:
    constexpr Budget(int64_t per_second, int64_t at_once)
        : each_ns_(1'000'000'000 / per_second), ahead_ns_((at_once - 1) * each_ns_) {}
    bool left(int64_t now) const { return spent_until_ - now <= ahead_ns_; }
    void take(int64_t now) { spent_until_ = (spent_until_ > now ? spent_until_ : now) + each_ns_; }

private:
    int64_t each_ns_, ahead_ns_;
    int64_t spent_until_ = 0;
};

class Lane final : public ChannelHost {
public:
    static constexpr int64_t hold_ns = 3'000'000'000;
    static constexpr int64_t poll_ns = 30'000;  // how long it looks again after the last work, where that pays
    static constexpr int64_t tick_ns = 10'000'000;
    // Accepted and not yet up; of one address, so that no host can take them all. Several may share one behind a NAT.
    static constexpr size_t handshakes_max = 256, handshakes_of_host_max = 16;
    // Accepted; each is half a millisecond. Peers' addresses have a budget of their own, so that strangers cannot use
    // it up; all peers of a large cluster may come at once.
    static constexpr int64_t handshakes_per_s = 50, handshakes_at_once = 64;
    static constexpr int64_t silent_max_ns = 2'000'000'000;  // with a place that another wants

    Lane(std::shared_ptr<const Context> context, LaneSockets sockets, const LaneConfig& config,
         std::function<void(const std::string& peer)> on_change);
    ~Lane();  // ends the thread; says goodbye to the peers

    // Does `what` on the lane's thread and returns when it is done.
    void run(const std::function<void()>& what);

    // To be called by way of run().
    void set_peer(const std::string& name, const Endpoint& address);  // of another address: dialled anew
    void remove_peer(const std::string& name);
    // What follows on a tap waits for the RTNL lock, as other people's link churn may hold it: that is for the caller's
    // thread. So `tap` comes with its offloads set, and a wire that is removed gives its tap back, to be closed there.
    // A connector is added once, until it is removed.
    void add_wire(uint32_t connector, const std::string& device, const std::string& peer, uint32_t mtu, Fd tap,
                  bool udp_gso);
    Fd remove_wire(uint32_t connector);
    const LaneWire* wire(uint32_t connector) const;
    const std::map<std::string, std::unique_ptr<Channel>>& channels() const { return channels_; }
    const LaneCounters& counters() const { return counters_; }
    const SendCounters& send_counters() const { return batch_.counters(); }
    uint64_t challenges() const { return listener_.challenges(); }
    // Hellos over the budget, or for which there was no place.
    uint64_t turned_away() const { return listener_.turned_away() + turned_away_; }
    void rekey(const std::string& peer);  // "": all

private:
    // ChannelHost
    SendBatch& batch() override { return batch_; }
    std::shared_ptr<const Context> context() const override { return context_; }
    const RekeyLimits& rekey_limits() const override { return config_.rekey; }
    Place dialling_place(const Endpoint& to) override;
    void keep(Live& live) override { by_index_[live.place.own_index] = &live; }
    void forget(Live& live) override;
    void changed(Channel& channel) override;
    void switched(Channel& channel) override;

    void loop();
    bool round();  // whether there was work
    void look(int64_t now, int timeout_ms);
    int sleep_ms(int64_t now) const;
    void do_jobs();
    void tick(int64_t now);
    void measure(int64_t now);
    uint16_t free_index();  // 0: all are taken
    void set_reading(LaneWire& wire, bool reading);
    void lose_tap(LaneWire& wire);
    void follow_channel(LaneWire& wire);
    void drop(LaneWire* wire, Drop reason);

    // lane_transmit.cpp
    void transmit(LaneWire& wire);
    void transmit_frame(LaneWire& wire, std::span<uint8_t> frame, const Offload& offload);
    void send_frame(LaneWire& wire, Live& live, std::span<uint8_t> frame, const Offload& offload);
    void flush();

    // lane_receive.cpp
    void receive(bool dialling);
    void take(std::span<const Receiver::Datagram> datagrams, bool dialling);
    void overlap(bool newer_is_dialled);
    bool overlapping(bool newer_is_dialled);
    bool has_place(bool known, int64_t now);
    void on_datagram(const Receiver::Datagram& datagram, int socket, int64_t now);
    void on_hello(const DatagramHeader& header, std::span<const uint8_t> records, const Endpoint& from, int socket,
                  int64_t now);
    void on_handshake(const DatagramHeader& header, std::span<const uint8_t> records, const Endpoint& from,
                      int64_t now);
    void on_data(Live& live, std::span<uint8_t> record, const Endpoint& from, int64_t now);
    void settle_pending(Live& live, int64_t now);
    void log_refusal(const Live& live, const std::string& why, int64_t now);
    void sweep_pending(int64_t now);
    void on_entry(Live& live, const Entry& entry, std::span<uint8_t> plain);
    LaneWire* admitted(uint32_t connector, const Offload& offload, std::span<const uint8_t> frame);
    void deliver(uint32_t connector, const Offload& offload, std::span<uint8_t> frame);
    void deliver_in_run(uint32_t connector, const Offload& offload, std::span<uint8_t> frame);
    void write(LaneWire& wire, const Offload& offload, std::span<uint8_t> frame);
    void flush_run();
    void flush_joiners();

    std::shared_ptr<const Context> context_;
    LaneSockets sockets_;
    LaneConfig config_;
    std::function<void(const std::string&)> on_change_;
    SendBatch batch_;
    Receiver from_listening_, from_dialling_;
    Listener listener_;
    Fd epoll_, wake_;
    std::map<std::string, std::unique_ptr<Channel>> channels_;
    std::unordered_map<uint32_t, std::unique_ptr<LaneWire>> wires_;
    std::vector<std::unique_ptr<Live>> pending_;  // accepted, peer not known
    Budget strangers_{handshakes_per_s, handshakes_at_once}, peers_{handshakes_per_s, handshakes_max};
    int64_t refusal_logged_ = 0;
    uint64_t refusals_not_logged_ = 0;  // since then
    uint64_t turned_away_ = 0;
    std::vector<Live*> by_index_;
    uint16_t last_index_ = 0;
    std::vector<uint8_t> frame_buffer_;
    UdpRun run_;  // of frames in the receiver's buffers
    LaneWire* run_wire_ = nullptr;
    std::vector<LaneWire*> readable_;
    Live* receiving_ = nullptr;  // whose records are being opened
    Deliver deliver_;
    LaneCounters counters_;
    LaneWire* last_wire_ = nullptr;  // of the frame before: most frames are of one wire
    bool input_listening_ = false, input_dialling_ = false;
    int64_t overlap_until_ = 0;  // 0: no peer has two sessions
    bool newer_is_dialled_ = false;
    int64_t last_tick_ = 0, last_measure_ = 0;
    int64_t idle_gap_ns_ = 1'000'000;  // how long a sleep lasts, on average
    LaneCounters measured_;

    std::mutex mutex_;
    std::condition_variable done_;
    std::deque<const std::function<void()>*> jobs_;
    std::atomic<bool> has_jobs_{false}, ending_{false};
    std::thread thread_;
};

}  // namespace banana::tunnel
