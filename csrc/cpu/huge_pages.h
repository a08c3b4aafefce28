// Huge pages, of 2 MiB: with pages of 4 KiB, the page faults of memory that is first written cost
// more than the copy itself, and a product that works on hundreds of pages at once, more than the
// TLB has entries, misses it all the time.
#pragma once

#include <cstddef>
#include <cstdint>
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace sslfast::cpu {

constexpr std::size_t huge_page = std::size_t{1} << 21;

// Asks Linux for them within data [bytes], before it is first written. Only advice: where it is
// refused, nothing is lost.
inline void advise_huge_pages(void* data, std::size_t bytes) {
#ifdef __linux__
    const auto first = reinterpret_cast<std::uintptr_t>(data);
    const std::uintptr_t begin = (first + huge_page - 1) / huge_page * huge_page;
    const std::uintptr_t end = (first + bytes) / huge_page * huge_page;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
    static_cast<void>(data), static_cast<void>(bytes);
#endif
}

// The same for a result that is written once: the allocator hands out the memory of small ones
// again and again, which then has its pages.
inline void advise_huge_result(void* data, std::size_t bytes) {
    if (bytes >= 8 * huge_page) advise_huge_pages(data, bytes);
}

}  // namespace sslfast::cpu
