#include "tunnel/lane.h"

#include <linux/if_tun.h>
#include <pthread.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <cstring>

#include "base/clock.h"
#include "base/log.h"

namespace banana::tunnel {

namespace {

// What an epoll event is about: a wire, or one of these.
char listening_mark, dialling_mark, wake_mark;

void watch(int epoll, int fd, void* mark) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.ptr = mark;
    if (::epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) != 0)
        log::error("tunnel: watch a descriptor: {}", std::strerror(errno));
}

constexpr size_t listener_datagram_bytes = PathMtu::floor_bytes - 48 - handshake_header_bytes;
constexpr int64_t second_ns = 1'000'000'000;

}  // namespace

bool set_offloads(int tap) {
    constexpr unsigned long all = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
    constexpr unsigned long udp = 0x20 | 0x40;  // TUN_F_USO4 | TUN_F_USO6, which Debian 12's headers lack
    if (::ioctl(tap, TUNSETOFFLOAD, all | udp) == 0) return true;
    if (::ioctl(tap, TUNSETOFFLOAD, all) != 0) log::error("tunnel: set a tap's offloads: {}", std::strerror(errno));
    return false;
}

Lane::Lane(std::shared_ptr<const Context> context, LaneSockets sockets, const LaneConfig& config,
           std::function<void(const std::string&)> on_change)
    : context_(std::move(context)),
      sockets_(std::move(sockets)),
      config_(config),
      on_change_(std::move(on_change)),
      batch_(config.udp.gso),
      from_listening_(sockets_.listening.get(), config.udp.gro),
      from_dialling_(sockets_.dialling.get(), config.udp.gro),
      listener_(context_, listener_datagram_bytes),
      epoll_(::epoll_create1(EPOLL_CLOEXEC)),
      wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      by_index_(1 << 16),
      frame_buffer_(slice_headroom + vnet_bytes + frame_max) {
    deliver_ = [this](uint32_t connector, const Offload& offload, std::span<uint8_t> frame) {
        deliver(connector, offload, frame);
    };
    watch(epoll_.get(), sockets_.listening.get(), &listening_mark);
    watch(epoll_.get(), sockets_.dialling.get(), &dialling_mark);
    watch(epoll_.get(), wake_.get(), &wake_mark);
    thread_ = std::thread([this] { loop(); });
}

Lane::~Lane() {
    run([this] {
        last_wire_ = nullptr;
        wires_.clear();
        pending_.clear();
        channels_.clear();
        flush();
        ending_ = true;
    });
    thread_.join();
}

void Lane::run(const std::function<void()>& what) {
    std::unique_lock lock(mutex_);
    jobs_.push_back(&what);
    has_jobs_ = true;
    const uint64_t one = 1;
    (void)!::write(wake_.get(), &one, sizeof(one));
    done_.wait(lock, [&] { return std::find(jobs_.begin(), jobs_.end(), &what) == jobs_.end(); });
}

void Lane::do_jobs() {
    std::lock_guard lock(mutex_);
    for (const auto* job : jobs_) (*job)();
    jobs_.clear();
    has_jobs_ = false;
    done_.notify_all();
}

void Lane::loop() {
    pthread_setname_np(pthread_self(), ("lane " + std::to_string(config_.number)).c_str());
    if (config_.cpu >= 0) {
        cpu_set_t cpus;
        CPU_ZERO(&cpus);
        CPU_SET(static_cast<size_t>(config_.cpu), &cpus);
        if (pthread_setaffinity_np(pthread_self(), sizeof(cpus), &cpus) != 0)
            log::warning("tunnel: lane {} cannot run on CPU {}", config_.number, config_.cpu);
    }
    int64_t last_work = 0;
    while (!ending_) {
        int64_t now = monotonic_ns();
        const bool worth = config_.poll && idle_gap_ns_ < poll_ns;
        const bool polling = worth && now - last_work < poll_ns;
        look(now, polling ? 0 : sleep_ms(now));
        const int64_t woken = monotonic_ns();
        if (polling) counters_.polls++;
        const bool worked = round();
        if (worked) {
            if (!polling) {
                counters_.wakeups++;
                const int64_t gap = std::min(woken - now, int64_t{10} * poll_ns);
                idle_gap_ns_ += (gap - idle_gap_ns_) / 8;
            }
            last_work = monotonic_ns();
        } else if (polling) {
            idle_gap_ns_ += (2 * poll_ns - idle_gap_ns_) / 64;  // looked in vain
            sched_yield();
        }
        if (has_jobs_) do_jobs();
        now = monotonic_ns();
        if (now - last_tick_ >= tick_ns) tick(now);
        flush();
    }
}

