// Entry points of the CUDA backend: device pointers, sizes, and the stream (a cudaStream_t) last.
// The caller has made the tensors' device current. Errors are thrown as std::runtime_error.
#pragma once

#include <cstdint>

#include <sslfast/rows.h>

namespace sslfast::cuda {

void philox_random_bits(const std::int64_t* sample_ids, std::int64_t batch,
                        const std::int64_t* step, std::uint64_t seed, std::int64_t stream_number,
                        std::int64_t count, std::int64_t* out, void* stream);

// As in cpu.h, with everything on the device; chunks [n], each row * 2^32 + number of the chunk in
// its row, of chunk_elements elements.
constexpr int chunk_elements = 16384;
void ema_update(const Row* rows, const std::int64_t* chunks, std::int64_t n, const double* momentum,
                void* stream);
void adamw_step(const Row* rows, const std::int64_t* chunks, std::int64_t n, const double* control,
                const double* groups, void* stream);
void lars_step(const Row* rows, const std::int64_t* chunks, std::int64_t n, const double* control,
               const double* groups, const float* trust, void* stream);

}  // namespace sslfast::cuda
