// Fresh memory costs a page fault every 4 KiB when it is first written, more than the copy itself:
// large results ask for pages of 2 MiB.
#pragma once

#include <cstddef>
#include <cstdint>
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace sslfast::cpu {

// Advice only: where it is refused, nothing is lost. Small results are left alone, for the
// allocator hands out their memory again and again.
inline void advise_huge_pages(void* data, std::size_t bytes) {
#ifdef __linux__
    constexpr std::uintptr_t huge = std::uintptr_t{1} << 21;
    const auto first = (reinterpret_cast<std::uintptr_t>(data) + huge - 1) & ~(huge - 1);
    const auto last = (reinterpret_cast<std::uintptr_t>(data) + bytes) & ~(huge - 1);
    if (bytes >= 8 * huge) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
    static_cast<void>(data), static_cast<void>(bytes);
#endif
}

}  // namespace sslfast::cpu
