// Memory for operands of products.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace sslfast::cpu {

struct FreeBuffer {
    void operator()(float* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<float[], FreeBuffer>;

// n floats, not set. Large ones in pages of 2 MiB where Linux grants them: a product walks over
// hundreds of small pages at once, more than a processor keeps the addresses of.
inline Buffer make_buffer(std::size_t n) {
    constexpr std::size_t line = 64, large_page = std::size_t{1} << 21;
    const std::size_t bytes = n * sizeof(float);
    const std::size_t alignment = bytes < large_page ? line : large_page;
    const std::size_t whole = (bytes / alignment + 1) * alignment;
    void* p = std::aligned_alloc(alignment, whole);
    if (p == nullptr) throw std::bad_alloc();
#ifdef __linux__
    if (alignment == large_page) madvise(p, whole, MADV_HUGEPAGE);  // advice: a refusal is no error
#endif
    return Buffer(static_cast<float*>(p));
}

}  // namespace sslfast::cpu
