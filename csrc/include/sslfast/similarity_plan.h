// Which thread block shape a problem gets, how shared memory is used and how often the columns are
// split: fixed by the sizes and the GPU alone, so that results are the same from run to run.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <type_traits>

#include <sslfast/similarity_tile.h>

namespace sslfast {

// Block shapes that need no more than 255 registers a thread. Float32 without tensor cores has half
// the columns, to keep its unrolled code in the instruction cache.
template <class E>
constexpr int column_tiles = std::is_same_v<E, Ieee32> ? 4 : 8;
template <class E>
using ForwardTile = Tile<E, 4, 2, column_tiles<E>, 2>;
template <class E>  // gradients of 256 bytes of features a row
using NarrowTile = Tile<E, 4, 2, 4, 2>;
template <class E>  // of 512
using WideTile = Tile<E, 8, 1, column_tiles<E>, 4>;

struct Gpu {
    int multiprocessors;
    int shared_bytes;  // that a block may have
};

struct Plan {
    bool wide, resident;
    int panels, stages, splits, shared_bytes;
    int row_blocks, gradient_panels;  // the grid, with splits

    // Floats of memory for partial results, `per_row` of each row.
    std::int64_t workspace(std::int64_t rows, std::int64_t per_row) const {
        return splits == 1 ? 0 : splits * rows * per_row;
    }
};

constexpr int block_reserve = 1024;  // bytes of shared memory that CUDA reserves for every block

// The number of splits with the least time in waves of `slots` blocks. A split costs its block
// about two tiles' time: the rows' panels, and the merge.
inline int best_split(std::int64_t blocks, int tiles, int slots) {
    int best = 1;
    if (blocks == 0) return best;
    std::int64_t least = std::numeric_limits<std::int64_t>::max();
    for (int s = 1; s <= std::max(tiles, 1) && (s == 1 || blocks * s <= 4 * slots); ++s) {
        const std::int64_t waves = (blocks * s + slots - 1) / slots;
        const std::int64_t cost = waves * ((tiles + s - 1) / s + (s == 1 ? 0 : 2));
        if (cost < least) least = cost, best = s;
    }
    return best;
}

// The plan with blocks of shape T; false if not even two stages fit.
template <class T>
bool plan_with(std::int64_t rows, std::int64_t columns, int dim, bool backward, Gpu gpu,
               Plan* plan) {
    plan->wide = T::chunks == 4;
    plan->panels = std::max((dim + T::features - 1) / T::features, 1);
    const auto bytes = [&](int stages) {
        const int stage = T::y_panel + T::statistics;
        return plan->resident ? plan->panels * T::x_panel + stages * stage
                              : stages * (stage + T::x_panel);
    };
    plan->resident = true;
    plan->resident = bytes(2) <= gpu.shared_bytes;
    if (bytes(2) > gpu.shared_bytes) return false;
    // A third stage, unless it costs a multiprocessor its second block.
    const int half = (gpu.shared_bytes + block_reserve) / 2 - block_reserve;
    plan->stages = bytes(3) <= (bytes(2) <= half ? half : gpu.shared_bytes) ? 3 : 2;
    plan->shared_bytes = bytes(plan->stages);
    plan->row_blocks = static_cast<int>((rows + T::rows - 1) / T::rows);
    plan->gradient_panels = backward ? plan->panels : 1;
    // 255 registers a thread: eight warps fill a multiprocessor.
    const int resident_blocks = std::min(8 / T::warps, plan->shared_bytes <= half ? 2 : 1);
    plan->splits = best_split(static_cast<std::int64_t>(plan->row_blocks) * plan->gradient_panels,
                              static_cast<int>((columns + T::columns - 1) / T::columns),
                              gpu.multiprocessors * resident_blocks);
    return true;
}

template <class E>
Plan plan_similarity(std::int64_t rows, std::int64_t columns, int dim, bool backward, Gpu gpu) {
    constexpr std::int64_t most = std::numeric_limits<int>::max() - 4096;
    if (rows > most || columns > most)
        throw std::invalid_argument("more than 2^31 - 4096 rows or columns: split the batch");
    Plan plan{};
    const bool wide = backward && dim > NarrowTile<E>::features;
    if (wide && plan_with<WideTile<E>>(rows, columns, dim, true, gpu, &plan)) return plan;
    if (backward ? plan_with<NarrowTile<E>>(rows, columns, dim, true, gpu, &plan)
                 : plan_with<ForwardTile<E>>(rows, columns, dim, false, gpu, &plan))
        return plan;
    throw std::invalid_argument("needs 99 KB of shared memory a block, and this GPU has less");
}

}  // namespace sslfast
