// Multi-tensor exponential moving averages: 12 bytes of memory traffic an element in float32.
#include <sslfast/cpu.h>

#include "elements.h"
#include "slices.h"

namespace sslfast::cpu {

void ema_update(const Row* rows, std::int64_t n, double momentum, int threads) {
    if (momentum == 1) return;
    const auto& kernels = element_kernels();
    for_each_slice(rows, n, threads, [&](const Row& row, std::int64_t begin, std::int64_t end) {
        kernels.ema(row, begin, end, momentum);
    });
}

}  // namespace sslfast::cpu
