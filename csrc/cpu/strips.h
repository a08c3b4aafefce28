// What ops over the tiles of X Y^T share: the blocking, the packed operands, the scratch tiles, and
// the elements that a pairing names.
#pragma once

#include <sslfast/cpu.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include <omp.h>

#include "buffer.h"
#include "factor.h"
#include "huge_pages.h"
#include "packed.h"
#include "schedule.h"
#include "tile.h"

namespace sslfast::cpu {

// Leading dimension of a tile, in floats: an odd number of cache lines, so that a column is spread
// over all sets of the L1 cache, without conflict misses.
constexpr std::ptrdiff_t ld = largest_tile + 16;

// A scratch tile for every thread.
class Tiles {
  public:
    explicit Tiles(int threads) : memory_(make_buffer(size * threads)) {}
    float* mine() { return memory_.get() + size * omp_get_thread_num(); }

  private:
    static constexpr std::size_t size = largest_tile * ld;
    Buffer memory_;
};

// Calls visit(i, j, whether it is a positive) for the elements of a tile that the pairing names.
template <typename Visit>
void for_each_named(const Pairing& p, Block row, Block column, Visit visit) {
    const auto diagonal = [&](std::int64_t r, std::int64_t c, std::int64_t n, bool positive) {
        const std::int64_t first = std::max({row.first - r, column.first - c, std::int64_t{0}});
        const std::int64_t last =
            std::min({row.first + row.size - r, column.first + column.size - c, n});
        for (std::int64_t a = first; a < last; ++a)
            visit(static_cast<int>(r + a - row.first), static_cast<int>(c + a - column.first),
                  positive);
    };
    const std::int64_t wrap = p.length - p.shift;
    diagonal(p.row_base, p.column_base + p.shift, wrap, true);
    diagonal(p.row_base + wrap, p.column_base, p.shift, true);
    if (p.leave_out_self) diagonal(p.row_base, p.column_base, p.length, false);
}

inline const float* at(const float* data, Block block) {
    return data == nullptr ? nullptr : data + block.first;
}

// Columns of a strip: a quarter, so that packed columns take little memory and there are many tiles
// for the threads. Independent of the number of threads, as all results must be.
inline std::int64_t strip_size(std::int64_t n) {
    const std::int64_t quarter = (n / 4 + largest_tile - 1) / largest_tile * largest_tile;
    return std::min(n, std::max<std::int64_t>(10 * largest_tile, quarter));
}

// Some features of all: `first` is a multiple of the panel width.
struct Features {
    int first, count;
};

// All rows and some columns of a rectangular problem, or all of a symmetric one. Blocks of columns
// are numbered from the strip's own first; logits are to base 2.
class Strip {
  public:
    const Similarities p;
    const std::int64_t first_column;
    const std::int64_t first_logit;  // in the order in which all strips visit their tiles
    const TileKernels& kernels;

    // The tile of logits of two blocks.
    void logits(Block row, Block column, float* tile) const {
        kernels.multiply(row.size, column.size, p.dim, {p.rows + row.first * p.dim, p.dim, 1},
                         transposed_.of(column), &factor_, false, tile, ld);
    }
    // The part of the inner products, without the scale, that the features from `first` on have;
    // with accumulate it is added to the tile.
    void products(Block row, Block column, Features f, bool accumulate, float* tile) const {
        Panels y = transposed_.of(column);
        y.data += f.first * kernels.width;
        kernels.multiply(row.size, column.size, f.count,
                         {p.rows + row.first * p.dim + f.first, p.dim, 1}, y, nullptr, accumulate,
                         tile, ld);
    }
    // tile times the columns, added to d_rows of the whole problem, whose blocks lie in_panels.
    void add_to_rows(Block row, Block column, const float* tile, float* d_rows) const {
        add_to_rows(row, column, tile, {0, p.dim}, d_rows);
    }
    // Of these features alone.
    void add_to_rows(Block row, Block column, const float* tile, Features f, float* d_rows) const {
        kernels.multiply(row.size, f.count, column.size, {tile, ld, 1},
                         from(column_values_.of(column), f), nullptr, true,
                         d_rows + row.first * p.dim + f.first * row.size, in_panels);
    }
    // The transposed tile times the rows, added to d_columns likewise.
    void add_to_columns(Block row, Block column, const float* tile, float* d_columns) const {
        add_to_columns(row, column, tile, {0, p.dim}, d_columns);
    }
    void add_to_columns(Block row, Block column, const float* tile, Features f,
                        float* d_columns) const {
        float* d = d_columns + (first_column + column.first) * p.dim + f.first * column.size;
        kernels.multiply(column.size, f.count, row.size, {tile, 1, ld},
                         from(row_values_.of(row), f), nullptr, true, d, in_panels);
    }
    // Calls visit(row block, column block, how many logits at most come before it) for every tile.
    template <typename Visit>
    void for_each_tile(Visit visit) const {
        const Side rows(p.m), columns(p.n);
        const auto at_index = [&](const Pair& pair) {
            visit(pair.row, pair.column, first_logit + pair.index * rows.tile * columns.tile);
        };
        if (p.columns == nullptr)
            for_each_pair(Tournament(rows), p.threads, at_index);
        else
            for_each_pair(Rotation(rows, columns), p.threads, at_index);
    }

