// The counter-based generator Philox 4x32-10 (Salmon et al. 2011, section 3.3), shared by the CPU
// and CUDA backends. kernels/philox/__init__.py gives the layout of the counters.
#pragma once

#include <cstdint>

#include <sslfast/host_device.h>

namespace sslfast {

struct Words4 {
    std::uint32_t word[4];
};

SSLFAST_HOST_DEVICE Words4 philox(Words4 counter, std::uint64_t seed) {
    std::uint32_t key0 = static_cast<std::uint32_t>(seed);
    std::uint32_t key1 = static_cast<std::uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        const std::uint64_t product0 = std::uint64_t{0xD2511F53u} * counter.word[0];
        const std::uint64_t product1 = std::uint64_t{0xCD9E8D57u} * counter.word[2];
        counter = {{static_cast<std::uint32_t>(product1 >> 32) ^ counter.word[1] ^ key0,
                    static_cast<std::uint32_t>(product1),
                    static_cast<std::uint32_t>(product0 >> 32) ^ counter.word[3] ^ key1,
                    static_cast<std::uint32_t>(product0)}};
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return counter;
}

// The words of elements 4 * block ... 4 * block + 3 of one sample.
SSLFAST_HOST_DEVICE Words4 philox_block(std::uint32_t block, std::int64_t sample_id,
                                        std::int64_t step, std::int64_t stream,
                                        std::uint64_t seed) {
    return philox({{block, static_cast<std::uint32_t>(sample_id), static_cast<std::uint32_t>(step),
                    static_cast<std::uint32_t>(stream)}},
                  seed);
}

}  // namespace sslfast
