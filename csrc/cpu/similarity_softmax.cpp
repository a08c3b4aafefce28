// Symmetric similarity softmax (NT-Xent) on the CPU.
//
// Computes log-sum-exps of s Z Z^T row by row, and sum_j (g_i p_ij + g_j p_ji) z_j, without ever
// holding the M x M matrix: the product of a tile (tile.cpp; the scale is folded into the packed
// right operand), then one pass over the tile while it is in the L2 cache. Tiles below the diagonal are never computed, for
// the tile (I, J) serves both its rows and its columns: M^2 D FLOP forward, 3 M^2 D backward.
//
// The pairs of blocks are played as a round-robin tournament: within a round no block appears
// twice, so that threads never write to the same rows, and the order in which a block receives its
// sums depends on the schedule alone: bit-identical for any number of threads. Logits are kept in
// base 2 throughout.
#include <sslfast/cpu.h>

#include "tile.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include <omp.h>

namespace sslfast::cpu {
namespace {

constexpr int largest_tile = 256;       // 256 KB of floats: a tile stays in L2
constexpr float log2_e = 1.44269504088896340736f, ln_2 = 0.69314718055994530942f;
constexpr float lowest = -1e30f;        // a maximum of nothing, finite so that -inf - it is -inf
constexpr float left_out = -std::numeric_limits<float>::infinity();

// Running log-sum-exp of one row: sum 2^(t - maximum).
struct RunningSums {
    std::vector<float> maximum, sum;
    explicit RunningSums(std::int64_t m) : maximum(m, lowest), sum(m, 0.0f) {}
};

struct Block {
    std::int64_t first;
    int size;
};

// Cuts rows into blocks and pairs them up.
struct Tournament {
    std::int64_t m;
    int tile;
    std::int64_t blocks, players;

    explicit Tournament(std::int64_t rows) : m(rows) {
        // Small problems take smaller tiles, so that a round has pairs for several threads.
        tile = largest_tile;
        while (tile > 32 && m < 4 * tile) tile /= 2;
        blocks = (m + tile - 1) / tile;
        players = blocks + blocks % 2;  // an odd block out rests against the last player
    }
    std::int64_t rounds() const { return players - 1; }
    std::int64_t pairs() const { return players / 2; }
    Block block(std::int64_t b) const {
        const std::int64_t first = b * tile;
        return {first, static_cast<int>(std::min<std::int64_t>(tile, m - first))};
    }
    // Blocks of one pair, the first above the second; false when one of them rests.
    bool pair(std::int64_t round, std::int64_t k, Block* upper, Block* lower) const {
        const std::int64_t n = players - 1;
        std::int64_t a = k == 0 ? n : (round + k) % n;
        std::int64_t b = (round - k + n) % n;
        if (a > b) std::swap(a, b);
        if (b >= blocks) return false;
        *upper = block(a);
        *lower = block(b);
        return true;
    }
};

class Tiles {
  public:
    Tiles(int threads, int tile)
        : stride_(static_cast<std::size_t>(tile) * tile), memory_(new float[stride_ * threads]) {}
    float* mine() { return memory_.get() + stride_ * omp_get_thread_num(); }

  private:
    std::size_t stride_;
    std::unique_ptr<float[]> memory_;
};

// The right operands of all products: the rows as columns of logits, scaled, and as they are.
class Packed {
  public:
    Packed(const Symmetric& p, const TileKernels& kernels, bool with_values)
        : width_(kernels.width), m_(p.m), dim_(p.dim), transposed_(padded(p.m) * p.dim) {
        const float scale = p.scale * log2_e;
        const std::int64_t row_panels = padded(p.m) / width_;
#pragma omp parallel for num_threads(p.threads) schedule(static)
        for (std::int64_t panel = 0; panel < row_panels; ++panel)
            for (int w = 0; w < width_; ++w) {
                const std::int64_t row = panel * width_ + w;
                float* out = transposed_.data() + panel * width_ * dim_ + w;
                for (int d = 0; d < dim_; ++d)
                    out[d * width_] = row < m_ ? scale * p.rows[row * dim_ + d] : 0.0f;
            }
        if (!with_values) return;
        values_.resize(padded(p.dim) * p.m);
        const int panels = static_cast<int>(padded(p.dim)) / width_;
#pragma omp parallel for num_threads(p.threads) schedule(static)
        for (std::int64_t row = 0; row < p.m; ++row)
            for (int panel = 0; panel < panels; ++panel)
                for (int w = 0; w < width_; ++w) {
                    const int d = panel * width_ + w;
                    values_[(panel * m_ + row) * width_ + w] =
                        d < dim_ ? p.rows[row * dim_ + d] : 0.0f;
                }
    }
    // [dim, block]: s log2(e) Z_block^T
    Panels transposed(Block block) const {
        return {transposed_.data() + block.first * dim_,
                static_cast<std::ptrdiff_t>(width_) * dim_};
    }
    // [block, dim]: Z_block
    Panels values(Block block) const {
        return {values_.data() + block.first * width_, static_cast<std::ptrdiff_t>(width_) * m_};
    }