int Lane::sleep_ms(int64_t now) const {
    int64_t due = now + second_ns;
    for (const auto& [name, channel] : channels_) due = std::min(due, channel->due(now));
    for (const auto& live : pending_)
        if (const int64_t at = live->due(now); at != 0) due = std::min(due, at);
    due = std::max(due, last_tick_ + tick_ns);
    return due <= now ? 0 : static_cast<int>((due - now) / 1'000'000 + 1);
}

// Finds out what is ready.
void Lane::look(int64_t, int timeout_ms) {
    epoll_event events[64];
    const int count = ::epoll_wait(epoll_.get(), events, 64, timeout_ms);
    for (int i = 0; i < count; i++) {
        void* const mark = events[i].data.ptr;
        if (mark == &listening_mark) {
            input_listening_ = true;
        } else if (mark == &dialling_mark) {
            input_dialling_ = true;
        } else if (mark == &wake_mark) {
            uint64_t ignored = 0;
            (void)!::read(wake_.get(), &ignored, sizeof(ignored));
        } else {
            readable_.push_back(static_cast<LaneWire*>(mark));
        }
    }
}

bool Lane::round() {
    const bool work = input_listening_ || input_dialling_ || !readable_.empty();
    const bool listening = std::exchange(input_listening_, false);
    if (std::exchange(input_dialling_, false)) receive(true);
    if (listening) receive(false);
    for (auto* wire : readable_) {
        wire->wakeups++;
        if (wire->reading) transmit(*wire);  // else its session has just ended: frames wait
    }
    readable_.clear();
    return work;
}

void Lane::tick(int64_t now) {
    last_tick_ = now;
    flush_joiners();
    for (const auto& [name, channel] : channels_) channel->tick(now);
    sweep_pending(now);
    // Wires that wait for a session do so for a while only.
    for (const auto& [connector, wire] : wires_)
        if (!wire->reading) follow_channel(*wire);
    if (now - last_measure_ >= second_ns) measure(now);
}

void Lane::measure(int64_t now) {
    const double seconds = static_cast<double>(now - last_measure_) / second_ns;
    counters_.wakeups_per_s = static_cast<double>(counters_.wakeups - measured_.wakeups) / seconds;
    counters_.frames_per_s = static_cast<double>(counters_.frames - measured_.frames) / seconds;
    measured_ = counters_;
    last_measure_ = now;
}

uint16_t Lane::free_index() {
    for (size_t tried = 0; tried < by_index_.size(); tried++)
        if (++last_index_ != 0 && by_index_[last_index_] == nullptr) return last_index_;
    return 0;
}

Place Lane::dialling_place(const Endpoint& to) {
    return {sockets_.dialling.get(), to, config_.number, config_.number, free_index(), 0};
}

void Lane::forget(Live& live) {
    if (by_index_[live.place.own_index] == &live) by_index_[live.place.own_index] = nullptr;
    counters_.drops[static_cast<size_t>(Drop::no_session)] += live.unsent;
}

void Lane::switched(Channel& channel) {
    if (channel.sessions().size() > 1) overlap(channel.current()->session->dialled());
}

