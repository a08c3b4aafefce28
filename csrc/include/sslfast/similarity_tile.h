// What the CUDA kernels of the similarity softmax share: a block of rows meets tiles of columns.
//
// Features come in panels of T::chunks * 128 bytes a row, zero beyond the last feature, through a
// multistage pipeline: a ring of stages in shared memory that cp.async fills `stages - 1` panels
// ahead. The rows' panels stay in shared memory for the whole block if they fit (resident); else
// they are loaded again with every tile.
#pragma once

#include <cstdint>

#include <sslfast/fragments.h>
#include <sslfast/pairing.h>

namespace sslfast {

constexpr float log2_e = 1.44269504088896340736f, ln_2 = 0.69314718055994530942f;

// A block: Warps * RowTiles * 16 rows, and ColumnTiles * 8 columns at a time.
template <class E, int Warps, int RowTiles, int ColumnTiles, int Chunks>
struct Tile {
    using Element = E;
    static constexpr int warps = Warps, threads = Warps * warp_size;
    static constexpr int row_tiles = RowTiles, column_tiles = ColumnTiles, chunks = Chunks;
    static constexpr int warp_rows = 16 * RowTiles, rows = Warps * warp_rows;
    static constexpr int columns = 8 * ColumnTiles;
    static constexpr int features = Chunks * chunk_bytes / E::bytes;  // of a panel
    static constexpr int x_panel = rows * Chunks * chunk_bytes;       // bytes
    static constexpr int y_panel = columns * Chunks * chunk_bytes;
    static constexpr int statistics = 2 * columns * static_cast<int>(sizeof(float));
};

// Row-major [rows, dim]; aligned: every row begins at a multiple of 16 bytes.
struct Matrix {
    const char* data;
    int rows, dim;
    bool aligned;
};

// Logits *scale <x_i, y_j>, and how shared memory is used; see similarity_plan.h.
struct Similarity {
    Matrix x, y;
    const float* scale;
    Pairing pairing;
    int panels, stages;
    bool resident;
};

// Statistics of the columns, for the backward kernel; null where there are none.
struct ColumnStatistics {
    const float* lse;
    const float* weight;
};

// A warp's [16 R, 8 C] accumulators.
template <int R, int C>
struct Accumulators {
    float value[R][C][4];

    SSLFAST_KERNEL_CODE void clear() {
        for_each([](int, int, int, float& v) { v = 0; });
    }
    // f(row tile, column tile, element, value)
    template <class F>
    SSLFAST_KERNEL_CODE void for_each(F f) {
        SSLFAST_UNROLL
        for (int r = 0; r < R; ++r) {
            SSLFAST_UNROLL
            for (int c = 0; c < C; ++c) {
                SSLFAST_UNROLL
                for (int e = 0; e < 4; ++e) f(r, c, e, value[r][c][e]);
            }
        }
    }
};

template <class T>
using Logits = Accumulators<T::row_tiles, T::column_tiles>;

// 16 bytes of elements from `first` on of an unaligned row, zero from `dim` on.
template <class E>
SSLFAST_HOST_DEVICE Fragment gathered(const char* row, int first, int dim) {
    Fragment vector{{0, 0, 0, 0}};
    SSLFAST_UNROLL
    for (int e = 0; e < vector_bytes / E::bytes; ++e) {
        if (first + e >= dim) continue;
        if constexpr (E::bytes == 2)
            vector.word[e / 2] |=
                std::uint32_t{reinterpret_cast<const std::uint16_t*>(row)[first + e]} << e % 2 * 16;
        else
            vector.word[e] = reinterpret_cast<const std::uint32_t*>(row)[first + e];
    }
    return vector;
}

// Starts copying a panel of `Rows` rows into blocks of 128-byte rows, one a chunk.
template <class T, int Rows, class Machine>
SSLFAST_KERNEL_CODE void load_panel(Machine& machine, const Matrix& a, int first_row, int panel,
                                    unsigned to) {
    constexpr int row_vectors = T::chunks * vectors_of_chunk;
    static_assert(Rows * row_vectors % T::threads == 0);
    const std::int64_t row_bytes = static_cast<std::int64_t>(a.dim) * T::Element::bytes;
    const auto each = [&](int i, auto copy) {
        const int v = machine.thread() + i * T::threads;
        const int row = v / row_vectors, vector = v % row_vectors;
        const int byte = (panel * row_vectors + vector) * vector_bytes;
        const bool inside = first_row + row < a.rows && byte < row_bytes;
        copy(to + vector / vectors_of_chunk * (Rows * chunk_bytes) +
                 swizzled(row, vector % vectors_of_chunk),
             a.data + (inside ? (first_row + row) * row_bytes : 0), inside ? byte : 0, inside);
    };
    constexpr int copies = Rows * row_vectors / T::threads;
    if (a.aligned) {
        SSLFAST_ROLLED
        for (int i = 0; i < copies; ++i)
            each(i, [&](unsigned at, const char* row, int byte, bool inside) {
                machine.copy_vector(at, row + byte, inside);
            });
    } else {
        SSLFAST_ROLLED
        for (int i = 0; i < copies; ++i)
            each(i, [&](unsigned at, const char* row, int byte, bool inside) {
                machine.store_vector(at, gathered<typename T::Element>(
                                             row, byte / T::Element::bytes, inside ? a.dim : 0));
            });
    }
}

// The panels of a block's tiles, one after the other. A tile's last panel is `last_panel`, so that
// the backward kernel finds in its stage the features whose gradient it computes.
template <class T, class Machine>
class Panels {
  public:
    SSLFAST_KERNEL_CODE Panels(Machine& machine, const Similarity& p, ColumnStatistics statistics,
                               int first_row, int first_tile, int end_tile, int last_panel)
        : machine_(machine),
          p_(p),
          statistics_(statistics),
          first_row_(first_row),
          end_(end_tile),
          last_panel_(last_panel),
          loading_{first_tile, 0, 0},
          current_{first_tile - 1, p.panels - 1, p.stages - 1} {
        if (p.resident) {
            SSLFAST_ROLLED
            for (int panel = 0; panel < p.panels; ++panel)
                load_panel<T, T::rows>(machine, p.x, first_row, panel, panel * T::x_panel);
        }
        SSLFAST_ROLLED
        for (int s = 0; s < p.stages - 1; ++s) load_next();
    }

