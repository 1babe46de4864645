// A frame's way out: tap queue, check, pack or cut, seal, batch.

#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

#include "tunnel/lane.h"

namespace banana::tunnel {

namespace {

// A wire's share of a round: enough to fill a message of small frames (45 records of some 8), little enough that a full
// tap does not starve the others: 0.4 ms of small frames, or eight large ones.
constexpr size_t frames_max = 256;
constexpr size_t bytes_max = 512 * 1024;

}  // namespace

void Lane::transmit(LaneWire& wire) {
    uint8_t* const vnet = frame_buffer_.data() + slice_headroom;
    size_t bytes = 0;
    for (size_t frames = 0; frames < frames_max && bytes < bytes_max; frames++) {
        // Not read(): in a process with threads, libc's is a cancellation point, and that costs a tenth of a small
        // frame.
        const long got = ::syscall(SYS_read, wire.tap.get(), vnet, vnet_bytes + frame_max);
        if (got <= 0) {  // empty, or the device is gone: its removal comes by control
            if (got < 0 && errno == EBADFD) lose_tap(wire);
            return;
        }
        bytes += static_cast<size_t>(got);
        if (got < static_cast<long>(vnet_bytes + ethernet_bytes)) {
            drop(&wire, Drop::runt);
            continue;
        }
        transmit_frame(wire, {vnet + vnet_bytes, static_cast<size_t>(got) - vnet_bytes}, read_vnet(vnet));
    }
}

void Lane::transmit_frame(LaneWire& wire, std::span<uint8_t> frame, const Offload& offload) {
    if (const auto bad = check_frame(offload, frame, wire.mtu)) return drop(&wire, *bad);
    Live* live = wire.channel != nullptr ? wire.channel->current() : nullptr;
    if (live == nullptr || live->closed()) return drop(&wire, Drop::no_session);
    counters_.frames++;
    wire.sent.frames++;
    wire.sent.bytes += frame.size();
    send_frame(wire, *live, frame, offload);
}

void Lane::send_frame(LaneWire& wire, Live& live, std::span<uint8_t> frame, const Offload& offload) {
    const size_t capacity = live.capacity();
    if (entry_bytes + frame.size() > capacity) {
        Cutter cutter(wire.connector, offload, frame, live.frame_number++, capacity);
        for (auto slice = cutter.next(); !slice.empty() && !live.closed(); slice = cutter.next()) live.seal(slice);
        return;
    }
    Entry header;
    header.connector = wire.connector;
    header.offload = offload;
    // A frame that leaves no room for another like it is sealed where it stands, without being copied.
    if (2 * (entry_bytes + frame.size()) > capacity) {
        uint8_t* const start = frame.data() - entry_bytes;
        write_entry(start, header, frame.size());
        live.seal({start, entry_bytes + frame.size()});
        return;
    }
    live.pack(header, frame);
}

// The end of a round: what is gathered leaves.
void Lane::flush() {
    for (const auto& [name, channel] : channels_)
        for (const auto& live : channel->sessions())
            if (live->packing()) live->flush_pack();
    if (!batch_.empty()) batch_.flush();
    if (const auto refused = batch_.take_too_big(); refused.bytes != 0)
        for (const auto& [name, channel] : channels_)
            for (const auto& live : channel->sessions())
                if (live->place.to == refused.to) live->too_big(refused.bytes, last_tick_);
}

}  // namespace banana::tunnel
