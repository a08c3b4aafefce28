// Rows of tokens by index (kernels/gather_patches), as bytes: any dtype.
#include <sslfast/cpu.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "huge_pages.h"

namespace sslfast::cpu {
namespace {

// The hardware prefetcher follows the lines of a row, but cannot know where the next row begins.
void prefetch(const char* row) {
    for (int line = 0; line < 4; ++line) __builtin_prefetch(row + 64 * line);
}

}  // namespace

bool gather_rows(const char* tokens, const std::int64_t* ids, std::int64_t batch,
                 std::int64_t length, std::int64_t keep, std::int64_t row_bytes, char* out,
                 int threads) {
    advise_huge_result(out, batch * keep * row_bytes);
    std::atomic<bool> inside{true};
#pragma omp parallel for num_threads(threads) schedule(static)
    for (std::int64_t row = 0; row < batch * keep; ++row) {
        if (ids[row] < 0 || ids[row] >= length) {
            inside = false;
            continue;
        }
        if (row + 1 < batch * keep)  // a prefetch may be given any address
            prefetch(tokens + ((row + 1) / keep * length + ids[row + 1]) * row_bytes);
        const std::int64_t from = row / keep * length + ids[row];
        std::memcpy(out + row * row_bytes, tokens + from * row_bytes, row_bytes);
    }
    return inside;
}

bool scatter_rows(const char* rows, const std::int64_t* ids, std::int64_t batch,
                  std::int64_t length, std::int64_t keep, std::int64_t row_bytes, char* out,
                  int threads) {
    advise_huge_result(out, batch * length * row_bytes);
    std::atomic<bool> distinct{true};
#pragma omp parallel num_threads(threads)
    {
        std::vector<std::int64_t> source(length);
#pragma omp for schedule(static)
        for (std::int64_t sample = 0; sample < batch; ++sample) {
            std::fill(source.begin(), source.end(), -1);
            for (std::int64_t k = 0; k < keep; ++k) {
                const std::int64_t id = ids[sample * keep + k];
                if (id < 0 || id >= length) continue;
                if (source[id] >= 0) distinct = false;
                source[id] = k;
            }
            for (std::int64_t e = 0; e < length; ++e) {
                char* to = out + (sample * length + e) * row_bytes;
                if (source[e] < 0)
                    std::memset(to, 0, row_bytes);
                else
                    std::memcpy(to, rows + (sample * keep + source[e]) * row_bytes, row_bytes);
            }
        }
    }
    return distinct;
}

}  // namespace sslfast::cpu
