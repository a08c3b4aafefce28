// The pairwise sigmoid loss on the CPU: value and both gradients from one pass over the tiles.
//
// Nothing has to be known of a row before its elements can be weighed, so a tile is multiplied out,
// turned into its weights and multiplied into both gradients: 6 m n dim FLOP, no array of m n.
#include <sslfast/cpu.h>

#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "plan.h"

namespace sslfast::cpu {

void sigmoid_contrast(const Similarities& problem, float bias, const float* row_weight, float* loss,
                      float* d_rows, float* d_columns, float* d_bias) {
    const Plan plan(problem);
    const int dim = problem.dim;
    const bool gradients = row_weight != nullptr;
    std::optional<PackedValues> row_values, column_values;
    if (d_rows != nullptr) column_values.emplace(plan.pack_columns());
    if (d_columns != nullptr) row_values.emplace(plan.pack_rows());
    if (d_rows != nullptr) std::fill_n(d_rows, problem.m * dim, 0.0f);
    if (d_columns != nullptr) std::fill_n(d_columns, problem.n * dim, 0.0f);
    std::vector<double> total(problem.m), weights(problem.m);
    Tiles tiles(problem.threads);

    plan.play([&](Block row, Block column) {
        float* tile = tiles.mine();
        plan.logits(row, column, tile);
        for (int i = 0; i < row.size; ++i)
            for (int j = 0; j < column.size; ++j) tile[i * ld + j] += bias * log2_e;
        // The positives are dealt with one by one: as negatives of logit -infinity they add nothing.
        float row_loss[largest_tile] = {}, positive[largest_tile];
        for_each_named(problem.pairing, row, column, [&](int i, int j, bool) {
            positive[i] = tile[i * ld + j] * ln_2;
            tile[i * ld + j] = -std::numeric_limits<float>::infinity();
        });
        plan.kernels.sigmoid(tile, ld, row.size, column.size, at(row_weight, row), row_loss);
        for (int i = 0; i < row.size; ++i) total[row.first + i] += row_loss[i] * ln_2;
        for_each_named(problem.pairing, row, column, [&](int i, int j, bool) {
            const float t = positive[i], u = std::exp(-std::abs(t));
            total[row.first + i] += std::max(-t, 0.0f) + std::log1p(u);
            if (gradients)
                tile[i * ld + j] = -row_weight[row.first + i] * (t > 0.0f ? u : 1.0f) / (1.0f + u);
        });
        if (!gradients) return;
        for (int i = 0; i < row.size; ++i) {
            float sum = 0.0f;
            for (int j = 0; j < column.size; ++j) sum += tile[i * ld + j];
            weights[row.first + i] += sum;
        }
        if (d_rows != nullptr)
            plan.kernels.multiply(row.size, dim, column.size, {tile, ld, 1},
                                  column_values->of(column), true, d_rows + row.first * dim, dim);
        if (d_columns != nullptr)
            plan.kernels.multiply(column.size, dim, row.size, {tile, 1, ld}, row_values->of(row),
                                  true, d_columns + column.first * dim, dim);
    });
    for (std::int64_t i = 0; i < problem.m; ++i) loss[i] = static_cast<float>(total[i]);
    for (std::int64_t i = 0; gradients && i < problem.m; ++i)
        d_bias[i] = static_cast<float>(weights[i]);
}

}  // namespace sslfast::cpu
