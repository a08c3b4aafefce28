// Similarity softmaxes of all prefixes of the features, in one sweep over the tiles.
//
// The inner products of a prefix are those of the one before it and what its own further features
// add: all prefixes together take the products of the longest. A tile of every prefix is scaled by
// the norms of its rows and columns and goes into the prefix's own online softmax, forward, or
// becomes its weights, backward. A feature's gradient is the sum over the prefixes that hold it, so
// the weights are added up from the longest prefix down, and every block of features is multiplied
// once: 4 M^2 D FLOP in the symmetric form, as for the longest prefix alone.
#include <sslfast/cpu.h>

#include <vector>

#include "factor.h"
#include "kept_logits.h"
#include "softmax_sums.h"
#include "strips.h"

namespace sslfast::cpu {
namespace {

// Tiles for every thread: one of raw inner products and one for every prefix.
class PrefixTiles {
  public:
    PrefixTiles(int threads, int prefixes)
        : size_(static_cast<std::size_t>(largest_tile) * ld * (prefixes + 1)),
          memory_(make_buffer(size_ * threads)) {}
    float* raw() { return memory_.get() + size_ * omp_get_thread_num(); }
    float* of(int prefix) { return raw() + (prefix + 1) * largest_tile * ld; }

  private:
    std::size_t size_;
    Buffer memory_;
};

// 1 / norm of every prefix, [count, n], as floats, as pairs of floats, and with the scale.
struct Norms {
    std::vector<float> plain, high, low;
    Norms(const double* inverse, std::int64_t n) : plain(n), high(n), low(n) {
        for (std::int64_t i = 0; i < n; ++i) {
            const Factor f = make_factor(inverse[i]);
            plain[i] = static_cast<float>(inverse[i]), high[i] = f.high, low[i] = f.low;
        }
    }
};

std::vector<Factor> scaled(const double* inverse, std::int64_t n, float scale) {
    std::vector<Factor> factors(n);
    for (std::int64_t i = 0; i < n; ++i)
        factors[i] = make_factor(inverse[i] * scale * log2_e_exact);
    return factors;
}

// What both passes do with a tile: raw inner products, and the logits of a prefix.
class Logits {
  public:
    const int count;
    KeptLogits kept;
    Logits(const Similarities& p, const Prefixes& prefixes, Kept memory)
        : count(prefixes.count),
          kept(memory.data, memory.size),
          m_(p.m),
          n_(p.columns == nullptr ? p.m : p.n),
          ends_(prefixes.ends),
          slots_(prefixes.count, -1),
          rows_(scaled(prefixes.row, m_ * count, p.scale)),
          columns_(prefixes.column, n_ * count) {
        for (int k = 0; k < count; ++k)
            if (prefixes.kept[k]) slots_[k] = kept_++;
    }

    Features features(int prefix) const {
        const int first = prefix == 0 ? 0 : static_cast<int>(ends_[prefix - 1]);
        return {first, static_cast<int>(ends_[prefix]) - first};
    }
    // raw holds the inner products of the prefix before, and then those of this one; `before`: as
    // in Strip::for_each_tile.
    void next(const Strip& strip, int prefix, Block row, Block column, std::int64_t before,
              bool forward, float* raw, float* logits) {
        const std::int64_t j = prefix * n_ + strip.first_column + column.first;
        const std::int64_t slot = slots_[prefix];
        const std::int64_t at = before * kept_ + slot * row.size * column.size;
        const bool found = slot >= 0 && !forward && kept.recall(at, row, column, raw, ld);
        if (!found) strip.products(row, column, features(prefix), prefix > 0, raw);
        if (slot >= 0 && forward) kept.keep(at, row, column, raw, ld);
        strip.kernels.scale(raw, ld, row.size, column.size, &rows_[prefix * m_ + row.first],
                            &columns_.high[j], &columns_.low[j], logits);
    }
    const float* column_inverse(std::int64_t at) const { return &columns_.plain[at]; }

