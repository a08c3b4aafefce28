// Decoder input of a masked autoencoder (kernels/restore_with_tokens): encoded rows at their
// places, the mask token elsewhere, positions added, in one pass over the result.
#include <sslfast/cpu.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "huge_pages.h"

namespace sslfast::cpu {
namespace {

// One comparison, and nothing outside the encoded rows is ever read.
bool is_visible(std::int64_t place, std::int64_t keep) {
    return static_cast<std::uint64_t>(place) < static_cast<std::uint64_t>(keep);
}

}  // namespace

bool restore_with_tokens(const float* visible, const float* token, const std::int64_t* ids_restore,
                         const float* positions, std::int64_t batch, std::int64_t length,
                         std::int64_t keep, std::int64_t dim, float* out, int threads) {
    advise_huge_result(out, batch * length * dim * sizeof(float));
    std::atomic<bool> inside{true};
#pragma omp parallel for num_threads(threads) schedule(static)
    for (std::int64_t row = 0; row < batch * length; ++row) {
        const std::int64_t sample = row / length, place = ids_restore[row];
        if (place < 0 || place >= length) {
            inside = false;
            continue;
        }
        const float* from =
            is_visible(place, keep) ? visible + (sample * keep + place) * dim : token;
        float* to = out + row * dim;
        if (positions == nullptr) {
            std::copy(from, from + dim, to);
            continue;
        }
        const float* position = positions + row % length * dim;
#pragma omp simd
        for (std::int64_t d = 0; d < dim; ++d) to[d] = from[d] + position[d];
    }
    return inside;
}

void restore_with_tokens_backward(const float* gradient, const std::int64_t* ids_restore,
                                  std::int64_t batch, std::int64_t length, std::int64_t keep,
                                  std::int64_t dim, float* d_visible, float* d_token, int threads) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<char> shown(keep);  // whether a place has been found that shows the row
#pragma omp for schedule(static)
        for (std::int64_t sample = 0; sample < batch; ++sample) {
            float *sum = d_token + sample * dim, *rows = d_visible + sample * keep * dim;
            std::fill(sum, sum + dim, 0.0f);
            std::fill(shown.begin(), shown.end(), 0);
            for (std::int64_t e = 0; e < length; ++e) {
                const float* from = gradient + (sample * length + e) * dim;
                const std::int64_t place = ids_restore[sample * length + e];
                const bool visible = is_visible(place, keep);
                float* to = visible ? rows + place * dim : sum;
                if (visible && !shown[place]) {
                    shown[place] = 1;
                    std::copy(from, from + dim, to);
                    continue;
                }
#pragma omp simd
                for (std::int64_t d = 0; d < dim; ++d) to[d] += from[d];
            }
            for (std::int64_t k = 0; k < keep; ++k)
                if (!shown[k]) std::fill(rows + k * dim, rows + (k + 1) * dim, 0.0f);
        }
    }
}

}  // namespace sslfast::cpu
