// The characteristic functions of projections (kernels/sigreg), and the gradient of the
// projections. Threads share views and columns, and sum over rows in double, a group of rows at a
// time in float: results do not depend on how many threads there are.
#include <sslfast/cpu.h>

#include <algorithm>
#include <vector>

#include "waves.h"

namespace sslfast::cpu {
namespace {

constexpr std::int64_t group = 64;  // rows

// Calls visit(view, first column, how many) for stretches of columns of every view.
template <typename Visit>
void for_columns(const Projections& p, Visit visit) {
    const std::int64_t blocks = (p.columns + wave_columns - 1) / wave_columns;
#pragma omp parallel for num_threads(p.threads) schedule(static)
    for (std::int64_t at = 0; at < p.views * blocks; ++at) {
        const std::int64_t first = at % blocks * wave_columns;
        visit(at / blocks, first, std::min<std::int64_t>(wave_columns, p.columns - first));
    }
}

}  // namespace

void wave_sums(const float* data, const Projections& p, double* found) {
    const WaveKernels& kernels = wave_kernels();
    for_columns(p, [&](std::int64_t view, std::int64_t first, std::int64_t columns) {
        const std::size_t size = 2 * p.count * wave_columns;
        std::vector<double> total(size);
        std::vector<float> part(size);
        const float* from = data + view * p.rows * p.columns + first;
        for (std::int64_t row = 0; row < p.rows; row += group) {
            std::fill(part.begin(), part.end(), 0.0f);
            kernels.sums(from + row * p.columns, p.columns, std::min(group, p.rows - row),
                         static_cast<int>(columns), p.step, p.count, part.data(),
                         part.data() + size / 2);
            for (std::size_t i = 0; i < size; ++i) total[i] += part[i];
        }
        for (std::int64_t k = 0; k < 2 * p.count; ++k)
            std::copy_n(&total[k * wave_columns], columns,
                        found + (view * 2 * p.count + k) * p.columns + first);
    });
}

void wave_gradient(float* data, const Projections& p, const float* coefficients) {
    const WaveKernels& kernels = wave_kernels();
    for_columns(p, [&](std::int64_t view, std::int64_t first, std::int64_t columns) {
        const std::size_t size = 2 * p.count * wave_columns;
        std::vector<float> given(size);
        for (std::int64_t k = 0; k < 2 * p.count; ++k)
            std::copy_n(coefficients + (view * 2 * p.count + k) * p.columns + first, columns,
                        &given[k * wave_columns]);
        kernels.gradient(data + view * p.rows * p.columns + first, p.columns, p.rows,
                         static_cast<int>(columns), p.step, p.count, given.data(),
                         given.data() + size / 2);
    });
}

}  // namespace sslfast::cpu
