// Which tiles there are, and their deterministic order: no two threads write to the same rows or
// columns at a time, and a block's sums are added in the same order for any number of threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <utility>
#include <vector>

namespace sslfast::cpu {

// Tiles stay in the L2 cache, also where it is small or shared by two threads; sizes are multiples
// of the panel width, and the largest also of the 6 or 12 rows of a register tile.
constexpr int largest_tile = 192;
constexpr int finer_tiles[] = {96, 64, 32};

struct Block {
    std::int64_t first;
    int size;
};

// A tile: its blocks, their numbers among all blocks of both sides, and its place among all tiles.
struct Pair {
    Block row, column;
    std::int64_t row_number, column_number, index;
    bool one_block() const { return row_number == column_number; }
};

// One side of the matrix, cut into blocks; few rows are cut finer, to occupy several threads.
struct Side {
    std::int64_t length;
    int tile;
    std::int64_t blocks;

    explicit Side(std::int64_t n) : length(n), tile(largest_tile) {
        for (const int finer : finer_tiles)
            if (n < 8 * tile) tile = finer;
        blocks = (n + tile - 1) / tile;
    }
    std::int64_t whole() const { return blocks * tile; }  // length rounded up to whole blocks
    Block block(std::int64_t b) const {
        const std::int64_t first = b * tile;
        return {first, static_cast<int>(std::min<std::int64_t>(tile, length - first))};
    }
};

// All pairs of different blocks of one side: a round-robin tournament (circle method). Within a
// round no block appears twice, so the order of a block's partners depends on the schedule alone:
// results are bit-identical for any number of threads. Blocks meet themselves in the first round.
class Tournament {
  public:
    explicit Tournament(const Side& side)
        : side_(side), players_(side.blocks + side.blocks % 2) {}  // an odd one out has a bye
    std::int64_t rounds() const { return players_; }
    std::int64_t pairs() const { return side_.blocks; }
    std::int64_t blocks() const { return side_.blocks; }
    // The k-th pair of a round, the first not below the second; false where there is none.
    bool pair(std::int64_t round, std::int64_t k, Pair* pair) const {
        if (round == 0) {
            *pair = {side_.block(k), side_.block(k), k, k, k};
            return true;
        }
        if (k >= players_ / 2) return false;
        const std::int64_t n = players_ - 1;
        std::int64_t a = k == 0 ? n : (round + k) % n;
        std::int64_t b = (round - k + n) % n;
        if (a > b) std::swap(a, b);
        if (b >= side_.blocks) return false;
        // Of an odd number, the pair 0 of every round is a bye.
        const std::int64_t before = side_.blocks + (round - 1) * (side_.blocks / 2);
        *pair = {side_.block(a), side_.block(b), a, b, before + k - side_.blocks % 2};
        return true;
    }

  private:
    Side side_;
    std::int64_t players_;
};

// All pairs of a block of rows and one of columns: the shorter side meets the longer one rotated by
// one block a round.
class Rotation {
  public:
    Rotation(const Side& rows, const Side& columns) : rows_(rows), columns_(columns) {}
    std::int64_t rounds() const { return std::max(rows_.blocks, columns_.blocks); }
    std::int64_t pairs() const { return std::min(rows_.blocks, columns_.blocks); }
    std::int64_t blocks() const { return rows_.blocks + columns_.blocks; }
    bool pair(std::int64_t round, std::int64_t k, Pair* pair) const {
        const std::int64_t other = (round + k) % rounds();
        const bool fewer_rows = rows_.blocks <= columns_.blocks;
        const std::int64_t row = fewer_rows ? k : other, column = fewer_rows ? other : k;
        *pair = {rows_.block(row), columns_.block(column), row, rows_.blocks + column,
                 round * pairs() + k};
        return true;
    }

  private:
    Side rows_, columns_;
};

// A ticket lock for every block: a thread that takes a tile draws a ticket for both its blocks, and
// enters once both are served. Tickets are drawn in the order of the schedule, so the locks also
// make the order of a block's tiles deterministic.
class TicketLocks {
  public:
    explicit TicketLocks(std::int64_t blocks) : next_(blocks, 0), serving_(blocks) {}
    std::int64_t draw(std::int64_t block) { return next_[block]++; }  // by one thread at a time
    void acquire(std::int64_t block, std::int64_t ticket) const {
        while (serving_[block].load(std::memory_order_acquire) != ticket) std::this_thread::yield();
    }
    void release(std::int64_t block, std::int64_t ticket) {
        serving_[block].store(ticket + 1, std::memory_order_release);
    }

  private:
    std::vector<std::int64_t> next_;
    std::vector<std::atomic<std::int64_t>> serving_;
};

// Calls visit(pair) for every pair. Threads take them in the order of the rounds and wait only for
// earlier pairs of the same blocks: there is no barrier between rounds.
template <typename Schedule, typename Visit>
void for_each_pair(const Schedule& schedule, int threads, Visit visit) {
    TicketLocks locks(schedule.blocks());
    std::int64_t next = 0;
    const std::int64_t all = schedule.rounds() * schedule.pairs();
#pragma omp parallel num_threads(threads)
    for (;;) {
        Pair pair;
        std::int64_t row_ticket = 0, column_ticket = 0;
        bool taken = false;
#pragma omp critical(sslfast_for_each_pair)
        while (!taken && next < all) {
            taken = schedule.pair(next / schedule.pairs(), next % schedule.pairs(), &pair);
            ++next;
            if (!taken) continue;
            row_ticket = locks.draw(pair.row_number);
            if (!pair.one_block()) column_ticket = locks.draw(pair.column_number);
        }
        if (!taken) break;
        locks.acquire(pair.row_number, row_ticket);
        if (!pair.one_block()) locks.acquire(pair.column_number, column_ticket);
        visit(pair);
        locks.release(pair.row_number, row_ticket);
        if (!pair.one_block()) locks.release(pair.column_number, column_ticket);
    }
}

}  // namespace sslfast::cpu
