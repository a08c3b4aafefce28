// Multi-tensor optimiser steps, and the EMA teacher in the same pass.
#include <sslfast/cpu.h>

#include "elements.h"
#include "slices.h"

#include <cmath>

namespace sslfast::cpu {

void adamw_step(const Row* rows, std::int64_t n, const double* control, const double* groups,
                int threads) {
    if (control[0] < 0) return;
    const auto& kernels = element_kernels();
    for_each_slice(rows, n, threads, [&](const Row& row, std::int64_t begin, std::int64_t end) {
        const double* group = groups + row.group * adamw_fields;
        const double step = *reinterpret_cast<const float*>(row.address[4]);
        kernels.adamw(row, begin, end,
                      adamw_numbers(control[0], group, 1 - std::pow(group[1], step),
                                    1 - std::pow(group[2], step)),
                      control[1]);
    });
}

void lars_step(const Row* rows, std::int64_t n, const double* control, const double* groups,
               const double* trust, int threads) {
    if (control[0] < 0) return;
    const auto& kernels = element_kernels();
    for_each_slice(rows, n, threads, [&](const Row& row, std::int64_t begin, std::int64_t end) {
        const double* group = groups + row.group * lars_fields;
        kernels.lars(row, begin, end, lars_numbers(control[0], group, trust[&row - rows]),
                     control[1]);
    });
}

}  // namespace sslfast::cpu
