// Random words [batch, count] of kernels/philox: one thread a Philox block of four words.
#include <sslfast/cuda.h>
#include <sslfast/philox.h>

#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>

namespace sslfast::cuda {
namespace {

__global__ void random_bits_kernel(const std::int64_t* __restrict__ sample_ids, std::int64_t batch,
                                   const std::int64_t* __restrict__ step, std::uint64_t seed,
                                   std::int64_t stream_number, std::int64_t count,
                                   std::int64_t* __restrict__ out) {
    const std::int64_t blocks = (count + 3) / 4;
    const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
    for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
         i < batch * blocks; i += stride) {
        const std::int64_t sample = i / blocks, first = i % blocks * 4;
        const Words4 words = philox_block(static_cast<std::uint32_t>(first / 4), sample_ids[sample],
                                          *step, stream_number, seed);
#pragma unroll
        for (int e = 0; e < 4; ++e)
            if (first + e < count) out[sample * count + first + e] = words.word[e];
    }
}

}  // namespace

void philox_random_bits(const std::int64_t* sample_ids, std::int64_t batch,
                        const std::int64_t* step, std::uint64_t seed, std::int64_t stream_number,
                        std::int64_t count, std::int64_t* out, void* stream) {
    if (batch == 0 || count == 0) return;
    constexpr int threads = 256;
    const std::int64_t work = batch * ((count + 3) / 4);
    const auto grid =
        static_cast<unsigned>(std::min<std::int64_t>((work + threads - 1) / threads, 65536));
    random_bits_kernel<<<grid, threads, 0, static_cast<cudaStream_t>(stream)>>>(
        sample_ids, batch, step, seed, stream_number, count, out);
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess)
        throw std::runtime_error("philox_random_bits (batch " + std::to_string(batch) + ", count " +
                                 std::to_string(count) + "): " + cudaGetErrorString(error));
}

}  // namespace sslfast::cuda
