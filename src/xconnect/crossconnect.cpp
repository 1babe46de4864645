#include "xconnect/crossconnect.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fmt/core.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "xconnect/attach.h"
#include "xconnect/objects.h"

namespace banana::xconnect {
namespace {

xc_key to_abi(PortKey port) { return {port.ifindex, static_cast<uint32_t>(port.direction)}; }
PortKey from_abi(xc_key key) { return {key.ifindex, static_cast<Direction>(key.direction)}; }

void put(xc_port& port, const Entry& entry) {
    port.target = entry.target;
    port.into = static_cast<uint32_t>(entry.into);
    port.armed = entry.armed ? 1 : 0;
    port.generation = entry.generation;
}
std::optional<Entry> entry_of(const xc_port& port) {
    if (port.target == 0) return std::nullopt;
    return Entry{port.target, static_cast<Into>(port.into), port.generation, port.armed != 0};
}

void put(xc_port& port, const Policy& policy) {
    port.kind = static_cast<uint8_t>(policy.kind);
    port.flags = static_cast<uint8_t>((port.flags & XC_OWN_CLSACT) | (policy.allow_any_mac ? XC_ALLOW_ANY_MAC : 0));
    std::copy(policy.mac.bytes.begin(), policy.mac.bytes.end(), port.mac);
}
std::optional<Policy> policy_of(const xc_port& port) {
    if (port.kind == 0) return std::nullopt;
    Policy out{static_cast<PortKind>(port.kind), {}, (port.flags & XC_ALLOW_ANY_MAC) != 0};
    std::copy_n(port.mac, out.mac.bytes.size(), out.mac.bytes.begin());
    return out;
}

Status remove(int map, PortKey port, const char* what) {
    auto key = to_abi(port);
    if (bpf_map_delete_elem(map, &key) == 0 || errno == ENOENT) return {};
    return errno_error(errno, fmt::format("erase {} of {}", what, port.text()));
}

// The map has one writer, this thread, so the walk meets no deletion that would make it start again.
Result<std::vector<std::pair<PortKey, xc_port>>> walk(int map) {
    std::vector<std::pair<PortKey, xc_port>> out;
    xc_key key{};
    for (xc_key* previous = nullptr;; previous = &key) {
        xc_key next{};
        if (bpf_map_get_next_key(map, previous, &next) < 0) {
            if (errno == ENOENT) break;
            return errno_error(errno, "walk ports");
        }
        key = next;
        xc_port port{};
        if (bpf_map_lookup_elem(map, &key, &port) == 0) out.emplace_back(from_abi(key), port);
    }
    std::sort(out.begin(), out.end(), [](auto& a, auto& b) { return a.first < b.first; });
    return out;
}

// Which slots are free: slot 0 never, those below `next` that nobody has, and all from there.
class Slots {
public:
    void start(uint32_t size, const std::vector<std::pair<PortKey, xc_port>>& ports) {
        size_ = size;
        std::vector<bool> taken(size);
        for (auto& [key, port] : ports)
            if (port.slot < size) taken[port.slot] = true;
        for (next_ = size; next_ > 1 && !taken[next_ - 1];) next_--;
        for (uint32_t slot = 1; slot < next_; slot++)
            if (!taken[slot]) free_.push_back(slot);
    }
    uint32_t take() {  // 0: there is none
        if (free_.empty()) return next_ < size_ ? next_++ : 0;
        const uint32_t slot = free_.back();
        free_.pop_back();
        return slot;
    }
    void give_back(uint32_t slot) {
        if (slot != 0) free_.push_back(slot);
    }

private:
    uint32_t size_ = 0, next_ = 1;
    std::vector<uint32_t> free_;
};

void add(Count& to, const xc_count& from) {
    to.frames += from.frames;
    to.bytes += from.bytes;
}

struct RingDeleter {
    void operator()(ring_buffer* ring) const { ring_buffer__free(ring); }
};

int on_event(void* context, void* data, size_t size) {
    if (size < sizeof(xc_event)) return 0;
    xc_event event{};
    memcpy(&event, data, sizeof(event));
    static_cast<std::vector<FirstFrame>*>(context)->push_back(
        {from_abi(event.key), event.generation, static_cast<int64_t>(event.ktime_ns)});
    return 0;
}

}  // namespace

const char* direction_name(Direction direction) { return direction == Direction::ingress ? "ingress" : "egress"; }

std::string PortKey::text() const { return fmt::format("ifindex {} {}", ifindex, direction_name(direction)); }

Count Counters::dropped() const {
    Count sum;
    for (auto& drop : drops) sum = {sum.frames + drop.frames, sum.bytes + drop.bytes};
    return sum;
}

const char* drop_reason_name(xc_drop reason) {
    switch (reason) {
        case XC_DROP_NO_ENTRY: return "no_entry";
        case XC_DROP_LINK_LOCAL: return "link_local";
        case XC_DROP_FOREIGN_MAC: return "foreign_mac";
        case XC_DROP_RUNT: return "runt";
        case XC_DROP_PROBE_FROM_GUEST: return "probe_from_guest";
        case XC_DROP_BAD_PROBE: return "bad_probe";
        case XC_DROP_REASONS:
        case XC_DROP_ROOM: break;
    }
    return "unknown";
}

struct CrossConnect::Impl {
    Objects objects;
    AttachMode mode = AttachMode::tcx;
    int cpus = 0;
    std::vector<FirstFrame> events;  // filled by on_event; its address is the ring's context
    std::unique_ptr<ring_buffer, RingDeleter> ring;
    Slots slots;

