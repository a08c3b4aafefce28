// What cross-correlation does beside its products (kernels/cross_correlation): sums over columns,
// columns standardized, and the gradient back through that. Threads share the columns, and sum over
// rows in double, a group of rows at a time in float: results do not depend on how many threads
// there are, and a sweep takes little longer than memory does.
#include <sslfast/cpu.h>

#include <algorithm>

namespace sslfast::cpu {
namespace {

constexpr std::int64_t widest = 1024;  // columns whose sums stay in the L1 cache
constexpr std::int64_t group = 32;     // rows of these stay in the L2 cache

// Calls visit(first column, how many) for all columns, of which every thread has some.
template <typename Visit>
void for_columns(std::int64_t columns, int threads, Visit visit) {
    const std::int64_t even = (columns + threads - 1) / threads;
    const std::int64_t width = std::min(widest, (even + 15) / 16 * 16);
    const std::int64_t blocks = (columns + width - 1) / width;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (std::int64_t b = 0; b < blocks; ++b)
        visit(b * width, std::min(width, columns - b * width));
}

// part[j] = sum of term(r, j) over some rows r.
template <typename Term>
void sum_group(std::int64_t begin, std::int64_t end, std::int64_t columns, float* part, Term term) {
    std::fill_n(part, columns, 0.0f);
    for (std::int64_t r = begin; r < end; ++r) {
#pragma omp simd
        for (std::int64_t j = 0; j < columns; ++j) part[j] += term(r, j);
    }
}

// total[j] = sum of term(r, j) over all rows r.
template <typename Term>
void sum_rows(std::int64_t rows, std::int64_t columns, double* total, Term term) {
    float part[widest];
    std::fill_n(total, columns, 0.0);
    for (std::int64_t first = 0; first < rows; first += group) {
        sum_group(first, std::min(rows, first + group), columns, part, term);
        for (std::int64_t j = 0; j < columns; ++j) total[j] += part[j];
    }
}

// Mean and variance of some columns in one sweep: those of a group of rows, in two passes while it
// is in the cache, are merged into those of the rows before (Chan, Golub and LeVeque 1983).
void moments(const float* x, std::int64_t stride, std::int64_t rows, std::int64_t columns,
             float* mean, float* variance) {
    float part[widest], center[widest];
    double means[widest] = {}, squares[widest] = {};
    for (std::int64_t first = 0; first < rows; first += group) {
        const std::int64_t last = std::min(rows, first + group);
        const double count = static_cast<double>(last - first);
        sum_group(first, last, columns, part,
                  [=](std::int64_t r, std::int64_t j) { return x[r * stride + j]; });
        for (std::int64_t j = 0; j < columns; ++j) center[j] = part[j] / static_cast<float>(count);
        sum_group(first, last, columns, part, [=, &center](std::int64_t r, std::int64_t j) {
            const float centered = x[r * stride + j] - center[j];
            return centered * centered;
        });
        const double share = count / static_cast<double>(last);
        for (std::int64_t j = 0; j < columns; ++j) {
            const double apart = center[j] - means[j];
            means[j] += share * apart;
            squares[j] += part[j] + apart * apart * share * static_cast<double>(first);
        }
    }
    for (std::int64_t j = 0; j < columns; ++j) {
        mean[j] = static_cast<float>(means[j]);
        variance[j] = static_cast<float>(squares[j] / static_cast<double>(rows));
    }
}

}  // namespace

void column_moments(const float* x, std::int64_t rows, std::int64_t columns, int threads,
                    float* mean, float* variance) {
    for_columns(columns, threads, [=](std::int64_t first, std::int64_t count) {
        moments(x + first, columns, rows, count, mean + first, variance + first);
    });
}

void standardize_columns(StridedRows<const float> x, std::int64_t rows, std::int64_t columns,
                         const float* mean, const float* factor, int threads,
                         StridedRows<float> out) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (std::int64_t r = 0; r < rows; ++r) {
        const float* from = x.row(r);
        float* to = out.row(r);
#pragma omp simd
        for (std::int64_t j = 0; j < columns; ++j) to[j] = (from[j] - mean[j]) * factor[j];
    }
}

void column_products(StridedRows<const float> a, StridedRows<const float> b, std::int64_t rows,
                     std::int64_t columns, int threads, float* out) {
    for_columns(columns, threads, [=](std::int64_t first, std::int64_t count) {
        double total[widest];
        sum_rows(rows, count, total, [=](std::int64_t r, std::int64_t j) {
            return a.row(r)[first + j] * b.row(r)[first + j];
        });
        for (std::int64_t j = 0; j < count; ++j) out[first + j] = static_cast<float>(total[j]);
    });
}

void correlation_gradient(const CorrelationGradient& g, int threads, StridedRows<float> out) {
    for_columns(g.columns, threads, [=](std::int64_t first, std::int64_t count) {
        const float alpha = g.alpha, *beta = g.beta + first;
        float along[widest] = {}, factor[widest];
        for (std::int64_t j = 0; j < count; ++j) {
            if (g.along != nullptr) along[j] = g.along[first + j];
            factor[j] = g.factor == nullptr ? 1.0f : g.factor[first + j];
        }
        if (g.factor != nullptr && g.along == nullptr) {
            double total[widest];
            sum_rows(g.rows, count, total, [=](std::int64_t r, std::int64_t j) {
                const float of_own = alpha * g.product.row(r)[first + j];
                return (of_own + beta[j] * g.other.row(r)[first + j]) * g.own.row(r)[first + j];
            });
            for (std::int64_t j = 0; j < count; ++j)
                along[j] = static_cast<float>(total[j] / static_cast<double>(g.rows));
        }
        for (std::int64_t r = 0; r < g.rows; ++r) {
            const float *product = g.product.row(r) + first, *own = g.own.row(r) + first,
                        *other = g.other.row(r) + first;
            float* to = out.row(r) + first;
#pragma omp simd
            for (std::int64_t j = 0; j < count; ++j)
                to[j] = factor[j] * (alpha * product[j] + beta[j] * other[j] - own[j] * along[j]);
        }
    });
}

}  // namespace sslfast::cpu
