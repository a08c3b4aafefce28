// Entry points of the CUDA backend: device pointers, sizes, and the stream (a cudaStream_t) last.
// The caller has made the tensors' device current. Errors are thrown as std::runtime_error.
#pragma once

#include <cstdint>

namespace sslfast::cuda {

void philox_random_bits(const std::int64_t* sample_ids, std::int64_t batch,
                        const std::int64_t* step, std::uint64_t seed, std::int64_t stream_number,
                        std::int64_t count, std::int64_t* out, void* stream);

}  // namespace sslfast::cuda
