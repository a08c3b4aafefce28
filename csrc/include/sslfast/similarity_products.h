// The two products of the similarity softmax, over tiles in shared memory: logits s = x y^T, and
// the gradient u = w y with the weights w where the logits were.
#pragma once

#include <type_traits>

#include <sslfast/similarity_tile.h>

namespace sslfast {

template <class T>
constexpr bool uses_tensor_cores = !std::is_same_v<typename T::Element, Ieee32>;

// Column tiles of 8 features in a chunk, and in a panel.
template <class T>
constexpr int feature_tiles_of_chunk = chunk_bytes / T::Element::bytes / 8;
template <class T>
using Gradients = Accumulators<T::row_tiles, T::chunks * feature_tiles_of_chunk<T>>;

// One chunk of s += x y^T on tensor cores: a warp's rows from x on, all columns of the tile.
template <class T, class Machine, std::enable_if_t<uses_tensor_cores<T>, int> = 0>
SSLFAST_KERNEL_CODE void add_chunk(Machine& machine, unsigned x, unsigned y, Logits<T>& s) {
    constexpr typename T::Element element{};
    const MatrixRow to_a = matrix_row_a(machine.lane()), to_b = matrix_row_b(machine.lane());
    x += swizzled(to_a.row, to_a.vector);
    y += swizzled(to_b.row, to_b.vector);
    SSLFAST_UNROLL
    for (int v = 0; v < vectors_of_chunk; v += step_bytes / vector_bytes) {
        Fragment a[T::row_tiles];
        SSLFAST_UNROLL
        for (int r = 0; r < T::row_tiles; ++r) {
            const unsigned from = other_vector(x, v) + 16 * r * chunk_bytes;
            a[r] = machine.operand(element, machine.load_matrices(from));
        }
        SSLFAST_UNROLL
        for (int n = 0; n < T::column_tiles; n += 2) {
            const unsigned from = other_vector(y, v) + 8 * n * chunk_bytes;
            const Fragment b = machine.operand(element, machine.load_matrices(from));
            SSLFAST_UNROLL
            for (int r = 0; r < T::row_tiles; ++r) {
                machine.multiply(element, a[r], b.word[0], b.word[1], s.value[r][n]);
                machine.multiply(element, a[r], b.word[2], b.word[3], s.value[r][n + 1]);
            }
        }
    }
}

// The same in float32: a lane multiplies the rows and columns of its accumulator elements.
template <class T, class Machine, std::enable_if_t<!uses_tensor_cores<T>, int> = 0>
SSLFAST_KERNEL_CODE void add_chunk(Machine& machine, unsigned x, unsigned y, Logits<T>& s) {
    const int lane = machine.lane();
    for (int v = 0; v < vectors_of_chunk; ++v) {
        Fragment a[2 * T::row_tiles];
        SSLFAST_UNROLL
        for (int r = 0; r < 2 * T::row_tiles; ++r)
            a[r] = machine.load_vector(x + swizzled(8 * r + lane / 4, v));
        SSLFAST_UNROLL
        for (int n = 0; n < 2 * T::column_tiles; ++n) {
            const int column = n / 2 * 8 + accumulator_column(lane, n % 2);
            const Fragment b = machine.load_vector(y + swizzled(column, v));
            SSLFAST_UNROLL
            for (int r = 0; r < 2 * T::row_tiles; ++r) {
                float& sum = s.value[r / 2][n / 2][r % 2 * 2 + n % 2];
                SSLFAST_UNROLL
                for (int k = 0; k < 4; ++k)
                    sum = machine.multiply_add(machine.as_float(a[r].word[k]),
                                               machine.as_float(b.word[k]), sum);
            }
        }
    }
}

// s += x y^T over `chunks` chunks.
template <class T, class Machine>
SSLFAST_KERNEL_CODE void add_products(Machine& machine, unsigned x, unsigned y, int chunks,
                                      Logits<T>& s) {
    x += static_cast<unsigned>(machine.warp() * T::warp_rows * chunk_bytes);
    for (int c = 0; c < chunks; ++c, x += T::rows * chunk_bytes, y += T::columns * chunk_bytes)
        add_chunk<T>(machine, x, y, s);
}

// Adds to u the products of sixteen (16-bit elements) or eight weights a row, a, and the features
// of their columns, from `column` on.
template <class T, class Machine>
SSLFAST_KERNEL_CODE void add_features(Machine& machine, const Fragment (&a)[T::row_tiles],
                                      unsigned y, int column, int chunks, Gradients<T>& u) {
    constexpr typename T::Element element{};
    constexpr int tiles = feature_tiles_of_chunk<T>;
    const int lane = machine.lane();
    const MatrixRow to = matrix_row_a(lane);
    const unsigned transposed = y + swizzled(to.row, to.vector);
    SSLFAST_UNROLL
    for (int c = 0; c < T::chunks; ++c) {
        if (c >= chunks) continue;
        const int block = (c * T::columns + column) * chunk_bytes;
        SSLFAST_UNROLL
        for (int n = 0; n < tiles; n += 2) {
            Fragment b;
            if constexpr (T::Element::bytes == 2) {
                b = machine.load_matrices_transposed(other_vector(transposed, n) + block);
            } else {
                // Words t and t + 4 of b are columns 2 t and 2 t + 1, as in the weights.
                SSLFAST_UNROLL
                for (int w = 0; w < 4; ++w) {
                    const int feature = 8 * (n + w / 2) + lane / 4;
                    b.word[w] = machine.load_word(
                        y + block + swizzled(accumulator_column(lane, w % 2), feature / 4) +
                        feature % 4 * 4);
                }
                b = machine.operand(element, b);
            }
            SSLFAST_UNROLL
            for (int r = 0; r < T::row_tiles; ++r) {
                float (&first)[4] = u.value[r][c * tiles + n];
                float (&second)[4] = u.value[r][c * tiles + n + 1];
                machine.multiply(element, a[r], b.word[0], b.word[1], first);
                machine.multiply(element, a[r], b.word[2], b.word[3], second);
            }
        }
    }
}

// u += w y for the first `chunks` chunks of a panel's features. An accumulator tile has the layout
// of an operand a: pairs of 16-bit weights of two column tiles, or 32-bit ones of one with its
// columns permuted (0 2 4 6 1 3 5 7), here and in y.
template <class T, class Machine, std::enable_if_t<uses_tensor_cores<T>, int> = 0>
SSLFAST_KERNEL_CODE void add_weighted(Machine& machine, const Logits<T>& w, unsigned y, int chunks,
                                      Gradients<T>& u) {
    constexpr typename T::Element element{};
    constexpr int together = T::Element::bytes == 2 ? 2 : 1;
    SSLFAST_UNROLL
    for (int n = 0; n < T::column_tiles; n += together) {
        Fragment a[T::row_tiles];
        SSLFAST_UNROLL
        for (int r = 0; r < T::row_tiles; ++r) {
            const float (&c)[4] = w.value[r][n];
            if constexpr (together == 2) {
                const float (&d)[4] = w.value[r][n + 1];
                a[r] = {{machine.pack(element, c[0], c[1]), machine.pack(element, c[2], c[3]),
                         machine.pack(element, d[0], d[1]), machine.pack(element, d[2], d[3])}};
            } else {
                a[r] = machine.operand(element, {{machine.as_word(c[0]), machine.as_word(c[2]),
                                                  machine.as_word(c[1]), machine.as_word(c[3])}});
            }
        }
        add_features<T>(machine, a, y, 8 * n, chunks, u);
    }
}

// The same in float32: the four lanes of a row exchange their weights by shuffles.
template <class T, class Machine, std::enable_if_t<!uses_tensor_cores<T>, int> = 0>
SSLFAST_KERNEL_CODE void add_weighted(Machine& machine, const Logits<T>& w, unsigned y, int chunks,
                                      Gradients<T>& u) {
    constexpr int tiles = feature_tiles_of_chunk<T>;
    const int lane = machine.lane();
    SSLFAST_UNROLL
    for (int j = 0; j < T::columns; ++j) {
        const int owner = lane / 4 * 4 + j % 8 / 2;
        float weight[2 * T::row_tiles];
        SSLFAST_UNROLL
        for (int r = 0; r < 2 * T::row_tiles; ++r)
            weight[r] = machine.shuffle(w.value[r / 2][j / 8][r % 2 * 2 + j % 2], owner);
        SSLFAST_UNROLL
        for (int c = 0; c < T::chunks; ++c) {
            if (c >= chunks) continue;
            SSLFAST_UNROLL
            for (int n = 0; n < tiles; ++n) {
                const int feature = 8 * n + accumulator_column(lane, 0);
                const unsigned from = y + static_cast<unsigned>(c * T::columns * chunk_bytes) +
                                      swizzled(j, feature / 4) + feature % 4 * 4;
                SSLFAST_UNROLL
                for (int e = 0; e < 2; ++e) {
                    const float value = machine.as_float(machine.load_word(from + 4 * e));
                    SSLFAST_UNROLL
                    for (int r = 0; r < 2 * T::row_tiles; ++r) {
                        float& sum = u.value[r / 2][c * tiles + n][r % 2 * 2 + e];
                        sum = machine.multiply_add(weight[r], value, sum);
                    }
                }
            }
        }
    }
}

}  // namespace sslfast