  private:
    std::int64_t m_, n_;
    const std::int64_t* ends_;
    std::vector<std::int64_t> slots_;  // places among the kept ones of a tile, or -1
    std::int64_t kept_ = 0;
    std::vector<Factor> rows_;
    Norms columns_;
};

}  // namespace

void matryoshka_forward(const Similarities& problem, const Prefixes& prefixes, double* lse,
                        double* positive, double* column_lse, Kept kept) {
    const bool symmetric = problem.columns == nullptr;
    const std::int64_t m = problem.m, n = symmetric ? m : problem.n;
    Logits logits(problem, prefixes, kept);
    logits.kept.begin();
    RunningSums rows(m * logits.count);
    RunningSums columns(symmetric || column_lse == nullptr ? 0 : n * logits.count);
    RunningSums* other = symmetric ? &rows : column_lse == nullptr ? nullptr : &columns;
    PrefixTiles tiles(problem.threads, 1);

    Strips(problem).for_each([&](const Strip& strip) {
        strip.for_each_tile([&](Block row, Block column, std::int64_t before) {
            float *raw = tiles.raw(), *tile = tiles.of(0);
            float scratch[largest_tile];
            const bool both = other != nullptr && !(symmetric && row.first == column.first);
            for (int k = 0; k < logits.count; ++k) {
                const std::int64_t i0 = k * m + row.first;
                const std::int64_t j0 = k * n + strip.first_column + column.first;
                logits.next(strip, k, row, column, before, true, raw, tile);
                // All positives are read before anything is overwritten: a pair may be named twice.
                for_each_named(strip.p.pairing, row, column, [&](int i, int j, bool is_positive) {
                    if (!is_positive) return;
                    positive[i0 + i] = tile[i * ld + j] / log2_e_exact;
                    if (symmetric) positive[j0 + j] = tile[i * ld + j] / log2_e_exact;
                });
                for_each_named(strip.p.pairing, row, column,
                               [&](int i, int j, bool) { tile[i * ld + j] = left_out; });
                strip.kernels.merge(tile, ld, row.size, column.size, &rows.maximum[i0],
                                    &rows.sum[i0], both ? &other->maximum[j0] : nullptr,
                                    both ? &other->sum[j0] : nullptr, scratch);
            }
        });
    });
    rows.write(lse);
    if (column_lse != nullptr) (symmetric ? rows : columns).write(column_lse);
}

void matryoshka_backward(const Similarities& problem, const Prefixes& prefixes, Statistics row_side,
                         Statistics column_side, const float* positive, Kept kept, float* d_rows,
                         float* d_columns, float* row_inner, float* column_inner) {
    const bool symmetric = problem.columns == nullptr;
    const std::int64_t m = problem.m, n = symmetric ? m : problem.n;
    Logits logits(problem, prefixes, kept);
    logits.kept.resume();
    const int count = logits.count;
    const Norms row_norms(prefixes.row, m * count);
    const Factors rows(row_side, m * count), columns(column_side, n * count);
    PrefixTiles tiles(problem.threads, count);
    float* d_other = symmetric ? d_rows : d_columns;
    float* other_inner = symmetric ? row_inner : column_inner;

    Strips(problem, d_rows, d_columns).for_each([&](const Strip& strip) {
        const auto from = [](const std::vector<float>& data, std::int64_t first) {
            return data.empty() ? nullptr : data.data() + first;
        };
        strip.for_each_tile([&](Block row, Block column, std::int64_t before) {
            const bool both = d_other != nullptr && !(symmetric && row.first == column.first);
            float scratch[largest_tile];
            for (int k = 0; k < count; ++k) {
                const std::int64_t i0 = k * m + row.first;
                const std::int64_t j0 = k * n + strip.first_column + column.first;
                float *raw = tiles.raw(), *tile = tiles.of(k);
                logits.next(strip, k, row, column, before, false, raw, tile);
                strip.kernels.weigh(tile, ld, row.size, column.size, from(rows.lse, i0),
                                    from(rows.g, i0), from(columns.lse, j0), from(columns.g, j0),
                                    scratch);
                for_each_named(strip.p.pairing, row, column, [&](int i, int j, bool is_positive) {
                    tile[i * ld + j] = is_positive ? positive[i0 + i] : 0.0f;
                });
                strip.kernels.inner(tile, raw, ld, row.size, column.size, &row_norms.plain[i0],
                                    logits.column_inverse(j0), row_inner + i0,
                                    both ? other_inner + j0 : nullptr);
            }
            for (int k = count - 1; k >= 0; --k) {
                float* tile = tiles.of(k);
                if (k + 1 < count)
                    strip.kernels.add(tile, tiles.of(k + 1), ld, row.size, column.size);
                strip.add_to_rows(row, column, tile, logits.features(k), d_rows);
                if (both) strip.add_to_columns(row, column, tile, logits.features(k), d_other);
            }
        });
    });
}

}  // namespace sslfast::cpu
