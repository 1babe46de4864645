// Frames from a tap through check_frame(), the Cutter and a Joiner, with slices lost and swapped on the way.
//
// The input: capacity (2 bytes), MTU (2), how many bytes the frame is longer than the input (2), which slices are lost
// and swapped (2 each), then the tap's header and the frame. The oracle is testing::part_fault(): without loss and
// swaps the frame that comes is the frame that was sent; of a TCP frame, every byte whose slice came does come, once,
// under headers that are right for it; of another, all or nothing.
#include <algorithm>
#include <random>

#include "tests/fuzz/frames.h"
#include "tests/fuzz/fuzz.h"
#include "tunnel/octets.h"

using namespace banana::tunnel;

namespace {

constexpr size_t prefix_bytes = 10;

std::vector<uint8_t> seed(std::mt19937& random, size_t max_size) {
    const auto frame = fuzz::random_frame(random, max_size < 600 ? 0 : max_size - 600);
    std::vector<uint8_t> input(prefix_bytes + vnet_bytes);
    for (size_t i = 0; i < prefix_bytes; ++i) input[i] = static_cast<uint8_t>(random() % 3 ? 0 : random());
    put16(input.data(), static_cast<uint16_t>(random() % 2000));
    put16(input.data() + 2, 1500);
    if (random() % 2) put16(input.data() + 4, static_cast<uint16_t>(random() % 64000));
    write_vnet(input.data() + prefix_bytes, frame.offload, 0);
    input.insert(input.end(), frame.bytes().begin(), frame.bytes().end());
    if (input.size() > max_size) input.resize(max_size);
    return input;
}

void judge_tcp(const testing::Frame& sent, const testing::Receiving& receiving, size_t payload_came) {
    std::vector<std::pair<size_t, size_t>> parts;
    for (const auto& got : receiving.got) {
        size_t begin = 0, end = 0;
        const std::string fault = testing::part_fault(sent, got.offload, got.bytes, begin, end);
        fuzz::require(fault.empty(), fault.c_str());
        parts.emplace_back(begin, end);
    }
    std::sort(parts.begin(), parts.end());
    size_t total = 0, until = 0;
    for (const auto& [begin, end] : parts) {
        fuzz::require(begin >= until, "no byte comes twice");
        until = end;
        total += end - begin;
    }
    fuzz::require(total == payload_came, "what came is delivered");
}

void judge(const testing::Frame& sent, const testing::Receiving& receiving, bool all) {
    fuzz::require(receiving.got.size() == (all ? 1 : 0), "all or nothing");
    for (const auto& got : receiving.got) {
        fuzz::require(got.offload == sent.offload, "the same offload state");
        fuzz::require(std::ranges::equal(got.bytes, sent.bytes()), "the same bytes");
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size < prefix_bytes + vnet_bytes) return 0;
    const size_t capacity = capacity_min + get16(data) % 16384;
    const uint32_t mtu = get16(data + 2);
    const unsigned losses = get16(data + 6), swaps = get16(data + 8);
    std::vector<uint8_t> bytes(data + prefix_bytes + vnet_bytes, data + size);
    const size_t given = bytes.size();
    bytes.resize(std::min(given + get16(data + 4), frame_max));
    for (size_t i = given; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i * 31);
    const testing::Frame sent = testing::frame_of(bytes, read_vnet(data + prefix_bytes));
    if (check_frame(sent.offload, sent.bytes(), mtu)) return 0;

    auto records = testing::cut(sent, capacity);
    for (size_t i = 0; i + 1 < records.size(); ++i)
        if (swaps >> i % 16 & 1) std::swap(records[i], records[i + 1]);
    testing::Receiving receiving;
    size_t lost = 0, payload_came = 0;
    bool is_tcp = false;
    for (size_t i = 0; i < records.size(); ++i) {
        fuzz::require(records[i].size() <= capacity, "a record's capacity");
        std::span<const uint8_t> rest = records[i];
        const auto entry = next_entry(rest);
        fuzz::require(entry && rest.empty(), "a slice is an entry");
        is_tcp = entry->header_bytes != 0;
        if (losses >> i % 16 & 1) {
            ++lost;
            continue;
        }
        payload_came += entry->data.size() - entry->header_bytes;
        receiving.slice(*entry);
    }
    receiving.flush();
    fuzz::require(!receiving.drops.contains(Drop::bad_entry), "our own slices are good");
    for (const auto& got : receiving.got)
        fuzz::require(!check_frame(got.offload, got.bytes, mtu), "what is delivered passes, too");
    if (is_tcp) judge_tcp(sent, receiving, payload_came);
    if (!is_tcp || (lost == 0 && swaps == 0)) judge(sent, receiving, lost == 0);
    return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned int number) {
    return fuzz::mutate(data, size, max_size, number, seed);
}
