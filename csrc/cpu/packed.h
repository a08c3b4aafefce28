// The right operands of all products, in the panels that the tile kernels read.
#pragma once

#include <cstdint>
#include <memory>

#include "schedule.h"
#include "tile.h"

namespace sslfast::cpu {

// Panels of scale X^T for X [m, dim]: the columns of logits.
class PackedTransposed {
  public:
    PackedTransposed(const float* x, std::int64_t m, int dim, float scale, int width, int threads)
        : dim_(dim),
          width_(width),
          data_(new float[(m + width - 1) / width * width * static_cast<std::size_t>(dim)]) {
        const std::int64_t panels = (m + width - 1) / width;
#pragma omp parallel for num_threads(threads) schedule(static)
        for (std::int64_t panel = 0; panel < panels; ++panel)
            for (int w = 0; w < width; ++w) {
                const std::int64_t row = panel * width + w;
                float* out = data_.get() + panel * width * dim + w;
                for (int d = 0; d < dim; ++d)
                    out[d * width] = row < m ? scale * x[row * dim + d] : 0.0f;
            }
    }
    // [dim, block]
    Panels of(Block block) const {
        return {data_.get() + block.first * dim_, static_cast<std::ptrdiff_t>(width_) * dim_};
    }

  private:
    int dim_, width_;
    std::unique_ptr<float[]> data_;
};

// Panels of X [m, dim] itself: the values that weights are multiplied with.
class PackedValues {
  public:
    PackedValues(const float* x, std::int64_t m, int dim, int width, int threads)
        : m_(m),
          width_(width),
          data_(new float[(dim + width - 1) / width * width * static_cast<std::size_t>(m)]) {
        const int panels = (dim + width - 1) / width;
#pragma omp parallel for num_threads(threads) schedule(static)
        for (std::int64_t row = 0; row < m; ++row)
            for (int d = 0; d < panels * width; ++d)
                data_[(d / width * m + row) * width + d % width] = d < dim ? x[row * dim + d] : 0;
    }
    // [block, dim]
    Panels of(Block block) const {
        return {data_.get() + block.first * width_, static_cast<std::ptrdiff_t>(width_) * m_};
    }

  private:
    std::int64_t m_;
    int width_;
    std::unique_ptr<float[]> data_;
};

}  // namespace sslfast::cpu
