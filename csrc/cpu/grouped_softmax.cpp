// Similarity softmax whose positives are groups and whose false negatives are left out, in memory
// linear in M + N. As in similarity_softmax.cpp, but a tile of logits is split into one of
// negatives and one of positives, each with -infinity for the others; where a tile has no positive,
// which is most of them, nothing is spent on the second.
#include <sslfast/cpu.h>

#include <cmath>
#include <vector>

#include "kept_logits.h"
#include "softmax_sums.h"
#include "strips.h"

namespace sslfast::cpu {
namespace {

class Splitter {
  public:
    Splitter(const Similarities& p, const Groups& groups)
        : groups_(groups),
          sign_(p.scale < 0 ? -1.0f : 1.0f),
          limit_(static_cast<float>(groups.threshold * std::abs(p.scale) * log2_e_exact)) {}
    bool operator()(const Strip& strip, Block row, Block column, float* tile,
                    float* positives) const {
        const std::int64_t j = strip.first_column + column.first;
        return strip.kernels.split(tile, positives, ld, row.size, column.size,
                                   groups_.row + row.first, groups_.column + j,
                                   groups_.row_ignored + row.first, groups_.column_ignored + j,
                                   sign_, limit_, groups_.own + row.first - j);
    }

  private:
    const Groups groups_;
    const float sign_, limit_;  // to base 2, as the logits
};

}  // namespace

void grouped_forward(const Similarities& problem, const Groups& groups, double* lse,
                     double* positive_lse, double* column_lse, double* column_positive_lse,
                     Kept kept) {
    const bool symmetric = problem.columns == nullptr;
    const bool sides = !symmetric && column_lse != nullptr;
    RunningSums rows(problem.m), positives(problem.m);
    RunningSums columns(sides ? problem.n : 0), column_positives(sides ? problem.n : 0);
    RunningSums* other = symmetric ? &rows : sides ? &columns : nullptr;
    RunningSums* other_positives = symmetric ? &positives : sides ? &column_positives : nullptr;
    const Splitter split(problem, groups);
    Tiles tiles(problem.threads), more(problem.threads);
    KeptLogits logits(kept.data, kept.size);
    logits.begin();

    Strips(problem).for_each([&](const Strip& strip) {
        strip.for_each_tile([&](Block row, Block column, std::int64_t before) {
            float *tile = tiles.mine(), *positive = more.mine();
            float scratch[largest_tile];
            strip.logits(row, column, tile);
            logits.keep(before, row, column, tile, ld);
            const bool any = split(strip, row, column, tile, positive);
            const bool both = other != nullptr && !(symmetric && row.first == column.first);
            const std::int64_t j = strip.first_column + column.first;
            const auto merge = [&](const float* t, RunningSums& own, RunningSums* others) {
                strip.kernels.merge(t, ld, row.size, column.size, &own.maximum[row.first],
                                    &own.sum[row.first], both ? &others->maximum[j] : nullptr,
                                    both ? &others->sum[j] : nullptr, scratch);
            };
            merge(tile, rows, other);
            if (any) merge(positive, positives, other_positives);
        });
    });
    rows.write(lse), positives.write(positive_lse);
    if (sides) columns.write(column_lse), column_positives.write(column_positive_lse);
}

void grouped_backward(const Similarities& problem, const Groups& groups, Statistics row_side,
                      Statistics row_positive, Statistics column_side, Statistics column_positive,
                      Kept kept, float* d_rows, float* d_columns) {
    const bool symmetric = problem.columns == nullptr;
    const Factors rows(row_side, problem.m, true), row_positives(row_positive, problem.m, true);
    const Factors columns(column_side, problem.n, true);
    const Factors column_positives(column_positive, problem.n, true);
    const Splitter split(problem, groups);
    Tiles tiles(problem.threads), more(problem.threads);
    KeptLogits logits(kept.data, kept.size);
    logits.resume();
    float* d_other = symmetric ? d_rows : d_columns;

    Strips(problem, d_rows, d_columns).for_each([&](const Strip& strip) {
        const auto from = [](const std::vector<float>& data, std::int64_t first) {
            return data.empty() ? nullptr : data.data() + first;
        };
        strip.for_each_tile([&](Block row, Block column, std::int64_t before) {
            float *tile = tiles.mine(), *positive = more.mine();
            float scratch[largest_tile];
            if (!logits.recall(before, row, column, tile, ld)) strip.logits(row, column, tile);
            const bool any = split(strip, row, column, tile, positive);
            const std::int64_t j = strip.first_column + column.first;
            const auto weigh = [&](float* t, const Factors& own, const Factors& others) {
                strip.kernels.weigh(t, ld, row.size, column.size, from(own.lse, row.first),
                                    from(own.g, row.first), from(others.lse, j), from(others.g, j),
                                    scratch);
            };
            weigh(tile, rows, columns);
            if (any) {
                weigh(positive, row_positives, column_positives);
                strip.kernels.add(tile, positive, ld, row.size, column.size);
            }
            strip.add_to_rows(row, column, tile, d_rows);
            if (d_other != nullptr && !(symmetric && row.first == column.first))
                strip.add_to_columns(row, column, tile, d_other);
        });
    });
}

}  // namespace sslfast::cpu
