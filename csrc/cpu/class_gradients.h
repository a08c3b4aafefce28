// Gradients of a linear layer's rows and weight, from tiles of the weights G [classes, rows] of its
// logits: d_rows = G^T weight, d_weight = G rows, block of rows by block of rows.
#pragma once

#include <algorithm>
#include <cstdint>

#include <omp.h>

#include "buffer.h"
#include "huge_pages.h"
#include "packed.h"
#include "schedule.h"
#include "tile.h"

namespace sslfast::cpu {

class ClassGradients {
  public:
    static constexpr int class_block = 256;

    // weight [v, dim]; blocks of `height` rows at most. d_weight [v, dim] is a result, or null;
    // want_rows says whether `write_rows` will be called.
    ClassGradients(const float* weight, std::int64_t v, int dim, int height, int threads,
                   bool want_rows, float* d_weight)
        : weight_(weight),
          v_(v),
          dim_(dim),
          height_(height),
          threads_(threads),
          d_weight_(d_weight),
          kernels_(tile_kernels()),
          spans_(std::min(blocks(v), most_spans)),
          values_(d_weight == nullptr ? 0 : height, dim, kernels_.width) {
        if (want_rows) {
            partial_ = make_buffer(static_cast<std::size_t>(spans_) * height_ * dim_);
            panels_ = make_buffer(panels_size() * threads_);
        }
        if (d_weight_ == nullptr) return;
        advise_huge_pages(d_weight_, v_ * dim_ * sizeof(float));
        std::fill_n(d_weight_, v_ * dim_, 0.0f);
    }

    static std::int64_t blocks(std::int64_t v) { return (v + class_block - 1) / class_block; }
    static Block block(std::int64_t v, std::int64_t b) {
        const std::int64_t first = b * class_block;
        return {first, static_cast<int>(std::min<std::int64_t>(class_block, v - first))};
    }

    // Of a block of rows [count, dim]: weigh(classes) returns the tile G [classes, count], rows ld
    // apart; after(classes) runs once its products are added.
    template <typename Weigh, typename After>
    void add(const float* rows, int count, std::ptrdiff_t ld, Weigh weigh, After after) {
        count_ = count;
        if (d_weight_ != nullptr) values_.pack(rows, count, threads_);
        const std::int64_t blocks = this->blocks(v_);
#pragma omp parallel for num_threads(threads_) schedule(dynamic)
        for (std::int64_t s = 0; s < spans_; ++s) {
            const std::int64_t begin = blocks * s / spans_, end = blocks * (s + 1) / spans_;
            for (std::int64_t b = begin; b < end; ++b) {
                const Block classes = block(v_, b);
                multiply(classes, weigh(classes), ld, s, b == begin);
                after(classes);
            }
        }
    }

    // d_rows of the block that was added last, row r at out(r).
    template <typename Out>
    void write_rows(Out row) const {
        const std::int64_t size = static_cast<std::int64_t>(height_) * dim_;
#pragma omp parallel for num_threads(threads_) schedule(static)
        for (int r = 0; r < count_; ++r)
            for (int d = 0; d < dim_; d += kernels_.width) {
                const int width = std::min(kernels_.width, dim_ - d);
                float* out = row(r) + d;
                const float* from = partial_.get() + d * count_ + r * width;
                std::copy_n(from, width, out);
                for (std::int64_t s = 1; s < spans_; ++s)
                    for (int i = 0; i < width; ++i) out[i] += from[s * size + i];
            }
    }

    // d_weight of one class += factor row [dim]; between `add` and `finish`.
    void add_to_weight(Block classes, std::int64_t j, float factor, const float* row) const {
        if (d_weight_ == nullptr) return;
        for (int d = 0; d < dim_; d += kernels_.width) {
            const int width = std::min(kernels_.width, dim_ - d);
            float* out = d_weight_ + classes.first * dim_ + d * classes.size + j * width;
            for (int i = 0; i < width; ++i) out[i] += factor * row[d + i];
        }
    }

    // After all rows: the weight's gradient becomes a matrix.
    void finish() const {
        if (d_weight_ == nullptr) return;
        const std::size_t size = static_cast<std::size_t>(class_block) * dim_;
        const auto scratch = make_buffer(size * threads_);
#pragma omp parallel for num_threads(threads_) schedule(static)
        for (std::int64_t b = 0; b < blocks(v_); ++b)
            unpack(d_weight_ + block(v_, b).first * dim_, block(v_, b).size, dim_, kernels_.width,
                   scratch.get() + size * omp_get_thread_num());
    }

  private:
    // Split-K for d_rows: spans of the classes with partial sums of their own, reduced in a
    // deterministic order. So many threads have work, and results do not depend on how many there
    // are.
    static constexpr std::int64_t most_spans = 32;

    std::size_t panels_size() const {
        return packed_values_size(class_block, dim_, kernels_.width);
    }

    void multiply(Block classes, const float* tile, std::ptrdiff_t ld, std::int64_t span,
                  bool first_of_span) {
        if (d_weight_ != nullptr)
            kernels_.multiply(classes.size, dim_, count_, {tile, ld, 1}, values_.of({0, count_}),
                              nullptr, true, d_weight_ + classes.first * dim_, in_panels);
        if (!partial_) return;
        float* panels = panels_.get() + panels_size() * omp_get_thread_num();
        pack_values(weight_ + classes.first * dim_, classes.size, dim_, kernels_.width, 0,
                    classes.size, panels);
        kernels_.multiply(count_, dim_, classes.size, {tile, 1, ld},
                          {panels, static_cast<std::ptrdiff_t>(kernels_.width) * classes.size},
                          nullptr, !first_of_span, partial_.get() + span * height_ * dim_,
                          in_panels);
    }

    const float* weight_;
    std::int64_t v_;
    int dim_, height_, threads_;
    float* d_weight_;
    const TileKernels& kernels_;
    std::int64_t spans_;
    PackedValues values_;
    Buffer partial_, panels_;
    int count_ = 0;
};

}  // namespace sslfast::cpu
