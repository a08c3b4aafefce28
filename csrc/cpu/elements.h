// Elementwise updates of slices of tensors, compiled once for each level of the instruction set.
// csrc/cpu/elements.cpp is the source of all levels.
#pragma once

#include <cstdint>

#include <sslfast/rows.h>
#include <sslfast/update.h>

namespace sslfast::cpu {

struct ElementKernels {
    // Elements [begin, end) of a row. Momentum is that of the teacher; 1 leaves it as it is.
    void (*ema)(const Row& row, std::int64_t begin, std::int64_t end, double momentum);
    void (*adamw)(const Row& row, std::int64_t begin, std::int64_t end,
                  const AdamwNumbers<double>& numbers, double momentum);
    void (*lars)(const Row& row, std::int64_t begin, std::int64_t end,
                 const LarsNumbers<double>& numbers, double momentum);
};

// The best level that this processor has; SSLFAST_CPU_LEVEL names a lower one.
const ElementKernels& element_kernels();

}  // namespace sslfast::cpu
