// Memory for operands of products.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "huge_pages.h"

namespace sslfast::cpu {

// Frees a buffer of the heap, or one that was mapped.
struct FreeBuffer {
    void* mapped = nullptr;
    std::size_t bytes = 0;
    void operator()(float* p) const {
#ifdef __linux__
        if (mapped != nullptr) {
            munmap(mapped, bytes);
            return;
        }
#endif
        std::free(p);
    }
};
using Buffer = std::unique_ptr<float[], FreeBuffer>;

// n floats, not set. Large ones are mapped, in large pages, and given back at once: in the heap they
// would come to lie between the caller's tensors and leave holes.
inline Buffer make_buffer(std::size_t n) {
    const std::size_t bytes = n * sizeof(float);
#ifdef __linux__
    if (bytes >= huge_page / 2) {
        const std::size_t mapped = bytes + huge_page;  // what is never touched takes no memory
        void* p = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) throw std::bad_alloc();
        const auto first = reinterpret_cast<std::uintptr_t>(p);
        const std::uintptr_t aligned = (first + huge_page - 1) / huge_page * huge_page;
        float* data = reinterpret_cast<float*>(aligned);
        advise_huge_pages(data, bytes);
        return Buffer(data, FreeBuffer{p, mapped});
    }
#endif
    constexpr std::size_t line = 64;
    void* p = std::aligned_alloc(line, (bytes / line + 1) * line);
    if (p == nullptr) throw std::bad_alloc();
    return Buffer(static_cast<float*>(p));
}

}  // namespace sslfast::cpu
