// The pairwise sigmoid loss on the CPU: value and both gradients from one pass over the tiles.
//
// An element's weight needs no statistics of its row, so a tile of logits is computed, turned into
// weights and multiplied into both gradients: 6 m n dim FLOP, no array of m n.
#include <sslfast/cpu.h>

#include <cmath>
#include <limits>
#include <vector>

#include "strips.h"

namespace sslfast::cpu {

void sigmoid_contrast(const Similarities& problem, float bias, const float* row_weight, float* loss,
                      float* d_rows, float* d_columns, float* d_bias) {
    const bool gradients = row_weight != nullptr;
    std::vector<double> losses(problem.m), weights(problem.m);
    Tiles tiles(problem.threads);

    Strips(problem, gradients ? d_rows : nullptr, d_columns).for_each([&](const Strip& strip) {
        strip.for_each_tile([&](Block row, Block column, std::int64_t) {
            float* tile = tiles.mine();
            strip.logits(row, column, tile);
            for (int i = 0; i < row.size; ++i)
                for (int j = 0; j < column.size; ++j) tile[i * ld + j] += bias * log2_e;
            // Positives are masked, as negatives with a logit of -infinity, and added one by one.
            float row_loss[largest_tile] = {}, positive[largest_tile];
            for_each_named(strip.p.pairing, row, column, [&](int i, int j, bool) {
                positive[i] = tile[i * ld + j] * ln_2;
                tile[i * ld + j] = -std::numeric_limits<float>::infinity();
            });
            strip.kernels.sigmoid(tile, ld, row.size, column.size, at(row_weight, row), row_loss);
            for (int i = 0; i < row.size; ++i) losses[row.first + i] += row_loss[i] / log2_e_exact;
            for_each_named(strip.p.pairing, row, column, [&](int i, int j, bool) {
                const float t = positive[i], u = std::exp(-std::abs(t));
                losses[row.first + i] += std::max(-t, 0.0f) + std::log1p(u);
                if (gradients)
                    tile[i * ld + j] =
                        -row_weight[row.first + i] * (t > 0.0f ? u : 1.0f) / (1.0f + u);
            });
            if (!gradients) return;
            for (int i = 0; i < row.size; ++i) {
                float sum = 0.0f;
                for (int j = 0; j < column.size; ++j) sum += tile[i * ld + j];
                weights[row.first + i] += sum;
            }
            strip.add_to_rows(row, column, tile, d_rows);
            if (d_columns != nullptr) strip.add_to_columns(row, column, tile, d_columns);
        });
    });
    for (std::int64_t i = 0; i < problem.m; ++i) loss[i] = static_cast<float>(losses[i]);
    for (std::int64_t i = 0; gradients && i < problem.m; ++i)
        d_bias[i] = static_cast<float>(weights[i]);
}

}  // namespace sslfast::cpu
