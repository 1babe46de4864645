// Records from a peer that is authenticated and malicious: next_entry(), check_frame() and the Joiner.
//
// The input is a sequence of records, each behind its length (2 bytes). Held besides what the sanitizers hold: no more
// bytes are delivered than have come, no frame is larger than it may be, and the offload state of a frame that passes
// check_frame() lies within it.
#include <algorithm>
#include <cstring>
#include <random>

#include "tests/fuzz/frames.h"
#include "tests/fuzz/fuzz.h"
#include "tunnel/octets.h"

using namespace banana::tunnel;

namespace {

constexpr uint32_t mtu = 1500;

void check_accepted(const Offload& offload, std::span<const uint8_t> frame) {
    if (check_frame(offload, frame, mtu)) return;
    fuzz::require(frame.size() >= banana::ethernet_bytes && frame.size() <= frame_max, "size of an accepted frame");
    if (offload.flags & Offload::needs_csum)
        fuzz::require(size_t{offload.csum_start} + offload.csum_offset + 2 <= frame.size(),
                      "checksum within the frame");
    if (offload.gso_type == Offload::none) return;
    const size_t header = gso_header_bytes(offload, frame);
    fuzz::require(header != 0 && header <= frame.size() && offload.gso_size != 0, "headers within the frame");
    fuzz::require(header + offload.gso_size <= mtu + 18, "segments within the MTU");
}

// Some frames' slices, mixed.
std::vector<uint8_t> seed(std::mt19937& random, size_t max_size) {
    std::vector<std::vector<uint8_t>> records;
    const uint32_t first = static_cast<uint32_t>(random());
    for (uint32_t i = 0, frames = random() % 4 + 1; i < frames; ++i) {
        const auto slices =
            testing::cut(fuzz::random_frame(random, 1500), 256 + random() % 300, first + i, random() % 2);
        records.insert(records.end(), slices.begin(), slices.end());
    }
    for (size_t swaps = random() % 4; swaps > 0; --swaps)
        std::swap(records[random() % records.size()], records[random() % records.size()]);
    std::vector<uint8_t> input;
    for (const auto& record : records) {
        if (input.size() + 2 + record.size() > max_size) break;
        input.resize(input.size() + 2);
        put16(input.data() + input.size() - 2, static_cast<uint16_t>(record.size()));
        input.insert(input.end(), record.begin(), record.end());
    }
    return input;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    testing::Receiving receiving;
    std::span<const uint8_t> input(data, size);
    while (input.size() >= 2) {
        const size_t length = std::min<size_t>(get16(input.data()), input.size() - 2);
        // Its own allocation: a read beyond it is seen.
        const std::vector<uint8_t> record(input.begin() + 2, input.begin() + 2 + static_cast<ptrdiff_t>(length));
        input = input.subspan(2 + length);
        std::span<const uint8_t> rest = record;
        while (const auto entry = next_entry(rest)) {
            check_accepted(entry->offload, entry->data);
            if (entry->is_slice) receiving.slice(*entry);
        }
    }
    receiving.flush();
    fuzz::require(receiving.bytes_out <= receiving.bytes_in, "no more is delivered than came");
    for (const auto& got : receiving.got) {
        fuzz::require(got.bytes.size() <= frame_max, "size of a delivered frame");
        check_accepted(got.offload, got.bytes);
    }
    return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned int number) {
    return fuzz::mutate(data, size, max_size, number, seed);
}
