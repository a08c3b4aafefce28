// Masked mean squared error (kernels/masked_mse): reads hidden patches only, each once, and
// normalises the target while it is in the L1 cache.
#include <sslfast/cpu.h>

#include <algorithm>
#include <cmath>

namespace sslfast::cpu {
namespace {

struct Moments {
    float mean, scale;  // scale = 1 / sqrt(variance + eps)
};

// The unbiased variance, in two passes: no cancellation.
Moments moments(const float* target, std::int64_t dim, float eps) {
    float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t d = 0; d < dim; ++d) sum += target[d];
    const float mean = sum / static_cast<float>(dim);
#pragma omp simd reduction(+ : squares)
    for (std::int64_t d = 0; d < dim; ++d) squares += (target[d] - mean) * (target[d] - mean);
    return {mean, 1.0f / std::sqrt(squares / static_cast<float>(dim - 1) + eps)};
}

}  // namespace

void masked_mse(const Patches& patches, float* loss) {
    const std::int64_t dim = patches.dim;
#pragma omp parallel for num_threads(patches.threads) schedule(static)
    for (std::int64_t row = 0; row < patches.rows; ++row) {
        float sum = 0;
        if (patches.mask[row]) {
            const float* x = patches.prediction + row * dim;
            const float* t = patches.target + row * dim;
            const Moments m = patches.norm_target ? moments(t, dim, patches.eps) : Moments{0, 1};
#pragma omp simd reduction(+ : sum)
            for (std::int64_t d = 0; d < dim; ++d) {
                const float difference = x[d] - (t[d] - m.mean) * m.scale;
                sum += difference * difference;
            }
        }
        loss[row] = sum / static_cast<float>(dim);
    }
}

void masked_mse_backward(const Patches& patches, const float* gradient, float* d_prediction,
                         float* d_target) {
    const std::int64_t dim = patches.dim;
#pragma omp parallel for num_threads(patches.threads) schedule(static)
    for (std::int64_t row = 0; row < patches.rows; ++row) {
        float* dx = d_prediction + row * dim;
        float* dt = d_target == nullptr ? nullptr : d_target + row * dim;
        if (!patches.mask[row]) {
            std::fill(dx, dx + dim, 0.0f);
            if (dt != nullptr) std::fill(dt, dt + dim, 0.0f);
            continue;
        }
        const float* x = patches.prediction + row * dim;
        const float* t = patches.target + row * dim;
        const Moments m = patches.norm_target ? moments(t, dim, patches.eps) : Moments{0, 1};
        const float weight = 2.0f / static_cast<float>(dim) * gradient[row];
        float sum = 0, along = 0;
#pragma omp simd reduction(+ : sum, along)
        for (std::int64_t d = 0; d < dim; ++d) {
            const float normal = (t[d] - m.mean) * m.scale;
            dx[d] = weight * (x[d] - normal);
            sum += dx[d];
            along += dx[d] * normal;
        }
        if (dt == nullptr) continue;
        if (!patches.norm_target) {
            for (std::int64_t d = 0; d < dim; ++d) dt[d] = -dx[d];
            continue;
        }
        // Through (t - mean) scale: -scale (dx - mean(dx) - normal <dx, normal> / (dim - 1)).
        sum /= static_cast<float>(dim);
        along /= static_cast<float>(dim - 1);
        for (std::int64_t d = 0; d < dim; ++d)
            dt[d] = -m.scale * (dx[d] - sum - (t[d] - m.mean) * m.scale * along);
    }
}

}  // namespace sslfast::cpu