  private:
    std::int64_t padded(std::int64_t n) const { return (n + width_ - 1) / width_ * width_; }
    int width_;
    std::int64_t m_;
    int dim_;
    std::vector<float> transposed_, values_;
};

Strided rows_of(const Symmetric& p, Block block) {
    return {p.rows + block.first * p.dim, p.dim, 1};
}

// Calls visit(row in upper, column in lower) for the row itself and its positive where inside.
template <typename Visit>
void for_each_left_out(const Symmetric& p, Block upper, Block lower, Visit visit) {
    const std::int64_t half = p.m / 2;
    for (int i = 0; i < upper.size; ++i) {
        const std::int64_t row = upper.first + i;
        const std::int64_t self = row - lower.first;
        const std::int64_t positive = (row + half) % p.m - lower.first;
        if (self >= 0 && self < lower.size) visit(i, static_cast<int>(self), false);
        if (positive >= 0 && positive < lower.size) visit(i, static_cast<int>(positive), true);
    }
}

// Plays all pairs of blocks: every block against itself first, then the rounds.
template <typename Play>
void play_all(const Tournament& tournament, int threads, Play play) {
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic)
        for (std::int64_t b = 0; b < tournament.blocks; ++b)
            play(tournament.block(b), tournament.block(b));
        for (std::int64_t round = 0; round < tournament.rounds(); ++round) {
#pragma omp for schedule(dynamic)
            for (std::int64_t k = 0; k < tournament.pairs(); ++k) {
                Block upper, lower;
                if (tournament.pair(round, k, &upper, &lower)) play(upper, lower);
            }
        }
    }
}

}  // namespace

void symmetric_forward(const Symmetric& p, float* lse, float* positive) {
    if (p.m == 0) return;
    const TileKernels& kernels = tile_kernels();
    const Tournament tournament(p.m);
    const Packed packed(p, kernels, false);
    const std::ptrdiff_t ld = tournament.tile;
    RunningSums running(p.m);
    Tiles tiles(p.threads, tournament.tile);
    float* maximum = running.maximum.data();
    float* sum = running.sum.data();

    play_all(tournament, p.threads, [&](Block upper, Block lower) {
        float* tile = tiles.mine();
        float scratch[largest_tile];
        kernels.multiply(upper.size, lower.size, p.dim, rows_of(p, upper),
                         packed.transposed(lower), false, tile, ld);
        for_each_left_out(p, upper, lower, [&](int i, int j, bool is_positive) {
            if (is_positive)
                positive[upper.first + i] = positive[lower.first + j] = tile[i * ld + j] * ln_2;
        });
        for_each_left_out(p, upper, lower,
                          [&](int i, int j, bool) { tile[i * ld + j] = left_out; });
        const bool diagonal = upper.first == lower.first;
        kernels.merge(tile, ld, upper.size, lower.size, maximum + upper.first, sum + upper.first,
                      diagonal ? nullptr : maximum + lower.first,
                      diagonal ? nullptr : sum + lower.first, scratch);
    });
    for (std::int64_t i = 0; i < p.m; ++i) lse[i] = (maximum[i] + std::log2(sum[i])) * ln_2;
}

void symmetric_backward(const Symmetric& p, const float* lse, const float* g, float* gradient) {
    if (p.m == 0) return;
    const TileKernels& kernels = tile_kernels();
    const Tournament tournament(p.m);
    const Packed packed(p, kernels, true);
    const std::ptrdiff_t ld = tournament.tile;
    Tiles tiles(p.threads, tournament.tile);
    std::vector<float> lse2(lse, lse + p.m);
    for (float& value : lse2) value *= log2_e;

    play_all(tournament, p.threads, [&](Block upper, Block lower) {
        float* tile = tiles.mine();
        kernels.multiply(upper.size, lower.size, p.dim, rows_of(p, upper),
                         packed.transposed(lower), false, tile, ld);
        kernels.weigh(tile, ld, upper.size, lower.size, lse2.data() + upper.first,
                      g + upper.first, lse2.data() + lower.first, g + lower.first);
        for_each_left_out(p, upper, lower, [&](int i, int j, bool) { tile[i * ld + j] = 0.0f; });
        // The tile on the diagonal comes first and writes its rows; the others add to both sides.
        const bool diagonal = upper.first == lower.first;
        kernels.multiply(upper.size, p.dim, lower.size, {tile, ld, 1}, packed.values(lower),
                         !diagonal, gradient + upper.first * p.dim, p.dim);
        if (!diagonal)
            kernels.multiply(lower.size, p.dim, upper.size, {tile, 1, ld}, packed.values(upper),
                             true, gradient + lower.first * p.dim, p.dim);
    });
}

}  // namespace sslfast::cpu
