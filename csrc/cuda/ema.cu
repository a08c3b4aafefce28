// Multi-tensor exponential moving averages in one launch: 12 bytes of memory traffic an element in
// float32, 10 with a 16-bit student. The momentum is read on the device.
#include <sslfast/update.h>

#include "chunks.cuh"

namespace sslfast::cuda {
namespace {

template <typename T, typename S>
__device__ __forceinline__ void ema_chunk(const Chunk& chunk, double momentum) {
    T* teacher = slice<T>(chunk.row, 0, chunk.begin);
    const S* student = slice<const S>(chunk.row, 1, chunk.begin);
    for_elements<width_of<T, S>>(chunk, [&](int i, auto width) {
        constexpr int n = decltype(width)::value;
        auto t = load<n>(teacher + i);
        const auto s = load<n>(student + i);
#pragma unroll
        for (int k = 0; k < n; ++k)
            if (momentum == 0)
                t.value[k] = converted<T>(s.value[k]);
            else
                follow(t.value[k], s.value[k], 1 - momentum);
        store(teacher + i, t);
    });
}

__global__ void __launch_bounds__(threads)
    ema_kernel(const Row* __restrict__ rows, const std::int64_t* __restrict__ chunks,
               std::int64_t n, const double* __restrict__ p_momentum) {
    const double momentum = *p_momentum;
    if (momentum == 1) return;
    for (std::int64_t c = blockIdx.x; c < n; c += gridDim.x) {
        const Chunk chunk = chunk_of(rows, chunks[c]);
        with_types(chunk.row.types, [&](auto t, auto s) {
            if constexpr (!is_none<decltype(s)>)
                ema_chunk<decltype(t), decltype(s)>(chunk, momentum);
        });
    }
}

}  // namespace

void ema_update(const Row* rows, const std::int64_t* chunks, std::int64_t n, const double* momentum,
                void* stream) {
    launch("ema_update", ema_kernel, n, stream, rows, chunks, n, momentum);
}

}  // namespace sslfast::cuda
