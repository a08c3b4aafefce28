// Entry points of the CUDA backend: device pointers, sizes, and the stream (a cudaStream_t) last.
// The caller has made the tensors' device current. Errors are thrown as std::runtime_error.
#pragma once

#include <cstdint>

#include <sslfast/pairing.h>
#include <sslfast/rows.h>

namespace sslfast::cuda {

void philox_random_bits(const std::int64_t* sample_ids, std::int64_t batch,
                        const std::int64_t* step, std::uint64_t seed, std::int64_t stream_number,
                        std::int64_t count, std::int64_t* out, void* stream);

// As on the CPU (cpu.h); rows of at most 4096 elements.
void random_patch_mask(const std::int64_t* sample_ids, std::int64_t batch, const std::int64_t* step,
                       std::uint64_t seed, std::int64_t stream_number, std::int64_t length,
                       std::int64_t keep, std::int64_t* ids_keep, std::int64_t* ids_restore,
                       bool* mask, void* stream);
void smallest_keys(const std::int64_t* keys, const std::int64_t* counts, std::int64_t batch,
                   std::int64_t length, int key_bits, bool* chosen, void* stream);
void compact_mask(const bool* mask, std::int64_t batch, std::int64_t length, std::int64_t keep,
                  std::int64_t* ids_keep, std::int64_t* ids_restore, void* stream);

// As on the CPU, but ids are not checked.
void gather_rows(const char* tokens, const std::int64_t* ids, std::int64_t batch,
                 std::int64_t length, std::int64_t keep, std::int64_t row_bytes, char* out,
                 void* stream);

// The dtype of rows and columns, and the arithmetic of their products.
enum class Arithmetic { bfloat16, float16, tf32, ieee };

// Logits *scale <rows_i, columns_j>; rows and columns may be the same.
struct Similarities {
    Arithmetic arithmetic;
    const void* rows;
    std::int64_t m;
    const void* columns;
    std::int64_t n;
    int dim;
    const float* scale;
    Pairing pairing;
};

// Log-sum-exps (natural) over what the pairing does not leave out, and their upstream gradients g;
// null where that side has none.
struct Statistics {
    const float* lse;
    const float* g;
};

// Floats of workspace that a call needs on the current device.
std::int64_t similarity_forward_workspace(const Similarities& problem);
std::int64_t similarity_backward_workspace(const Similarities& problem);

// lse [m], positive [m], -inf where a row has none.
void similarity_forward(const Similarities& problem, float* lse, float* positive, float* workspace,
                        void* stream);

// d_rows [m, dim] = sum_j G_ij columns_j with
// G_ij = g_i exp(t_ij - lse_i) + h_j exp(t_ij - column_lse_j).
void similarity_backward(const Similarities& problem, Statistics row, Statistics column,
                         float* d_rows, float* workspace, void* stream);

// As in cpu.h, with everything on the device; chunks [n], each row * 2^32 + number of the chunk in
// its row, of chunk_elements elements.
constexpr int chunk_elements = 16384;
void ema_update(const Row* rows, const std::int64_t* chunks, std::int64_t n, const double* momentum,
                void* stream);
void adamw_step(const Row* rows, const std::int64_t* chunks, std::int64_t n, const double* control,
                const double* groups, void* stream);
void lars_step(const Row* rows, const std::int64_t* chunks, std::int64_t n, const double* control,
               const double* groups, const double* trust, void* stream);

}  // namespace sslfast::cuda
