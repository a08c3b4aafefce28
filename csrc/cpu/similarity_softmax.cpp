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

#include <cmath>
#include <limits>
#include <vector>

#include "kept_logits.h"
#include "strips.h"

namespace sslfast::cpu {
namespace {

constexpr float lowest = -1e30f;  // a maximum of nothing, finite so that -inf - it is -inf
constexpr float left_out = -std::numeric_limits<float>::infinity();

// Running log-sum-exps: sum 2^(t - maximum).
struct RunningSums {
    std::vector<float> maximum, sum;
    explicit RunningSums(std::int64_t n) : maximum(n, lowest), sum(n, 0.0f) {}
    void write(double* lse) const {
        for (std::size_t i = 0; i < sum.size(); ++i)
            lse[i] = (maximum[i] + std::log2(double{sum[i]})) / log2_e_exact;
    }
};

// Log-sum-exps to base 2 rounded to floats, and upstream gradients that compensate for the
// rounding: g 2^(t - lse) = (g 2^(rounded - lse)) 2^(t - rounded).
struct Factors {
    std::vector<float> lse, g;
    Factors(Statistics given, std::int64_t n) {
        if (given.lse == nullptr) return;
        lse.resize(n), g.resize(n);
        for (std::int64_t i = 0; i < n; ++i) {
            const double exact = given.lse[i] * log2_e_exact;
            lse[i] = static_cast<float>(exact);
            const double lost = lse[i] - exact;  // NaN where there are no negatives
            g[i] = static_cast<float>(given.g[i] * (std::isfinite(lost) ? std::exp2(lost) : 1));
        }
    }
};

}  // namespace

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
