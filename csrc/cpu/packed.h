// Packing of right operands into the panels that the tile kernels read.
#pragma once

#include <algorithm>
#include <cstdint>

#include "buffer.h"
#include "schedule.h"
#include "tile.h"

namespace sslfast::cpu {

// Panels of X^T for X [m, dim]: the columns of logits.
class PackedTransposed {
  public:
    // Memory for m rows at most, for as many X as come along.
    PackedTransposed(std::int64_t m, int dim, int width)
        : dim_(dim),
          width_(width),
          data_(make_buffer((m + width - 1) / width * width * static_cast<std::size_t>(dim))) {}

    void pack(const float* x, std::int64_t m, int threads) {
        const std::int64_t panels = (m + width_ - 1) / width_;
#pragma omp parallel for num_threads(threads) schedule(static)
        for (std::int64_t panel = 0; panel < panels; ++panel)
            // Blocked, so that what is being written stays in the L1 cache.
            for (int d0 = 0; d0 < dim_; d0 += 16)
                for (int w = 0; w < width_; ++w) {
                    const std::int64_t row = panel * width_ + w;
                    float* out = data_.get() + panel * width_ * dim_ + w;
                    for (int d = d0; d < std::min(d0 + 16, dim_); ++d)
                        out[d * width_] = row < m ? x[row * dim_ + d] : 0.0f;
                }
    }
    // [dim, block]
    Panels of(Block block) const {
        return {data_.get() + block.first * dim_, static_cast<std::ptrdiff_t>(width_) * dim_};
    }

  private:
    int dim_, width_;
    Buffer data_;
};

// Writes rows of X [m, dim] as panels of `width` columns, each [m, width] and zero beyond dim.
inline void pack_values(const float* x, std::int64_t m, int dim, int width, std::int64_t first,
                        std::int64_t last, float* panels) {
    constexpr int few = 16;  // rows at a time stay in the L1 cache, and writes are contiguous
    for (std::int64_t row0 = first; row0 < last; row0 += few)
        for (int d = 0; d < dim; d += width) {
            const int count = dim - d < width ? dim - d : width;
            for (std::int64_t row = row0; row < std::min(row0 + few, last); ++row) {
                float* out = panels + (d / width * m + row) * width;
                std::copy_n(x + row * dim + d, count, out);
                std::fill_n(out + count, width - count, 0.0f);
            }
        }
}

constexpr std::size_t packed_values_size(std::int64_t m, int dim, int width) {
    return (dim + width - 1) / width * width * static_cast<std::size_t>(m);
}

// Panels of X [m, dim] itself: the values that weights are multiplied with.
class PackedValues {
  public:
    // Memory for m rows at most, for as many X as come along.
    PackedValues(std::int64_t m, int dim, int width)
        : dim_(dim), width_(width), data_(make_buffer(packed_values_size(m, dim, width))) {}

    void pack(const float* x, std::int64_t m, int threads) {
        m_ = m;
#pragma omp parallel for num_threads(threads) schedule(static)
        for (std::int64_t first = 0; first < m; first += largest_tile)
            pack_values(x, m, dim_, width_, first, std::min(first + largest_tile, m), data_.get());
    }
    // [block, dim]
    Panels of(Block block) const {
        return {data_.get() + block.first * width_, static_cast<std::ptrdiff_t>(width_) * m_};
    }

  private:
    std::int64_t m_ = 0;
    int dim_, width_;
    Buffer data_;
};

// Turns c [m, n], written by a product as in_panels, into rows; scratch: m n floats.
inline void unpack(float* c, std::int64_t m, int n, int width, float* scratch) {
    std::copy_n(c, m * n, scratch);
    for (int j = 0; j < n; j += width) {
        const int w = std::min(width, n - j);
        for (std::int64_t i = 0; i < m; ++i) std::copy_n(scratch + m * j + i * w, w, c + i * n + j);
    }
}

}  // namespace sslfast::cpu