  private:
    friend class Strips;
    Panels from(Panels values, Features f) const {
        values.data += f.first / kernels.width * values.stride;
        return values;
    }
    Strip(const Similarities& part, std::int64_t column, std::int64_t logit, const TileKernels& k,
          const PackedTransposed& transposed, const PackedValues& columns, const PackedValues& rows)
        : p(part),
          first_column(column),
          first_logit(logit),
          kernels(k),
          factor_(make_factor(p.scale * log2_e_exact)),
          transposed_(transposed),
          column_values_(columns),
          row_values_(rows) {}
    const Factor factor_;
    const PackedTransposed& transposed_;
    const PackedValues &column_values_, &row_values_;
};

// The strips of a problem, whose packed columns follow each other in the same memory.
class Strips {
  public:
    // Gradients [m, dim] and [n, dim] that will be added to, or null; symmetric: d_columns is null.
    explicit Strips(const Similarities& problem, float* d_rows = nullptr,
                    float* d_columns = nullptr)
        : p_(problem),
          symmetric_(problem.columns == nullptr),
          d_rows_(d_rows),
          d_columns_(d_columns),
          columns_(symmetric_ ? p_.m : strip_size(p_.n)),
          transposed_(columns_, p_.dim, kernels_.width),
          column_values_(d_rows == nullptr ? 0 : columns_, p_.dim, kernels_.width),
          row_values_(d_columns == nullptr ? 0 : p_.m, p_.dim, kernels_.width) {}

    // Calls visit(strip), one after the other, between zeros in the gradients and their whole sums.
    template <typename Visit>
    void for_each(Visit visit) {
        fill(d_rows_, p_.m);
        fill(d_columns_, p_.n);
        if (d_columns_ != nullptr) row_values_.pack(p_.rows, p_.m, p_.threads);
        const float* y = symmetric_ ? p_.rows : p_.columns;
        const std::int64_t n = symmetric_ ? p_.m : p_.n;
        std::int64_t logit = 0;
        for (std::int64_t c = 0; c < n; c += columns_) {
            Similarities part = p_;
            part.n = std::min(columns_, n - c);
            part.pairing.column_base -= c;
            if (!symmetric_) part.columns += c * p_.dim;
            transposed_.pack(y + c * p_.dim, part.n, p_.threads);
            if (d_rows_ != nullptr) column_values_.pack(y + c * p_.dim, part.n, p_.threads);
            visit(Strip(part, c, logit, kernels_, transposed_, column_values_,
                        symmetric_ ? column_values_ : row_values_));
            logit += Side(part.m).whole() * Side(part.n).whole();
        }
        unpack_blocks(d_rows_, p_.m, p_.m);
        unpack_blocks(d_columns_, p_.n, columns_);
    }

  private:
    void fill(float* d, std::int64_t n) const {
        advise_huge_pages(d, d == nullptr ? 0 : n * p_.dim * sizeof(float));
#pragma omp parallel for num_threads(p_.threads) schedule(static)
        for (std::int64_t i = 0; i < (d == nullptr ? 0 : n); ++i)
            std::fill_n(d + i * p_.dim, p_.dim, 0.0f);
    }
    // Block by block, as the tiles were cut in every strip.
    void unpack_blocks(float* d, std::int64_t n, std::int64_t strip) const {
        if (d == nullptr) return;
        const std::size_t size = static_cast<std::size_t>(largest_tile) * p_.dim;
        const Buffer scratch = make_buffer(size * p_.threads);
        for (std::int64_t first = 0; first < n; first += strip) {
            const Side side(std::min(strip, n - first));
#pragma omp parallel for num_threads(p_.threads) schedule(static)
            for (std::int64_t b = 0; b < side.blocks; ++b) {
                const Block block = side.block(b);
                unpack(d + (first + block.first) * p_.dim, block.size, p_.dim, kernels_.width,
                       scratch.get() + size * omp_get_thread_num());
            }
        }
    }

    const Similarities p_;
    const TileKernels& kernels_ = tile_kernels();
    const bool symmetric_;
    float *const d_rows_, *const d_columns_;
    const std::int64_t columns_;  // of a strip
    PackedTransposed transposed_;
    PackedValues column_values_, row_values_;
};

}  // namespace sslfast::cpu
