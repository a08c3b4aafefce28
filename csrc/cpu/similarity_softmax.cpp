// Similarity softmax on the CPU, in memory linear in M + N; at most 16 MiB of the M x N logits are
// kept for the backward pass (kept_logits.h).
//
// A tile of base-2 logits is computed (tile.cpp), then one fused pass goes over it while it is in
// the L2 cache: online softmax forward, weights backward. In the symmetric form tiles below the
// diagonal are never computed, for a tile serves both its rows and its columns: M^2 D FLOP forward,
// 3 M^2 D backward. Otherwise 2 M N D forward, and 6 M N D for both gradients.
//
// Log-sum-exps and positives are doubles: the large ones of a low temperature, in the hundreds,
// have few digits behind the point as floats.
#include <sslfast/cpu.h>

#include <vector>

#include "kept_logits.h"
#include "softmax_sums.h"
#include "strips.h"

namespace sslfast::cpu {
void similarity_forward(const Similarities& problem, double* lse, double* positive,
                        double* column_lse, Kept kept) {
    RunningSums rows(problem.m), columns(column_lse == nullptr ? 0 : problem.n);
    const bool symmetric = problem.columns == nullptr;
    RunningSums* other = symmetric ? &rows : column_lse == nullptr ? nullptr : &columns;
    Tiles tiles(problem.threads);
    KeptLogits logits(kept.data, kept.size);
    logits.begin();

    Strips(problem).for_each([&](const Strip& strip) {
        float* other_maximum = other == nullptr ? nullptr : &other->maximum[strip.first_column];
        float* other_sum = other == nullptr ? nullptr : &other->sum[strip.first_column];
        strip.for_each_tile([&](Block row, Block column, std::int64_t before) {
            float* tile = tiles.mine();
            float scratch[largest_tile];
            strip.logits(row, column, tile);
            logits.keep(before, row, column, tile, ld);
            // All positives are read before anything is overwritten: a pair may be named twice.
            for_each_named(strip.p.pairing, row, column, [&](int i, int j, bool is_positive) {
                if (!is_positive) return;
                positive[row.first + i] = tile[i * ld + j] / log2_e_exact;
                if (symmetric) positive[column.first + j] = tile[i * ld + j] / log2_e_exact;
            });
            for_each_named(strip.p.pairing, row, column,
                           [&](int i, int j, bool) { tile[i * ld + j] = left_out; });
            const bool both = other != nullptr && !(symmetric && row.first == column.first);
            strip.kernels.merge(tile, ld, row.size, column.size, &rows.maximum[row.first],
                                &rows.sum[row.first], both ? other_maximum + column.first : nullptr,
                                both ? other_sum + column.first : nullptr, scratch);
        });
    });
    rows.write(lse);
    if (column_lse != nullptr) (symmetric ? rows : columns).write(column_lse);
}

void similarity_backward(const Similarities& problem, Statistics row_side, Statistics column_side,
                         const float* positive, Kept kept, float* d_rows, float* d_columns) {
    const bool symmetric = problem.columns == nullptr;
    const Factors rows(row_side, problem.m), columns(column_side, problem.n);
    Tiles tiles(problem.threads);
    KeptLogits logits(kept.data, kept.size);
    logits.resume();

    Strips(problem, d_rows, d_columns).for_each([&](const Strip& strip) {
        const auto from = [](const std::vector<float>& data, std::int64_t first) {
            return data.empty() ? nullptr : data.data() + first;
        };
        const float *row_lse = from(rows.lse, 0), *row_g = from(rows.g, 0);
        const float* column_lse = from(columns.lse, strip.first_column);
        const float* column_g = from(columns.g, strip.first_column);
        float* d_other = symmetric ? d_rows : d_columns;
        strip.for_each_tile([&](Block row, Block column, std::int64_t before) {
            float* tile = tiles.mine();
            float scratch[largest_tile];
            if (!logits.recall(before, row, column, tile, ld)) strip.logits(row, column, tile);
            strip.kernels.weigh(tile, ld, row.size, column.size, at(row_lse, row), at(row_g, row),
                                at(column_lse, column), at(column_g, column), scratch);
            for_each_named(strip.p.pairing, row, column, [&](int i, int j, bool is_positive) {
                const bool given = is_positive && positive != nullptr;
                tile[i * ld + j] = given ? positive[row.first + i] : 0.0f;
            });
            strip.add_to_rows(row, column, tile, d_rows);
            if (d_other != nullptr && !(symmetric && row.first == column.first))
                strip.add_to_columns(row, column, tile, d_other);
        });
    });
}

}  // namespace sslfast::cpu
