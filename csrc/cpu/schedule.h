// Which tiles there are and in which order they are played, without two threads ever writing to the
// same rows or columns.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

namespace sslfast::cpu {

constexpr int largest_tile = 256;  // 256 KB of floats: a tile stays in the L2 cache

struct Block {
    std::int64_t first;
    int size;
};

// One side of the matrix, cut into blocks; few rows are cut finer, to occupy several threads.
struct Side {
    std::int64_t length;
    int tile;
    std::int64_t blocks;

    explicit Side(std::int64_t n) : length(n), tile(largest_tile) {
        while (tile > 32 && n < 4 * tile) tile /= 2;
        blocks = (n + tile - 1) / tile;
    }
    Block block(std::int64_t b) const {
        const std::int64_t first = b * tile;
        return {first, static_cast<int>(std::min<std::int64_t>(tile, length - first))};
    }
};

// All pairs of different blocks of one side: a round-robin tournament. Within a round no block
// appears twice, so the order of a block's partners depends on the schedule alone: results are
// bit-identical for any number of threads. Blocks meet themselves in a round before the others.
class Tournament {
  public:
    explicit Tournament(const Side& side)
        : side_(side), players_(side.blocks + side.blocks % 2) {}  // an odd one out rests
    std::int64_t rounds() const { return players_; }
    std::int64_t pairs() const { return side_.blocks; }
    // The k-th pair of a round, the first not below the second; false where there is none.
    bool pair(std::int64_t round, std::int64_t k, Block* upper, Block* lower) const {
        if (round == 0) {
            *upper = *lower = side_.block(k);
            return true;
        }
        if (k >= players_ / 2) return false;
        const std::int64_t n = players_ - 1;
        std::int64_t a = k == 0 ? n : (round + k) % n;
        std::int64_t b = (round - k + n) % n;
        if (a > b) std::swap(a, b);
        if (b >= side_.blocks) return false;
        *upper = side_.block(a);
        *lower = side_.block(b);
        return true;
    }

  private:
    Side side_;
    std::int64_t players_;
};

// All pairs of a block of rows and one of columns: rounds of a rotation.
class Rotation {
  public:
    Rotation(const Side& rows, const Side& columns) : rows_(rows), columns_(columns) {}
    std::int64_t rounds() const { return std::max(rows_.blocks, columns_.blocks); }
    std::int64_t pairs() const { return std::min(rows_.blocks, columns_.blocks); }
    bool pair(std::int64_t round, std::int64_t k, Block* row, Block* column) const {
        const std::int64_t other = (round + k) % rounds();
        const bool fewer_rows = rows_.blocks <= columns_.blocks;
        *row = rows_.block(fewer_rows ? k : other);
        *column = columns_.block(fewer_rows ? other : k);
        return true;
    }

  private:
    Side rows_, columns_;
};

// Calls play(row block, column block) for every pair; threads share the pairs of a round.
template <typename Schedule, typename Play>
void play_all(const Schedule& schedule, int threads, Play play) {
#pragma omp parallel num_threads(threads)
    for (std::int64_t round = 0; round < schedule.rounds(); ++round) {
#pragma omp for schedule(dynamic)
        for (std::int64_t k = 0; k < schedule.pairs(); ++k) {
            Block row, column;
            if (schedule.pair(round, k, &row, &column)) play(row, column);
        }
    }
}

}  // namespace sslfast::cpu