    Result<xc_port> read(PortKey port) const;  // all zeros when there is nothing
    Status write(PortKey port, const xc_port& value, const std::string& what) const;
    bool owns_clsact(PortKey port) const;
    Status put_policy(PortKey port, const Policy& policy, bool own_clsact) const;
    const Program& program(PortKey port) const { return objects.programs[static_cast<size_t>(port.direction)]; }
    Status ensure_slot(PortKey port);
};

CrossConnect::CrossConnect(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CrossConnect::CrossConnect(CrossConnect&&) noexcept = default;
CrossConnect& CrossConnect::operator=(CrossConnect&&) noexcept = default;
CrossConnect::~CrossConnect() = default;

Result<CrossConnect> CrossConnect::open(const std::string& bpf_dir, const Options& options) {
    bool tcx = tcx_available();
    if (options.mode == AttachMode::tcx && !tcx)
        return Error(Errc::unsupported, "open cross-connect " + bpf_dir + ": this kernel has no tcx");
    auto impl = std::make_unique<Impl>();
    impl->mode = options.mode.value_or(tcx ? AttachMode::tcx : AttachMode::clsact);
    impl->cpus = libbpf_num_possible_cpus();
    if (impl->cpus < 0) return errno_error(-impl->cpus, "count possible CPUs");
    TRY_SET(impl->objects, open_objects(bpf_dir, options.capacity));
    TRY_SET(auto ports, walk(impl->objects.ports.get()));
    impl->slots.start(impl->objects.slots, ports);
    impl->ring.reset(ring_buffer__new(impl->objects.events.get(), on_event, &impl->events, nullptr));
    if (!impl->ring) return bpf_error(errno, "map first-frame ring of " + bpf_dir);
    return CrossConnect(std::move(impl));
}

Status CrossConnect::unpin(const std::string& bpf_dir) { return unpin_objects(bpf_dir); }

AttachMode CrossConnect::mode() const { return impl_->mode; }

Result<xc_port> CrossConnect::Impl::read(PortKey port) const {
    auto key = to_abi(port);
    xc_port value{};
    if (bpf_map_lookup_elem(objects.ports.get(), &key, &value) == 0) return value;
    if (errno == ENOENT) return xc_port{};
    return errno_error(errno, "read " + port.text());
}

Status CrossConnect::Impl::write(PortKey port, const xc_port& value, const std::string& what) const {
    auto key = to_abi(port);
    if (bpf_map_update_elem(objects.ports.get(), &key, &value, BPF_ANY) == 0) return {};
    return errno_error(errno, what);
}

Status CrossConnect::Impl::ensure_slot(PortKey port) {
    const auto what = "give a counter to " + port.text();
    TRY_SET(auto value, read(port));
    if (value.slot != 0) return {};
    value.slot = slots.take();
    if (value.slot == 0) return Error(fmt::format("{}: all {} are taken", what, objects.slots - 1));
    std::vector<xc_count> none(static_cast<size_t>(cpus));
    auto done = bpf_map_update_elem(objects.passed.get(), &value.slot, none.data(), BPF_ANY) == 0
                    ? write(port, value, what)
                    : errno_error(errno, what);
    if (!done) slots.give_back(value.slot);
    return done;
}

Status CrossConnect::prepare(PortKey port, const Policy& policy) {
    TRY(impl_->ensure_slot(port));
    return set_policy(port, policy);
}

Status CrossConnect::attach(PortKey port, const Policy& policy) {
    TRY(prepare(port, policy));
    auto& program = impl_->program(port);
    TRY_SET(uint32_t tcx, tcx_find(port));
    TRY_SET(uint32_t clsact, clsact_find(port));
    if (impl_->mode == AttachMode::tcx) {
        if (tcx != program.id) TRY(tcx_put(port, program.fd.get(), tcx));
        if (clsact != 0) TRY(clsact_remove(port));
    } else {
        if (clsact != program.id) TRY(clsact_put(port, program.fd.get(), program.id));
        if (tcx != 0) TRY(tcx_remove(port, tcx));
    }
    return {};
}

Status CrossConnect::attach_in_front(PortKey port) {
    if (impl_->mode != AttachMode::tcx) return {};
    auto& program = impl_->program(port);
    TRY_SET(const uint32_t there, tcx_find(port));
    return there == program.id ? Status() : tcx_put(port, program.fd.get(), there);
}

Result<bool> CrossConnect::refresh(PortKey port, AttachMode mode) {
    auto& program = impl_->program(port);
    TRY_SET(const uint32_t there, mode == AttachMode::tcx ? tcx_find(port) : clsact_find(port));
    if (there == 0 || there == program.id) return there != 0;
    TRY(mode == AttachMode::tcx ? tcx_put(port, program.fd.get(), there)
                                : clsact_put(port, program.fd.get(), program.id));
    return true;
}

CrossConnect::ProgramRef CrossConnect::program(Direction direction) const {
    auto& program = impl_->objects.programs[static_cast<size_t>(direction)];
    return {program.fd.get(), program.id};
}

bool CrossConnect::is_program_of_ours(uint32_t id) { return id != 0 && is_ours(id); }

Status CrossConnect::detach(PortKey port) {
    TRY_SET(uint32_t tcx, tcx_find(port));
    if (tcx != 0) TRY(tcx_remove(port, tcx));
    TRY_SET(uint32_t clsact, clsact_find(port));
    if (clsact == 0) return {};
    return impl_->owns_clsact(port) ? clsact_destroy(port) : clsact_remove(port);
}

Result<std::optional<Attachment>> CrossConnect::attached(PortKey port) const {
    uint32_t current = impl_->program(port).id;
    TRY_SET(uint32_t tcx, tcx_find(port));
    if (tcx != 0) return std::optional(Attachment{AttachMode::tcx, tcx, tcx == current});
    TRY_SET(uint32_t clsact, clsact_find(port));
    if (clsact != 0) return std::optional(Attachment{AttachMode::clsact, clsact, clsact == current});
    return std::optional<Attachment>();
}

bool CrossConnect::Impl::owns_clsact(PortKey port) const {
    const auto value = read(port);
    return value && (value->flags & XC_OWN_CLSACT) != 0;
}

Status CrossConnect::Impl::put_policy(PortKey port, const Policy& policy, bool own_clsact) const {
    TRY_SET(auto value, read(port));
    const auto before = value;
    put(value, policy);
    if (own_clsact) value.flags |= XC_OWN_CLSACT;
    // Nothing is written for nothing: a frame might just clear `armed`.
    return memcmp(&before, &value, sizeof(value)) == 0 ? Status() : write(port, value, "set policy of " + port.text());
}

Status CrossConnect::set_policy(PortKey port, const Policy& policy) { return impl_->put_policy(port, policy, false); }

Result<std::optional<Policy>> CrossConnect::policy(PortKey port) const {
    TRY_SET(auto value, impl_->read(port));
    return policy_of(value);
}

Status CrossConnect::set(PortKey port, const Entry& entry) {
    const auto what = fmt::format("cross-connect {} to ifindex {}", port.text(), entry.target);
    if (entry.target == 0) return Error(Errc::invalid, what + ": there is no such ifindex");
    TRY_SET(auto value, impl_->read(port));
    put(value, entry);
    return impl_->write(port, value, what);
}

Status CrossConnect::erase(PortKey port) {
    TRY_SET(auto value, impl_->read(port));
    if (value.target == 0) return {};
    put(value, Entry{});
    return impl_->write(port, value, "erase entry of " + port.text());
}

Result<std::optional<Entry>> CrossConnect::get(PortKey port) const {
    TRY_SET(auto value, impl_->read(port));
    return entry_of(value);
}

Result<std::vector<std::pair<PortKey, Entry>>> CrossConnect::list() const {
    TRY_SET(auto ports, walk(impl_->objects.ports.get()));
    std::vector<std::pair<PortKey, Entry>> out;
    for (auto& [key, port] : ports)
        if (auto entry = entry_of(port)) out.emplace_back(key, *entry);
    return out;
}

Result<std::vector<std::pair<PortKey, Policy>>> CrossConnect::list_policies() const {
    TRY_SET(auto ports, walk(impl_->objects.ports.get()));
    std::vector<std::pair<PortKey, Policy>> out;
    for (auto& [key, port] : ports)
        if (auto policy = policy_of(port)) out.emplace_back(key, *policy);
    return out;
}

Result<Counters> CrossConnect::counters(PortKey port) const {
    const auto what = "read counters of " + port.text();
    const auto cpus = static_cast<size_t>(impl_->cpus);
    std::vector<xc_counters> rare(cpus);
    std::vector<xc_count> passed(cpus);
    auto key = to_abi(port);
    TRY_SET(auto value, impl_->read(port));
    // Without a drop or probe there is no element.
    if (bpf_map_lookup_elem(impl_->objects.counters.get(), &key, rare.data()) < 0 &&
        (errno != ENOENT || value.slot == 0))
        return errno_error(errno, what);
    if (bpf_map_lookup_elem(impl_->objects.passed.get(), &value.slot, passed.data()) < 0)
        return errno_error(errno, what);
    Counters sum;
    for (size_t cpu = 0; cpu < cpus; cpu++) {
        add(sum.passed, passed[cpu]);
        add(sum.probes, rare[cpu].probes);
        for (size_t i = 0; i < sum.drops.size(); i++) add(sum.drops[i], rare[cpu].drops[i]);
    }
    return sum;
}

Status CrossConnect::forget(uint32_t ifindex) {
    for (auto direction : {Direction::ingress, Direction::egress}) {
        PortKey port{ifindex, direction};
        TRY_SET(auto value, impl_->read(port));
        TRY(remove(impl_->objects.ports.get(), port, "policy and entry"));
        impl_->slots.give_back(value.slot);
        if (ifindex != 0) TRY(remove(impl_->objects.counters.get(), port, "counters"));
    }
    return {};
}

Result<size_t> CrossConnect::sweep(std::span<const uint32_t> alive) {
    auto gone = [&](uint32_t ifindex) { return !std::binary_search(alive.begin(), alive.end(), ifindex); };
    TRY_SET(auto entries, list());
    size_t erased = 0;
    for (auto& [port, entry] : entries) {
        if (!gone(port.ifindex) && !gone(entry.target)) continue;
        TRY(erase(port));
        erased++;
    }
    TRY_SET(auto policies, list_policies());
    for (auto& [port, policy] : policies)
        if (gone(port.ifindex)) TRY(forget(port.ifindex));
    return erased;
}

int CrossConnect::events_fd() const { return ring_buffer__epoll_fd(impl_->ring.get()); }

Result<std::vector<FirstFrame>> CrossConnect::read_events() {
    impl_->events.clear();
    int count = ring_buffer__consume(impl_->ring.get());
    if (count < 0) return errno_error(-count, "read first-frame reports");
    return std::exchange(impl_->events, {});
}

}  // namespace banana::xconnect
