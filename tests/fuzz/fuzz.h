// What the fuzz targets share. There is no corpus of files: now and then a mutation is a new valid input, made by code,
// so that what is valid keeps to the wire format as it is.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "tests/fuzz/frames.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace banana::tunnel::fuzz {

inline void require(bool holds, const char* what) {
    if (holds) return;
    std::fprintf(stderr, "does not hold: %s\n", what);
    std::abort();
}

inline testing::Frame random_frame(std::mt19937& random, size_t payload_max) {
    testing::Shape shape;
    shape.ipv6 = random() % 2;
    shape.vlan = random() % 4 == 0;
    shape.udp = random() % 3 == 0;
    shape.ip_options = random() % 4 == 0 ? 8 * (1 + random() % 5) : 0;
    shape.tcp_options = random() % 11 * 4;
    shape.payload = random() % (payload_max + 1);
    shape.gso_size = random() % 4 ? static_cast<uint16_t>(random() % 1300 + 20) : 0;
    shape.tcp_flags = static_cast<uint8_t>(random());
    shape.sequence = static_cast<uint32_t>(random());
    shape.seed = static_cast<uint32_t>(random());
    return testing::make_frame(shape);
}

// LLVMFuzzerCustomMutator: one input in 16 is what `seed` makes; the others are changed as libFuzzer sees fit.
template <typename Seed>
size_t mutate(uint8_t* data, size_t size, size_t max_size, unsigned int number, const Seed& seed) {
    std::mt19937 random(number);
    if (size > 1 && random() % 16 != 0) return LLVMFuzzerMutate(data, size, max_size);
    const std::vector<uint8_t> made = seed(random, max_size);
    std::copy(made.begin(), made.end(), data);
    return made.size();
}

}  // namespace banana::tunnel::fuzz
