// Cosines and sines of the multiples of an angle, compiled once for each level of the instruction
// set: csrc/cpu/waves.cpp is the source of all levels.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sslfast::cpu {

// Of columns of a matrix at a time; sums and coefficients of one multiple lie so far apart.
constexpr int wave_columns = 64;

struct WaveKernels {
    // For p [rows, columns] with rows ld apart, at most wave_columns of them: adds the sums over
    // rows of cos(k step p) and sin(k step p), k = 1 .. count, to cosines and sines, both
    // [count, wave_columns].
    void (*sums)(const float* p, std::ptrdiff_t ld, std::int64_t rows, int columns, double step,
                 int count, float* cosines, float* sines);

    // p <- sum_k of_cos_k cos(k step p) + of_sin_k sin(k step p), both [count, wave_columns].
    void (*gradient)(float* p, std::ptrdiff_t ld, std::int64_t rows, int columns, double step,
                     int count, const float* of_cos, const float* of_sin);
};

// The best level that this processor has; SSLFAST_CPU_LEVEL names a lower one.
const WaveKernels& wave_kernels();

}  // namespace sslfast::cpu
