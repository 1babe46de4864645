// Why a run may be delivered by itself: TCP is a stream of bytes and makes no promise about where segments begin. A TCP
// GSO frame is one header and a stretch of that stream, and so is any part of it, if its header says where it begins
// (sequence number) and how long it is (IP length, and the length in the pseudo header that the partial checksum has
// summed already); a kernel or NIC that cuts such a frame does the same. FIN and PSH belong to the stretch's end, CWR
// (and the ECN mark in the offload state, which says that CWR is set) to its beginning. Nothing else depends on it.
//
// Why all slices of other frames are needed: a datagram's boundaries mean something. Such a frame is complete when its
// slices cover it exactly: all but the last have one size and begin at its multiples, and each is taken once. So a peer
// that sends nonsense never makes us deliver bytes that it has not sent for this frame.
#include "tunnel/segment.h"

#include <algorithm>
#include <bitset>
#include <cstring>

#include "tunnel/octets.h"

namespace banana::tunnel {

namespace {

constexpr uint8_t tcp_fin = 0x01, tcp_psh = 0x08, tcp_cwr = 0x80;
constexpr size_t payload_min = 64;  // of TCP in a slice with repeated headers; where less fits, they are not repeated

// What a Cutter makes of the smallest capacity and the worst division: more than half of what would fit.
constexpr size_t step_min = (capacity_min - slice_headroom) / 2;
constexpr size_t plain_slices_max = (frame_max + step_min - 1) / step_min;

constexpr size_t divided(size_t bytes, size_t by) { return (bytes + by - 1) / by; }

bool has_tcp(const Offload& offload) {
    const uint8_t type = offload.gso_type & static_cast<uint8_t>(~Offload::ecn);
    return type == Offload::tcp4 || type == Offload::tcp6;
}

// A ones' complement sum in which a 16-bit word `from` has become `to` (RFC 1624).
uint16_t mended_sum(uint16_t sum, uint16_t from, uint16_t to) {
    uint32_t wide = uint32_t{sum} + static_cast<uint16_t>(~from) + to;
    wide = (wide & 0xffff) + (wide >> 16);
    return static_cast<uint16_t>((wide & 0xffff) + (wide >> 16));
}

}  // namespace

// ---- cutting --------------------------------------------------------------------------------------------------------

Cutter::Cutter(uint32_t connector, const Offload& offload, std::span<uint8_t> frame, uint32_t frame_number,
               size_t capacity)
    : connector_(connector), offload_(offload), frame_(frame), number_(frame_number) {
    size_t room = capacity - slice_headroom;
    if (has_tcp(offload)) {
        const size_t header = gso_header_bytes(offload, frame);
        if (header <= headers_.size() && header + payload_min <= room && header < frame.size()) header_ = header;
    }
    room -= header_;
    const size_t payload = frame.size() - header_;
    if (payload == 0) return;
    step_ = divided(payload, divided(payload, room));
    slices_ = divided(payload, step_);
    record_ = slice_headroom + header_ + step_;
    if (slices_ > 1) std::memcpy(headers_.data(), frame.data(), header_);
}

std::span<uint8_t> Cutter::next() {
    const size_t payload = std::min(step_, frame_.size() - header_ - offset_);
    if (payload == 0) return {};
    uint8_t* const record = frame_.data() + offset_ - slice_headroom;
    Entry entry;
    entry.connector = connector_;
    entry.offload = offload_;
    entry.is_slice = true;
    entry.header_bytes = static_cast<uint16_t>(header_);
    entry.frame_number = number_;
    entry.offset = static_cast<uint32_t>(offset_ == 0 ? 0 : header_ + offset_);
    entry.frame_bytes = static_cast<uint32_t>(frame_.size());
    write_entry(record, entry, header_ + payload);
    if (offset_ != 0) std::memcpy(record + slice_headroom, headers_.data(), header_);
    offset_ += payload;
    return {record, slice_headroom + header_ + payload};
}

// ---- putting together -----------------------------------------------------------------------------------------------

namespace {

struct Key {
    uint32_t connector = 0, number = 0, frame_bytes = 0;
    bool operator==(const Key&) const = default;
    static Key of(const Entry& slice) { return {slice.connector, slice.frame_number, slice.frame_bytes}; }
};

// Slices of a TCP GSO frame that follow each other, in `frame` behind the frame's headers.
struct Run {
    Key key;
    Offload offload;
    uint8_t* frame = nullptr;
    size_t header = 0;  // bytes; 0: no run
    size_t begin = 0;   // where its payload begins in the whole frame
    size_t end = 0;     // where the next slice's is to begin
    size_t bytes() const { return header + (end - begin); }
    bool continued_by(const Entry& slice) const {
        return header != 0 && slice.offset == end && slice.header_bytes == header && Key::of(slice) == key;
    }
    bool start(const Entry& slice);
    void append(const Entry& slice);
    Offload mend();
};

// A plain frame of which slices have come.
struct Slot {
    Key key;
    Offload offload;
    uint8_t* frame = nullptr;
    uint64_t began = 0;                  // which of all frames; 0: free
    size_t step = 0;                     // bytes of each slice but the last; 0: none has come but the last
    size_t last = 0, last_bytes = 0;     // the last slice's offset and size; no bytes: has not come
    size_t count = 0;                    // slices that have come
    std::bitset<plain_slices_max> come;  // those but the last
    void start(const Entry& slice, uint64_t nth);
    bool take(const Entry& slice);
    bool whole() const { return last_bytes != 0 && (last == 0 || (step != 0 && count == last / step + 1)); }
};

// Its bytes lie within the frame that it says it is of.
bool within_frame(const Entry& slice) {
    if (slice.frame_bytes < ethernet_bytes || slice.frame_bytes > frame_max) return false;
    if (slice.data.size() <= slice.header_bytes) return false;
    const size_t offset = slice.offset == 0 ? slice.header_bytes : slice.offset;
    return offset >= slice.header_bytes && offset <= slice.frame_bytes &&
           slice.data.size() - slice.header_bytes <= slice.frame_bytes - offset;
}

bool Run::start(const Entry& slice) {
    if (!has_tcp(slice.offload) || slice.offload.gso_size == 0) return false;
    if (gso_header_bytes(slice.offload, slice.data) != slice.header_bytes) return false;
    if (slice.frame_bytes > link_bytes(slice.data) + ip_packet_max) return false;
    key = Key::of(slice);
    offload = slice.offload;
    header = slice.header_bytes;
    begin = slice.offset == 0 ? header : slice.offset;
    end = begin + slice.data.size() - header;
    std::memcpy(frame, slice.data.data(), slice.data.size());
    return true;
}

void Run::append(const Entry& slice) {
    const auto payload = slice.data.subspan(header);
    std::memcpy(frame + bytes(), payload.data(), payload.size());
    end += payload.size();
}

// Makes the headers right for what there is of the frame. Returns its offload state.
Offload Run::mend() {
    const bool has_start = begin == header, has_end = end == key.frame_bytes;
    if (has_start && has_end) return offload;
    uint8_t* const ip = frame + link_bytes({frame, bytes()});
    uint8_t* const tcp = frame + offload.csum_start;
    const size_t packet = static_cast<size_t>(frame + bytes() - ip);
    if (ip[0] >> 4 == 4) {
        const uint16_t before = get16(ip + 2), now = static_cast<uint16_t>(packet);
        put16(ip + 2, now);
        const uint16_t sum = static_cast<uint16_t>(~get16(ip + 10));
        if (before != now) put16(ip + 10, static_cast<uint16_t>(~mended_sum(sum, before, now)));
    } else {
        constexpr size_t ipv6_bytes = 40;
        put16(ip + 4, static_cast<uint16_t>(packet - ipv6_bytes));
    }
    put32(tcp + 4, get32(tcp + 4) + static_cast<uint32_t>(begin - header));
    if (!has_end) tcp[13] &= static_cast<uint8_t>(~(tcp_fin | tcp_psh));
    if (!has_start) tcp[13] &= static_cast<uint8_t>(~tcp_cwr);
    const size_t was = key.frame_bytes - offload.csum_start, is = bytes() - offload.csum_start;
    put16(tcp + 16, mended_sum(get16(tcp + 16), static_cast<uint16_t>(was), static_cast<uint16_t>(is)));
    Offload mended = offload;
    if (!has_start) mended.gso_type &= static_cast<uint8_t>(~Offload::ecn);
    if (end - begin <= offload.gso_size) {
        mended.gso_type = Offload::none;
        mended.gso_size = 0;
    }
    return mended;
}

void Slot::start(const Entry& slice, uint64_t nth) {
    key = Key::of(slice);
    offload = slice.offload;
    began = nth;
    step = last = last_bytes = count = 0;
    come.reset();
}

// False: it does not fit the others, or has come before.
bool Slot::take(const Entry& slice) {
    const size_t offset = slice.offset, bytes = slice.data.size();
    const bool is_last = offset + bytes == key.frame_bytes;
    const size_t step_now = is_last || step != 0 ? step : bytes;
    const size_t last_now = is_last ? offset : last, last_bytes_now = is_last ? bytes : last_bytes;
    if (is_last ? last_bytes != 0
                : bytes != step_now || bytes < step_min || offset % bytes != 0 || come[offset / bytes])
        return false;
    if (step_now != 0 && (last_now % step_now != 0 || last_bytes_now > step_now)) return false;
    step = step_now;
    last = last_now;
    last_bytes = last_bytes_now;
    if (!is_last) come.set(offset / bytes);
    ++count;
    std::memcpy(frame + offset, slice.data.data(), bytes);
    return true;
}

constexpr size_t slot_bytes = (vnet_bytes + frame_max + 63) / 64 * 64;

}  // namespace

struct Joiner::Impl {
    // One buffer for the run, then one for each slot. Not initialised: what is never used costs no memory.
    std::unique_ptr<uint8_t[]> buffers = std::make_unique_for_overwrite<uint8_t[]>(slot_bytes * (frames_under_way + 1));
    Run run;
    std::array<Slot, frames_under_way> slots;
    size_t used = 0;  // slots
    uint64_t began = 0, incomplete = 0;
    std::array<uint32_t, frames_under_way> lost{};
    size_t lost_count = 0;

