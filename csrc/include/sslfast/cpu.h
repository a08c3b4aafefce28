// Entry points of the CPU backend. Raw pointers, row-major contiguous arrays, explicit threads.
#pragma once

#include <cstdint>

#include <sslfast/pairing.h>

namespace sslfast::cpu {

void philox_random_bits(const std::int64_t* sample_ids, std::int64_t batch, std::int64_t step,
                        std::uint64_t seed, std::int64_t stream, std::int64_t count,
                        std::int64_t* out, int threads);

// Logits scale <rows_i, columns_j>; columns null: the symmetric form, rows against themselves, whose
// positives are mutual (2 shift = length = m).
struct Similarities {
    const float* rows;
    std::int64_t m;
    const float* columns;
    std::int64_t n;
    int dim;
    float scale;
    Pairing pairing;
    int threads;
};

// Log-sum-exps (natural) over the columns or rows that the pairing does not leave out, and what
// comes from above for them.
struct Statistics {
    const float* lse;
    const float* g;
};

// lse [m], positive [m] (untouched where a row has none) and, unless null, column_lse [n].
void similarity_forward(const Similarities& problem, float* lse, float* positive,
                        float* column_lse);

// d_rows [m, dim] = sum_j G_ij columns_j and, unless null, d_columns [n, dim] = sum_i G_ij rows_i
// with G_ij = g_i exp(t_ij - lse_i) + h_j exp(t_ij - column_lse_j); either statistics may be null.
// Symmetric: column is row, and d_columns is null.
void similarity_backward(const Similarities& problem, Statistics row, Statistics column,
                         float* d_rows, float* d_columns);

// The level of the instruction set in use: "v4", "v3" (x86-64) or "baseline".
const char* instruction_set();

}  // namespace sslfast::cpu
