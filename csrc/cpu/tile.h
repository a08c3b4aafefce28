// What is compiled once for each level of the instruction set: products of tiles, and the passes
// over a tile of logits. csrc/cpu/tile.cpp is the source of all levels.
#pragma once

#include <cstddef>

namespace sslfast::cpu {

// Logits and log-sum-exps are to base 2 within the kernels.
constexpr double log2_e_exact = 1.44269504088896340736;
constexpr float log2_e = log2_e_exact, ln_2 = 0.69314718055994530942f;

// The right operand of a product, B [k, n], in panels of `width` columns, each [k, width] and zero
// beyond n; `stride` floats from a panel to the next.
struct Panels {
    const float* data;
    std::ptrdiff_t stride;
};

// The left operand, A [m, k]: element (i, k) at data[i * row + k * column].
struct Strided {
    const float* data;
    std::ptrdiff_t row, column;
};

// A double-float: the unevaluated sum of two floats. With one alone all logits would have the same
// relative error. Both have the number's sign, so that what is infinite stays so. See factor.h.
struct Factor {
    float high, low;
};

// Instead of a leading dimension: c lies in panels as a right operand does, but without padding.
// The columns from j on, a multiple of `width`, are the rows from c + m j, min(width, n - j) wide.
// Long-lived sums lie so: a register tile of them touches one page of memory and not a dozen.
constexpr std::ptrdiff_t in_panels = 0;

// Of base-2 scores, the columns of a tile: `teachers` and then `students` views of `samples` each.
// pairs [students, teachers] weighs them. Of every column: the greatest score, the base-2 logarithm
// of the sum of 2^(score - greatest), and its inverse, times the pairs' sum and the upstream
// gradient for a student; upstream: of the students' columns, or null for no gradients.
struct SoftTargets {
    int samples, teachers, students;
    const float *pairs, *greatest, *log_total, *factor, *upstream;
};

struct TileKernels {
    const char* level;
    int width;  // of a panel

    // c [m, n] = factor a b (null: a b), or += with accumulate; ldc is the leading dimension of c,
    // or in_panels. b^T a^T gives the same elements as a b, bit for bit.
    void (*multiply)(int m, int n, int k, Strided a, Panels b, const Factor* factor,
                     bool accumulate, float* c, std::ptrdiff_t ldc);

    // Online softmax: merges a tile of base-2 logits [rows, columns] into the running
    // (maximum, sum of 2^(t - maximum)) of its rows and, unless null, of its columns;
    // scratch: `columns` floats.
    void (*merge)(const float* tile, std::ptrdiff_t ld, int rows, int columns, float* row_maximum,
                  float* row_sum, float* column_maximum, float* column_sum, float* scratch);

    // Maximum of every column of a tile of base-2 logits, and its sum of 2^(t - maximum).
    void (*column_sums)(const float* tile, std::ptrdiff_t ld, int rows, int columns, float* maximum,
                        float* sum);

    // The sigmoid loss of negatives with base-2 logits t: row_loss_i += sum_j log2(1 + 2^t_ij).
    // Unless row_weight is null, t_ij <- row_weight_i 2^t_ij / (1 + 2^t_ij).
    void (*sigmoid)(float* tile, std::ptrdiff_t ld, int rows, int columns, const float* row_weight,
                    float* row_loss);

    // t_ij <- row_g_i 2^(t_ij - row_lse_i) + column_g_j 2^(t_ij - column_lse_j); a null side adds
    // nothing. scratch: `columns` floats, or null with a null side.
    void (*weigh)(float* tile, std::ptrdiff_t ld, int rows, int columns, const float* row_lse,
                  const float* row_g, const float* column_lse, const float* column_g,
                  float* scratch);

    // out_ij = row_i column_j t_ij, the columns' factors high + low as the rows' are.
    void (*scale)(const float* tile, std::ptrdiff_t ld, int rows, int columns, const Factor* row,
                  const float* column_high, const float* column_low, float* out);

    // t_ij <- row_i column_j t_ij, and the sums of t_ij raw_ij are added to row_sum [rows] and,
    // unless null, to column_sum [columns].
    void (*inner)(float* tile, const float* raw, std::ptrdiff_t ld, int rows, int columns,
                  const float* row, const float* column, float* row_sum, float* column_sum);

    // tile_ij += other_ij.
    void (*add)(float* tile, const float* other, std::ptrdiff_t ld, int rows, int columns);

    // Splits a tile of logits: positives_ij is t_ij where the groups of row and column are the same
    // and -infinity elsewhere, and t_ij is left where they differ, the ignored ids differ too and
    // sign t_ij is at most `limit`. Column i + own is row i itself, and in neither. Whether there
    // is a positive.
    bool (*split)(float* tile, float* positives, std::ptrdiff_t ld, int rows, int columns,
                  const int* row_group, const int* column_group, const int* row_ignored,
                  const int* column_ignored, float sign, float limit, std::ptrdiff_t own);

    // Teachers' scores become probabilities q, whose sum over a row is added to usage [rows];
    // unless upstream is null, students' become factor 2^(t - greatest) - upstream q, for q the
    // sum of their pairs'. The rows' shares of the cross-entropies, -q log2 p, are in sum
    // [columns]. scratch: `samples` floats.
    void (*soft_targets)(float* tile, std::ptrdiff_t ld, int rows, const SoftTargets& targets,
                         float* scratch, float* sum, float* usage);

    // t <- cap tanh(inverse t), for inverse = 1 / cap.
    void (*softcap)(float* tile, std::ptrdiff_t ld, int rows, int columns, float inverse,
                    Factor cap);
};

// The best level that this processor has; SSLFAST_CPU_LEVEL names a lower one.
const TileKernels& tile_kernels();

}  // namespace sslfast::cpu
