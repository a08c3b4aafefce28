// Entry points of the CPU backend. Raw pointers, row-major contiguous arrays, explicit threads.
#pragma once

#include <cstdint>

namespace sslfast::cpu {

void philox_random_bits(const std::int64_t* sample_ids, std::int64_t batch, std::int64_t step,
                        std::uint64_t seed, std::int64_t stream, std::int64_t count,
                        std::int64_t* out, int threads);

// The symmetric similarity softmax: rows [m, dim], positive of row i at (i + m / 2) % m.
struct Symmetric {
    const float* rows;
    std::int64_t m;
    int dim;
    float scale;
    int threads;
};

// lse [m] over all columns but the row itself and its positive, positive [m]: natural logarithms.
void symmetric_forward(const Symmetric& problem, float* lse, float* positive);

// gradient [m, dim] = sum_j (g_i p_ij + g_j p_ji) rows_j; see kernels/similarity_softmax.
void symmetric_backward(const Symmetric& problem, const float* lse, const float* g,
                        float* gradient);

// The level of the instruction set in use: "v4", "v3" (x86-64) or "baseline".
const char* instruction_set();

}  // namespace sslfast::cpu