void Lane::changed(Channel& channel) {
    for (const auto& [connector, wire] : wires_)
        if (wire->channel == &channel) follow_channel(*wire);
    on_change_(channel.name());
}

void Lane::set_reading(LaneWire& wire, bool reading) {
    if (wire.reading == reading || !wire.tap || (reading && wire.lost)) return;
    epoll_event event{};
    event.events = reading ? static_cast<uint32_t>(EPOLLIN) : 0u;
    event.data.ptr = &wire;
    // Not in the set at all while held: a tap whose device is down would report an error without end.
    const int what = reading ? EPOLL_CTL_ADD : EPOLL_CTL_DEL;
    if (::epoll_ctl(epoll_.get(), what, wire.tap.get(), &event) == 0) wire.reading = reading;
}

// Its device was deleted: such a descriptor is ready without end. To close it waits for the RTNL lock all the same, so
// it stays until the wire is removed.
void Lane::lose_tap(LaneWire& wire) {
    set_reading(wire, false);
    wire.lost = true;
}

// Frames are read while there is a session to send them by, or when they have waited long enough.
void Lane::follow_channel(LaneWire& wire) {
    const bool up = wire.channel != nullptr && wire.channel->current() != nullptr;
    if (up)
        wire.held_since = 0;
    else if (wire.held_since == 0)
        wire.held_since = monotonic_ns();
    set_reading(wire, up || monotonic_ns() - wire.held_since > hold_ns);
}

void Lane::set_peer(const std::string& name, const Endpoint& address) {
    auto& channel = channels_[name];
    if (channel && channel->address() == address) return;
    for (const auto& [connector, wire] : wires_)
        if (wire->channel != nullptr && wire->channel == channel.get()) wire->channel = nullptr;
    channel = std::make_unique<Channel>(*this, name, address);
    for (const auto& [connector, wire] : wires_)
        if (wire->peer == name) {
            wire->channel = channel.get();
            follow_channel(*wire);
        }
    channel->tick(monotonic_ns());
}

void Lane::remove_peer(const std::string& name) {
    const auto it = channels_.find(name);
    if (it == channels_.end()) return;
    for (const auto& [connector, wire] : wires_)
        if (wire->channel == it->second.get()) {
            wire->channel = nullptr;
            follow_channel(*wire);
        }
    channels_.erase(it);
}

void Lane::add_wire(uint32_t connector, const std::string& device, const std::string& peer, uint32_t mtu, Fd tap,
                    bool udp_gso) {
    auto& wire = wires_[connector] = std::make_unique<LaneWire>();
    wire->connector = connector;
    wire->device = device;
    wire->peer = peer;
    wire->mtu = mtu;
    wire->tap = std::move(tap);
    wire->udp_gso = udp_gso;
    const auto channel = channels_.find(peer);
    wire->channel = channel == channels_.end() ? nullptr : channel->second.get();
    wire->held_since = 0;
    follow_channel(*wire);
}

Fd Lane::remove_wire(uint32_t connector) {
    const auto it = wires_.find(connector);
    if (it == wires_.end()) return {};
    set_reading(*it->second, false);
    if (last_wire_ == it->second.get()) last_wire_ = nullptr;
    if (run_wire_ == it->second.get()) run_wire_ = nullptr;
    std::erase(readable_, it->second.get());
    Fd tap = std::move(it->second->tap);
    wires_.erase(it);
    return tap;
}

const LaneWire* Lane::wire(uint32_t connector) const {
    const auto it = wires_.find(connector);
    return it == wires_.end() ? nullptr : it->second.get();
}

void Lane::rekey(const std::string& peer) {
    for (const auto& [name, channel] : channels_)
        if (peer.empty() || name == peer) channel->rekey(monotonic_ns());
}

void Lane::drop(LaneWire* wire, Drop reason) {
    (wire != nullptr ? wire->drops : counters_.drops)[static_cast<size_t>(reason)]++;
}

}  // namespace banana::tunnel
