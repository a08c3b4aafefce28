// Logits that the forward pass saves for the backward pass of the same problem, tile after tile in
// the order of the visits, as far as the memory goes: the backward pass need not recompute them,
// and they are bit for bit what it would compute.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "schedule.h"

namespace sslfast::cpu {

class KeptLogits {
  public:
    // size floats, or null to keep nothing. The first tells a backward pass whether any were kept.
    KeptLogits(float* memory, std::int64_t size)
        : data_(memory == nullptr ? nullptr : memory + header),
          size_(memory == nullptr ? 0 : std::max<std::int64_t>(size - header, 0)) {}

    // Before a forward pass.
    void begin() {
        if (size_ > 0) data_[-header] = 1.0f;
    }
    // Before a backward pass: another backend may have done the forward pass.
    void resume() {
        if (size_ > 0 && data_[-header] != 1.0f) size_ = 0;
    }
    // The tile [row.size, column.size] before which at most `before` logits were visited.
    void keep(std::int64_t before, Block row, Block column, const float* tile, std::ptrdiff_t ld) {
        if (!fits(before, row, column)) return;
        for (int i = 0; i < row.size; ++i)
            std::copy_n(tile + i * ld, column.size, data_ + before + i * column.size);
    }
    // Whether the tile was kept; then it is written.
    bool recall(std::int64_t before, Block row, Block column, float* tile,
                std::ptrdiff_t ld) const {
        if (!fits(before, row, column)) return false;
        for (int i = 0; i < row.size; ++i)
            std::copy_n(data_ + before + i * column.size, column.size, tile + i * ld);
        return true;
    }

  private:
    static constexpr std::int64_t header = 16;  // a cache line
    bool fits(std::int64_t before, Block row, Block column) const {
        return before + static_cast<std::int64_t>(row.size) * column.size <= size_;
    }
    float* data_;
    std::int64_t size_;
};

}  // namespace sslfast::cpu
