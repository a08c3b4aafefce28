// Random words [batch, count] of kernels/philox: one Philox block gives four of them.
#include <sslfast/cpu.h>
#include <sslfast/philox.h>

#include <algorithm>

namespace sslfast::cpu {

void philox_random_bits(const std::int64_t* sample_ids, std::int64_t batch, std::int64_t step,
                        std::uint64_t seed, std::int64_t stream, std::int64_t count,
                        std::int64_t* out, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (std::int64_t sample = 0; sample < batch; ++sample) {
        std::int64_t* row = out + sample * count;
        for (std::int64_t first = 0; first < count; first += 4) {
            const Words4 words = philox_block(static_cast<std::uint32_t>(first / 4),
                                              sample_ids[sample], step, stream, seed);
            const std::int64_t last = std::min(first + 4, count);
            for (std::int64_t e = first; e < last; ++e) row[e] = words.word[e - first];
        }
    }
}

}  // namespace sslfast::cpu
