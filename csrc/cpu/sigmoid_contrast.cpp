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
    const int dim = problem.dim;
    const bool gradients = row_weight != nullptr;
    if (gradients) std::fill_n(d_rows, problem.m * dim, 0.0f);
    if (d_columns != nullptr) std::fill_n(d_columns, problem.n * dim, 0.0f);
    std::vector<double> losses(problem.m), weights(problem.m);
    Tiles tiles(problem.threads);

    // Rows are packed only for the gradient of the columns.
    const std::int64_t height = d_columns == nullptr ? problem.m : strip_size(problem.m);
    for_each_strip(problem, height, strip_size(problem.n), [&](const Strip& strip) {
        const Plan plan(strip.problem);
        std::optional<PackedValues> row_values, column_values;
        if (gradients) column_values.emplace(plan.pack_columns());
        if (d_columns != nullptr) row_values.emplace(plan.pack_rows());
        const float* row_weights = gradients ? row_weight + strip.first_row : nullptr;
        double* row_losses = &losses[strip.first_row];

        plan.play([&](Block row, Block column) {
            float* tile = tiles.mine();
            plan.logits(row, column, tile);
            for (int i = 0; i < row.size; ++i)
                for (int j = 0; j < column.size; ++j) tile[i * ld + j] += bias * log2_e;
            // Positives are dealt with one by one: as negatives of logit -infinity they add nothing.
            float row_loss[largest_tile] = {}, positive[largest_tile];
            for_each_named(plan.p.pairing, row, column, [&](int i, int j, bool) {
                positive[i] = tile[i * ld + j] * ln_2;
                tile[i * ld + j] = -std::numeric_limits<float>::infinity();
            });
            plan.kernels.sigmoid(tile, ld, row.size, column.size, at(row_weights, row), row_loss);
            for (int i = 0; i < row.size; ++i) row_losses[row.first + i] += row_loss[i] * ln_2;
            for_each_named(plan.p.pairing, row, column, [&](int i, int j, bool) {
                const float t = positive[i], u = std::exp(-std::abs(t));
                row_losses[row.first + i] += std::max(-t, 0.0f) + std::log1p(u);
                if (gradients)
                    tile[i * ld + j] =
                        -row_weights[row.first + i] * (t > 0.0f ? u : 1.0f) / (1.0f + u);
            });
            if (!gradients) return;
            for (int i = 0; i < row.size; ++i) {
                float sum = 0.0f;
                for (int j = 0; j < column.size; ++j) sum += tile[i * ld + j];
                weights[strip.first_row + row.first + i] += sum;
            }
            plan.kernels.multiply(row.size, dim, column.size, {tile, ld, 1},
                                  column_values->of(column), true,
                                  d_rows + (strip.first_row + row.first) * dim, dim);
            if (d_columns != nullptr)
                plan.kernels.multiply(column.size, dim, row.size, {tile, 1, ld},
                                      row_values->of(row), true,
                                      d_columns + (strip.first_column + column.first) * dim, dim);
        });
    });
    for (std::int64_t i = 0; i < problem.m; ++i) loss[i] = static_cast<float>(losses[i]);
    for (std::int64_t i = 0; gradients && i < problem.m; ++i)
        d_bias[i] = static_cast<float>(weights[i]);
}

}  // namespace sslfast::cpu