    // Goes to the next panel and waits until it is there; false after the last.
    SSLFAST_KERNEL_CODE bool next() {
        current_.advance(p_);
        if (current_.tile >= end_) return false;
        machine_.wait_copies(p_.stages - 2);
        machine_.synchronize();  // all have seen it, and are done with the stage filled next
        load_next();
        return true;
    }
    SSLFAST_KERNEL_CODE bool begins_tile() const { return current_.panel == 0; }
    SSLFAST_KERNEL_CODE bool ends_tile() const { return current_.panel == p_.panels - 1; }
    SSLFAST_KERNEL_CODE int first_column() const { return current_.tile * T::columns; }
    SSLFAST_KERNEL_CODE unsigned y() const { return stage(current_); }
    SSLFAST_KERNEL_CODE unsigned x() const {
        return p_.resident ? panel(current_) * T::x_panel
                           : stage(current_) + T::y_panel + T::statistics;
    }
    // Log-sum-exps of the tile's columns, then their weights: there with a tile's last panel.
    SSLFAST_KERNEL_CODE unsigned statistics() const { return stage(current_) + T::y_panel; }
    // Chunks of the panel that hold features.
    SSLFAST_KERNEL_CODE int chunks() const {
        const int features = p_.x.dim - panel(current_) * T::features;
        constexpr int of_chunk = chunk_bytes / T::Element::bytes;
        const int chunks = (features + of_chunk - 1) / of_chunk;
        return chunks < T::chunks ? chunks : T::chunks;
    }

  private:
    struct Cursor {
        int tile, panel, stage;
        SSLFAST_KERNEL_CODE void advance(const Similarity& p) {
            if (++panel == p.panels) panel = 0, ++tile;
            if (++stage == p.stages) stage = 0;
        }
    };

    SSLFAST_KERNEL_CODE int panel(const Cursor& c) const {
        const int panel = last_panel_ + 1 + c.panel;
        return panel < p_.panels ? panel : panel - p_.panels;
    }
    SSLFAST_KERNEL_CODE unsigned stage(const Cursor& c) const {
        constexpr int lean = T::y_panel + T::statistics;
        return p_.resident ? p_.panels * T::x_panel + c.stage * lean
                           : c.stage * (lean + T::x_panel);
    }

    SSLFAST_KERNEL_CODE void load_next() {
        if (loading_.tile < end_) {
            const int first_column = loading_.tile * T::columns, k = panel(loading_);
            const unsigned to = stage(loading_);
            load_panel<T, T::columns>(machine_, p_.y, first_column, k, to);
            if (!p_.resident)
                load_panel<T, T::rows>(machine_, p_.x, first_row_, k,
                                       to + T::y_panel + T::statistics);
            if (statistics_.lse != nullptr && k == last_panel_) {
                const int column = first_column + machine_.thread() % T::columns;
                static_assert(T::threads >= 2 * T::columns);
                const bool weight = machine_.thread() >= T::columns, inside = column < p_.y.rows;
                const float* from = weight ? statistics_.weight : statistics_.lse;
                if (machine_.thread() < 2 * T::columns)
                    machine_.copy_word(to + T::y_panel + machine_.thread() * 4,
                                       from + (inside ? column : 0), inside);
            }
            loading_.advance(p_);
        }
        machine_.commit_copies();
    }

    Machine& machine_;
    const Similarity& p_;
    const ColumnStatistics statistics_;
    const int first_row_, end_, last_panel_;
    Cursor loading_, current_;
};

}  // namespace sslfast