    Impl() {
        uint8_t* buffer = buffers.get() + vnet_bytes;
        run.frame = buffer;
        for (Slot& slot : slots) slot.frame = buffer += slot_bytes;
    }
    void flush(const Deliver& deliver);
    void forget_behind(uint32_t number);
    void give_up(Slot& slot);
    Slot& slot_of(const Entry& slice);
    std::optional<Drop> add_tcp(const Entry& slice, const Deliver& deliver);
    std::optional<Drop> add_plain(const Entry& slice, const Deliver& deliver);
};

Joiner::Joiner() : impl_(std::make_unique<Impl>()) {}
Joiner::~Joiner() = default;

std::optional<Drop> Joiner::add(const Entry& slice, const Deliver& deliver) {
    impl_->lost_count = 0;
    if (!within_frame(slice)) return Drop::bad_entry;
    return slice.header_bytes != 0 ? impl_->add_tcp(slice, deliver) : impl_->add_plain(slice, deliver);
}

std::optional<Drop> Joiner::Impl::add_tcp(const Entry& slice, const Deliver& deliver) {
    if (run.continued_by(slice)) {
        run.append(slice);
    } else {
        flush(deliver);
        if (!run.start(slice)) return Drop::bad_entry;
        forget_behind(slice.frame_number);
    }
    if (run.end == run.key.frame_bytes) flush(deliver);
    if (lost_count != 0) return Drop::incomplete;
    return {};
}

std::optional<Drop> Joiner::Impl::add_plain(const Entry& slice, const Deliver& deliver) {
    flush(deliver);
    Slot& slot = slot_of(slice);
    if (!slot.take(slice)) {
        if (slot.count == 0) slot.began = 0, --used;
        return Drop::bad_entry;
    }
    if (slot.whole()) {
        slot.began = 0;
        --used;
        deliver(slot.key.connector, slot.offload, {slot.frame, slot.key.frame_bytes});
    }
    if (lost_count != 0) return Drop::incomplete;
    return {};
}

// The frame's slot, or a new one.
Slot& Joiner::Impl::slot_of(const Entry& slice) {
    const Key key = Key::of(slice);
    for (Slot& slot : slots)
        if (slot.began != 0 && slot.key == key) return slot;
    forget_behind(slice.frame_number);
    Slot* const found =
        &*std::min_element(slots.begin(), slots.end(), [](const Slot& a, const Slot& b) { return a.began < b.began; });
    if (found->began != 0) give_up(*found);
    found->start(slice, ++began);
    ++used;
    return *found;
}

// Frame numbers wrap: a frame that is left over must be gone before its number comes again.
void Joiner::Impl::forget_behind(uint32_t number) {
    if (used == 0) return;
    for (Slot& slot : slots)
        if (slot.began != 0 && static_cast<int32_t>(number - slot.key.number) > static_cast<int32_t>(frames_apart_max))
            give_up(slot);
}

void Joiner::Impl::give_up(Slot& slot) {
    lost[lost_count++] = slot.key.connector;
    slot.began = 0;
    --used;
    ++incomplete;
}

void Joiner::Impl::flush(const Deliver& deliver) {
    if (run.header == 0) return;
    const Offload offload = run.mend();
    const std::span<uint8_t> frame{run.frame, run.bytes()};
    run.header = 0;
    deliver(run.key.connector, offload, frame);
}

void Joiner::flush(const Deliver& deliver) { impl_->flush(deliver); }

bool Joiner::holds_run() const { return impl_->run.header != 0; }

std::span<const uint32_t> Joiner::lost() const { return {impl_->lost.data(), impl_->lost_count}; }

uint64_t Joiner::incomplete() const { return impl_->incomplete; }

}  // namespace banana::tunnel
