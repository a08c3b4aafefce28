// Divides the elements of all rows of tensors evenly among threads, so that small tensors cost no
// thread of their own. An element's result does not depend on the slice it is in.
#pragma once

#include <algorithm>
#include <cstdint>

#include <sslfast/rows.h>

namespace sslfast::cpu {

constexpr std::int64_t grain_size = 65536;  // elements that are worth a thread

// Calls update(row, begin, end) for slices that cover all rows; each thread takes one range.
template <typename Update>
void for_each_slice(const Row* rows, std::int64_t n, int threads, Update update) {
    std::int64_t total = 0;
    for (std::int64_t r = 0; r < n; ++r) total += rows[r].count;
    const auto workers = std::clamp<std::int64_t>(total / grain_size, 1, threads);
#pragma omp parallel for num_threads(static_cast<int>(workers)) schedule(static, 1)
    for (std::int64_t part = 0; part < workers; ++part) {
        // Multiples of a cache line, where tensors begin at one: no false sharing.
        const auto bound = [&](std::int64_t k) {
            return k == workers ? total : total * k / workers & ~63;
        };
        const std::int64_t first = bound(part), last = bound(part + 1);
        std::int64_t start = 0;  // of the row among all elements
        for (std::int64_t r = 0; r < n && start < last; start += rows[r++].count) {
            const std::int64_t begin = std::max(first - start, std::int64_t{0});
            const std::int64_t end = std::min(last - start, rows[r].count);
            if (begin < end) update(rows[r], begin, end);
        }
    }
}

}  // namespace sslfast::cpu
