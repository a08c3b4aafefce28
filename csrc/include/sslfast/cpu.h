// Entry points of the CPU backend. Raw pointers, row-major contiguous arrays, explicit threads.
#pragma once

#include <cstdint>

#include <sslfast/rows.h>

namespace sslfast::cpu {

void philox_random_bits(const std::int64_t* sample_ids, std::int64_t batch, std::int64_t step,
                        std::uint64_t seed, std::int64_t stream, std::int64_t count,
                        std::int64_t* out, int threads);

// Row row_base + a and column column_base + (a + shift) % length are a positive pair, for
// 0 <= a < length; with leave_out_self, row_base + a and column_base + a are the same sample.
struct Pairing {
    std::int64_t length, shift, row_base, column_base;
    bool leave_out_self;
};

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

// teacher <- momentum teacher + (1 - momentum) student, for all rows; see rows.h.
void ema_update(const Row* rows, std::int64_t n, double momentum, int threads);

// Doubles that optimisers take for each group of parameters: update.h says which.
constexpr int adamw_fields = 5, lars_fields = 4;

// One step for all rows, and their teachers. control: factor of the gradients, momentum of the
// teacher; groups [number of groups, fields]; trust [n], a ratio for each row.
void adamw_step(const Row* rows, std::int64_t n, const double* control, const double* groups,
                int threads);
void lars_step(const Row* rows, std::int64_t n, const double* control, const double* groups,
               const float* trust, int threads);

// The level of the instruction set in use: "v4", "v3" (x86-64) or "baseline".
const char* instruction_set();

}  // namespace sslfast::cpu
