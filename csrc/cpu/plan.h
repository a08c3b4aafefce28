// What ops over the tiles of X Y^T share: the cut into blocks, the packed operands, the tiles of memory,
// and the elements that a pairing names.
#pragma once

#include <sslfast/cpu.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>

#include <omp.h>

#include "packed.h"
#include "schedule.h"
#include "tile.h"

namespace sslfast::cpu {

// A tile of memory for every thread.
class Tiles {
  public:
    explicit Tiles(int threads) : memory_(new float[size * threads]) {}
    float* mine() { return memory_.get() + size * omp_get_thread_num(); }

  private:
    static constexpr std::size_t size = largest_tile * largest_tile;
    std::unique_ptr<float[]> memory_;
};

constexpr std::ptrdiff_t ld = largest_tile;  // of every tile

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

// A part of a rectangular problem whose packed operands are small, or all of a symmetric one.
struct Strip {
    Similarities problem;
    std::int64_t first_row, first_column;
};

// Calls visit(strip) for strips of at most `rows` x `columns`, one after the other.
template <typename Visit>
void for_each_strip(const Similarities& p, std::int64_t rows, std::int64_t columns, Visit visit) {
    if (p.columns == nullptr) return visit(Strip{p, 0, 0});
    for (std::int64_t c = 0; c < p.n; c += columns)
        for (std::int64_t r = 0; r < p.m; r += rows) {
            Strip strip{p, r, c};
            strip.problem.rows += r * p.dim;
            strip.problem.columns += c * p.dim;
            strip.problem.m = std::min(rows, p.m - r);
            strip.problem.n = std::min(columns, p.n - c);
            strip.problem.pairing.row_base -= r;
            strip.problem.pairing.column_base -= c;
            visit(strip);
        }
}

// Rows or columns of a strip: a quarter, so that packing takes little memory and leaves many tiles for
// the threads. It must not depend on their number, on which no result may.
inline std::int64_t strip_size(std::int64_t n) {
    const std::int64_t quarter = (n / 4 + largest_tile - 1) / largest_tile * largest_tile;
    return std::max<std::int64_t>(2048, quarter);
}

// A problem cut into blocks and packed; logits to base 2.
class Plan {
  public:
    const bool symmetric;
    const Similarities p;
    const TileKernels& kernels;

    explicit Plan(const Similarities& problem)
        : symmetric(problem.columns == nullptr),
          p(problem),
          kernels(tile_kernels()),
          columns_(symmetric ? p.rows : p.columns),
          row_side_(p.m),
          column_side_(symmetric ? p.m : p.n),
          transposed_(columns_, column_side_.length, p.dim, p.scale * log2_e, kernels.width,
                      p.threads) {}

    // The tile of logits of two blocks.
    void logits(Block row, Block column, float* tile) const {
        kernels.multiply(row.size, column.size, p.dim, {p.rows + row.first * p.dim, p.dim, 1},
                         transposed_.of(column), false, tile, ld);
    }
    PackedValues pack_columns() const {
        return PackedValues(columns_, column_side_.length, p.dim, kernels.width, p.threads);
    }
    PackedValues pack_rows() const {
        return PackedValues(p.rows, p.m, p.dim, kernels.width, p.threads);
    }
    template <typename Play>
    void play(Play play) const {
        if (symmetric)
            play_all(Tournament(row_side_), p.threads, play);
        else
            play_all(Rotation(row_side_, column_side_), p.threads, play);
    }

  private:
    const float* columns_;
    Side row_side_, column_side_;
    PackedTransposed transposed_;
};

}  // namespace sslfast::cpu
