// Log-sum-exps of the rows and positive logits: 2 M N D FLOP, M N exponentials; reads X once and Y
// once a row block (from L2), writes 8 bytes a row.
//
// Online softmax over column tiles, with a running maximum; exponents are to base 2, with log2(e)
// folded into the scale. With p.splits > 1 a block sees a part of the columns, and merge_forward
// reduces the partial results in a deterministic order.
#pragma once

#include <sslfast/similarity_products.h>

namespace sslfast {

constexpr float lowest = -3.402823466e38f;  // a maximum of nothing: finite, so -inf - it is -inf

struct ForwardResults {
    float *lse, *positive;
    float* parts;  // [splits, 2, m]: maxima and sums; null for one split
    int splits;
};

template <class Machine>
SSLFAST_KERNEL_CODE float log_sum(Machine& machine, float maximum, float sum) {
    return (maximum + machine.log2(sum)) * ln_2;
}

// Stores the positives of a tile, and masks them, a row itself and what is beyond the last column.
template <class T, class Machine>
SSLFAST_KERNEL_CODE void take_named(Machine& machine, const Similarity& p, int first_row,
                                    int first_column, float* positive, Logits<T>& t) {
    const int lane = machine.lane();
    t.for_each([&](int r, int c, int e, float& value) {
        const int i = first_row + 16 * r + accumulator_row(lane, e);
        const int j = first_column + 8 * c + accumulator_column(lane, e);
        const bool is_positive = j == p.pairing.positive_of(i) && i < p.x.rows && j < p.y.rows;
        if (is_positive) positive[i] = value * ln_2;
        if (is_positive || j == p.pairing.self_of(i) || j >= p.y.rows) value = -machine.infinity();
    });
}

template <class T, class Machine>
SSLFAST_KERNEL_CODE void forward_block(Machine& machine, const Similarity& p,
                                       const ForwardResults& out) {
    const int block_row = machine.block_x() * T::rows, split = machine.block_z();
    const int first_row = block_row + machine.warp() * T::warp_rows, lane = machine.lane();
    const int tiles = (p.y.rows + T::columns - 1) / T::columns;
    const NamedColumns named(p.pairing, block_row, T::rows);
    Panels<T, Machine> panels(machine, p, {nullptr, nullptr}, block_row,
                              part_begin(tiles, out.splits, split),
                              part_begin(tiles, out.splits, split + 1), p.panels - 1);
    const float scale = *p.scale * log2_e;

    float maximum[2 * T::row_tiles], sum[2 * T::row_tiles];  // of the columns this lane has
    SSLFAST_UNROLL
    for (int r = 0; r < 2 * T::row_tiles; ++r) maximum[r] = lowest, sum[r] = 0;
    Logits<T> t;
    while (panels.next()) {
        if (panels.begins_tile()) t.clear();
        add_products<T>(machine, panels.x(), panels.y(), panels.chunks(), t);
        if (!panels.ends_tile()) continue;

        t.for_each([&](int, int, int, float& value) { value *= scale; });
        const int j = panels.first_column();
        if (j + T::columns > p.y.rows || named.meet(j, j + T::columns))
            take_named<T>(machine, p, first_row, j, out.positive, t);
        float highest[2 * T::row_tiles];
        SSLFAST_UNROLL
        for (int r = 0; r < 2 * T::row_tiles; ++r) highest[r] = maximum[r];
        t.for_each([&](int r, int, int e, float& value) {  // a NaN is dropped here, not in the sum
            highest[2 * r + e / 2] = machine.maximum(highest[2 * r + e / 2], value);
        });
        SSLFAST_UNROLL
        for (int r = 0; r < 2 * T::row_tiles; ++r) {  // the four lanes of a row
            highest[r] = machine.maximum(highest[r], machine.shuffle_xor(highest[r], 1));
            highest[r] = machine.maximum(highest[r], machine.shuffle_xor(highest[r], 2));
            sum[r] *= machine.exp2(maximum[r] - highest[r]);
            maximum[r] = highest[r];
        }
        t.for_each([&](int r, int, int e, float& value) {
            sum[2 * r + e / 2] += machine.exp2(value - maximum[2 * r + e / 2]);
        });
    }

    SSLFAST_UNROLL
    for (int r = 0; r < 2 * T::row_tiles; ++r) {
        sum[r] += machine.shuffle_xor(sum[r], 1);
        sum[r] += machine.shuffle_xor(sum[r], 2);
        const std::int64_t i = first_row + 8 * r + lane / 4;
        if (lane % 4 != 0 || i >= p.x.rows) continue;
        if (split == 0 && p.pairing.positive_of(i) < 0) out.positive[i] = -machine.infinity();
        if (out.splits == 1) {
            out.lse[i] = log_sum(machine, maximum[r], sum[r]);
        } else {
            float* part = out.parts + std::int64_t{2} * split * p.x.rows;
            part[i] = maximum[r];
            part[p.x.rows + i] = sum[r];
        }
    }
}

// One row a thread.
template <class Machine>
SSLFAST_KERNEL_CODE void merge_forward(Machine& machine, std::int64_t i, std::int64_t rows,
                                       const ForwardResults& out) {
    float maximum = lowest, sum = 0;
    for (int split = 0; split < out.splits; ++split)
        maximum = machine.maximum(maximum, out.parts[2 * split * rows + i]);
    for (int split = 0; split < out.splits; ++split) {
        const float* part = out.parts + 2 * split * rows + i;
        sum += part[rows] * machine.exp2(part[0] - maximum);
    }
    out.lse[i] = log_sum(machine, maximum, sum);
}

}  // namespace sslfast
