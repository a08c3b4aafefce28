// Memory for operands of products.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace sslfast::cpu {

constexpr std::size_t large_page = std::size_t{1} << 21;

// Asks Linux for pages of 2 MiB within p [bytes], before it is first written: 16 MB then appear in a
// tenth of the time, and a product that walks over hundreds of small pages at once, more than a
// processor keeps the addresses of, meets few. Only advice: where it is refused, nothing changes.
inline void advise_large_pages(void* p, std::size_t bytes) {
#ifdef __linux__
    const std::uintptr_t first = reinterpret_cast<std::uintptr_t>(p);
    const std::uintptr_t begin = (first + large_page - 1) / large_page * large_page;
    const std::uintptr_t end = (first + bytes) / large_page * large_page;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

struct FreeBuffer {
    void operator()(float* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<float[], FreeBuffer>;

// n floats, not set; large ones in large pages.
inline Buffer make_buffer(std::size_t n) {
    constexpr std::size_t line = 64;
    const std::size_t bytes = n * sizeof(float);
    const std::size_t alignment = bytes < large_page ? line : large_page;
    const std::size_t whole = (bytes / alignment + 1) * alignment;
    void* p = std::aligned_alloc(alignment, whole);
    if (p == nullptr) throw std::bad_alloc();
    advise_large_pages(p, whole);
    return Buffer(static_cast<float*>(p));
}

}  // namespace sslfast::cpu
