// Multi-tensor LARS and SGD in one launch, and the EMA teacher in the same pass: 20 bytes of memory
// traffic an element in float32 (12 without momentum), 28 with a teacher. Hyperparameters and trust
// ratios are read on the device.
#include <sslfast/cpu.h>

#include "optim.cuh"

namespace sslfast::cuda {
namespace {

__global__ void __launch_bounds__(threads, 2)
    lars_kernel(const Row* __restrict__ rows, const std::int64_t* __restrict__ chunks,
                std::int64_t n, const double* __restrict__ control,
                const double* __restrict__ groups, const double* __restrict__ trust) {
    if (control[0] < 0) return;
    for (std::int64_t c = blockIdx.x; c < n; c += gridDim.x) {
        const Chunk chunk = chunk_of(rows, chunks[c]);
        const auto numbers = lars_numbers(control[0], groups + chunk.row.group * cpu::lars_fields,
                                          trust[&chunk.row - rows]);
        with_types(types_without_teacher(chunk.row.types, control[1] == 1), [&](auto p, auto e) {
            using A = decltype(widen(p));
            const auto a = numbers_as<A>(numbers);
            const auto update = [&](A gradient, A& parameter, A& buffer, A&) {
                lars<A>(a, gradient, parameter, buffer);
            };
            step_chunk<decltype(p), decltype(e), 1>(chunk, control[1], update);
        });
    }
}

}  // namespace

void lars_step(const Row* rows, const std::int64_t* chunks, std::int64_t n, const double* control,
               const double* groups, const double* trust, void* stream) {
    launch("lars_step", lars_kernel, n, stream, rows, chunks, n, control, groups, trust);
}

}  // namespace sslfast::cuda
