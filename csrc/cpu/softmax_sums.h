// Log-sum-exps of rows and columns as the passes over tiles of logits keep them and take them.
#pragma once

#include <sslfast/cpu.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "tile.h"

namespace sslfast::cpu {

constexpr float lowest = -1e30f;  // a maximum of nothing, finite so that -inf - it is -inf
constexpr float left_out = -std::numeric_limits<float>::infinity();

// Running log-sum-exps: sum 2^(t - maximum).
struct RunningSums {
    std::vector<float> maximum, sum;
    explicit RunningSums(std::int64_t n) : maximum(n, lowest), sum(n, 0.0f) {}
    void write(double* lse) const {
        for (std::size_t i = 0; i < sum.size(); ++i)
            lse[i] = (maximum[i] + std::log2(double{sum[i]})) / log2_e_exact;
    }
};

// Log-sum-exps to base 2 rounded to floats, and upstream gradients that compensate for the
// rounding: g 2^(t - lse) = (g 2^(rounded - lse)) 2^(t - rounded).
struct Factors {
    std::vector<float> lse, g;
    Factors(Statistics given, std::int64_t n, bool empty_is_zero = false) {
        if (given.lse == nullptr) return;
        lse.resize(n), g.resize(n);
        for (std::int64_t i = 0; i < n; ++i) {
            // An empty sum has no elements that could need it, but -infinity, which it must not
            // meet.
            const double finite = given.lse[i] == -HUGE_VAL && empty_is_zero ? 0.0 : given.lse[i];
            const double exact = finite * log2_e_exact;
            lse[i] = static_cast<float>(exact);
            const double lost = lse[i] - exact;  // NaN where there are no negatives
            g[i] = static_cast<float>(given.g[i] * (std::isfinite(lost) ? std::exp2(lost) : 1));
        }
    }
};

}  // namespace sslfast::cpu
