// Entry points of the CUDA backend: device pointers, sizes, and the stream (a cudaStream_t) last.
// The caller has made the tensors' device current. Errors are thrown as std::runtime_error.
#pragma once

#include <cstdint>

namespace sslfast::cuda {

void philox_random_bits(const std::int64_t* sample_ids, std::int64_t batch,
                        const std::int64_t* step, std::uint64_t seed, std::int64_t stream_number,
                        std::int64_t count, std::int64_t* out, void* stream);

// As on the CPU (cpu.h); rows of at most 4096 elements.
void random_patch_mask(const std::int64_t* sample_ids, std::int64_t batch,
                       const std::int64_t* step, std::uint64_t seed, std::int64_t stream_number,
                       std::int64_t length, std::int64_t keep, std::int64_t* ids_keep,
                       std::int64_t* ids_restore, bool* mask, void* stream);
void smallest_keys(const std::int64_t* keys, const std::int64_t* counts, std::int64_t batch,
                   std::int64_t length, int key_bits, bool* chosen, void* stream);
void compact_mask(const bool* mask, std::int64_t batch, std::int64_t length, std::int64_t keep,
                  std::int64_t* ids_keep, std::int64_t* ids_restore, void* stream);

// As on the CPU, but ids are not checked.
void gather_rows(const char* tokens, const std::int64_t* ids, std::int64_t batch,
                 std::int64_t length, std::int64_t keep, std::int64_t row_bytes, char* out,
                 void* stream);

}  // namespace sslfast::cuda
