// U = G Y with G_ij = g_i 2^(t_ij - a_i) + h_j 2^(t_ij - b_j), without t or G in memory.
//
// Exponents are to base 2: t, a, b are logits and log-sum-exps times log2(e), g and h upstream
// gradients. Both powers are at most 1 for any data. 4 M N D FLOP while D fits a panel, else t is
// recomputed for every panel of U; M N exponentials a side; reads X once and Y once a row block
// (from L2), writes U once. No atomics: with splits > 1, split-K over the columns, merge_backward
// reduces the partial results in a deterministic order.
//
// Weights are operands of the second product. In float16 they are scaled, like the loss in mixed
// precision: growth_block brings the largest g and h to the top of its range, and U is scaled back;
// where only the rows have statistics, g_i is applied after the sum, to scaled probabilities.
#pragma once

#include <type_traits>

#include <sslfast/similarity_products.h>

namespace sslfast {

constexpr int room = 14;  // a probability times 2^room is at the top of the range of float16

struct RowStatistics {
    const float* lse;
    const float* weight;
};

struct BackwardResults {
    float* u;       // [m, dim]
    float* parts;   // partial results [splits, m, dim]; null for one split
    float* growth;  // the scale of the weights, and its inverse; null: neither is needed
    int splits;
};

template <class T, class Machine>
SSLFAST_KERNEL_CODE void backward_block(Machine& machine, const Similarity& p, RowStatistics row,
                                        ColumnStatistics column, const BackwardResults& out) {
    constexpr int rows = 2 * T::row_tiles;  // of a lane
    const int block_row = machine.block_x() * T::rows, split = machine.block_z();
    const int first_row = block_row + machine.warp() * T::warp_rows, lane = machine.lane();
    const int tiles = (p.y.rows + T::columns - 1) / T::columns, panel = machine.block_y();
    const NamedColumns named(p.pairing, block_row, T::rows);
    Panels<T, Machine> panels(machine, p, column, block_row, part_begin(tiles, out.splits, split),
                              part_begin(tiles, out.splits, split + 1), panel);
    const float scale = *p.scale * log2_e;

    const bool scaled = std::is_same_v<typename T::Element, Fp16>, both = column.lse != nullptr;
    constexpr float top = 1 << room;
    const float grow = !scaled ? 1.0f : both ? out.growth[0] : top;
    float row_lse[rows], row_weight[rows];
    SSLFAST_UNROLL
    for (int r = 0; r < rows; ++r) {
        const int i = first_row + 8 * r + lane / 4;
        const bool inside = row.lse != nullptr && i < p.x.rows;
        row_lse[r] = inside ? row.lse[i] * log2_e : 0;
        row_weight[r] = inside ? row.weight[i] : 0;
    }

    Gradients<T> u;
    u.clear();
    Logits<T> t;
    while (panels.next()) {
        if (panels.begins_tile()) t.clear();
        add_products<T>(machine, panels.x(), panels.y(), panels.chunks(), t);
        if (!panels.ends_tile()) continue;

        if (both) {
            const unsigned lse = panels.statistics(), weight = lse + T::columns * 4;
            SSLFAST_UNROLL
            for (int c = 0; c < T::column_tiles; ++c) {
                SSLFAST_UNROLL
                for (int e = 0; e < 2; ++e) {
                    const unsigned at = (8 * c + accumulator_column(lane, e)) * 4;
                    const float b = machine.as_float(machine.load_word(lse + at)) * log2_e;
                    const float h = machine.as_float(machine.load_word(weight + at)) * grow;
                    SSLFAST_UNROLL
                    for (int r = 0; r < rows; ++r) {
                        float& value = t.value[r / 2][c][r % 2 * 2 + e];
                        const float logit = value * scale;
                        value = h * machine.exp2(logit - b);
                        if (row.lse != nullptr)
                            value += row_weight[r] * grow * machine.exp2(logit - row_lse[r]);
                    }
                }
            }
        } else {
            t.for_each([&](int r, int, int e, float& value) {
                value = grow * machine.exp2(value * scale - row_lse[2 * r + e / 2]);
            });
        }
        const int first_column = panels.first_column();
        if (first_column + T::columns > p.y.rows ||
            named.meet(first_column, first_column + T::columns)) {
            t.for_each([&](int r, int c, int e, float& value) {
                const int i = first_row + 16 * r + accumulator_row(lane, e);
                const int j = first_column + 8 * c + accumulator_column(lane, e);
                if (j >= p.y.rows || j == p.pairing.positive_of(i) || j == p.pairing.self_of(i))
                    value = 0;
            });
        }
        add_weighted<T>(machine, t, panels.y(), panels.chunks(), u);
    }

    const float shrink = !scaled ? 1.0f : both ? out.growth[1] : 1.0f / top;
    float* to =
        out.splits == 1 ? out.u : out.parts + static_cast<std::int64_t>(split) * p.x.rows * p.x.dim;
    u.for_each([&](int r, int c, int e, float& value) {
        const std::int64_t i = first_row + 16 * r + accumulator_row(lane, e);
        const int k = panel * T::features + 8 * c + accumulator_column(lane, e);
        const float back = both ? shrink : shrink * row_weight[2 * r + e / 2];
        if (i < p.x.rows && k < p.x.dim) to[i * p.x.dim + k] = value * back;
    });
}

// One element of U a thread.
SSLFAST_HOST_DEVICE void merge_backward(std::int64_t i, std::int64_t elements,
                                        const BackwardResults& out) {
    float sum = 0;
    for (int split = 0; split < out.splits; ++split) sum += out.parts[split * elements + i];
    out.u[i] = sum;
}

// growth = 2^n and 2^-n: 2^n times the largest finite |weight| is in [2^(room - 1), 2^room). A
// block-wide reduction: one block of `threads` threads; 4 bytes of shared memory a warp.
template <int threads, class Machine>
SSLFAST_KERNEL_CODE void growth_block(Machine& machine, const float* row_weight, int rows,
                                      const float* column_weight, int columns, float* growth) {
    float largest = 0;
    const auto see = [&](const float* weight, int count) {
        if (weight == nullptr) return;
        for (int i = machine.thread(); i < count; i += threads) {
            const float size = machine.absolute(weight[i]);
            if (size < machine.infinity()) largest = machine.maximum(largest, size);
        }
    };
    see(row_weight, rows);
    see(column_weight, columns);
    for (int mask = 1; mask < warp_size; mask *= 2)
        largest = machine.maximum(largest, machine.shuffle_xor(largest, mask));
    if (machine.lane() == 0) machine.store_word(machine.warp() * 4, machine.as_word(largest));
    machine.synchronize();
    if (machine.thread() != 0) return;
    for (int warp = 1; warp < threads / warp_size; ++warp)
        largest = machine.maximum(largest, machine.as_float(machine.load_word(warp * 4)));
    // Powers of two by their bits: exact. largest < 2^(biased - 126).
    const int biased = static_cast<int>(machine.as_word(largest) >> 23);
    int n = room + 126 - biased;
    n = n < -126 ? -126 : n > 126 ? 126 : n;
    growth[0] = machine.as_float(static_cast<std::uint32_t>(127 + n) << 23);
    growth[1] = machine.as_float(static_cast<std::uint32_t>(127 - n) << 23);
}

}  // namespace sslfast
