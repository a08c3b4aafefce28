#include "buffer.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#include "huge_pages.h"

namespace sslfast::cpu {
namespace {

constexpr std::size_t most = std::size_t{64} << 20;  // bytes that wait in the pool

#ifdef __linux__
struct Mapping {
    void* mapped;
    std::size_t bytes;  // from `mapped` on; at most a huge page of it lies before the data
    float* data() const {
        const auto first = reinterpret_cast<std::uintptr_t>(mapped);
        return reinterpret_cast<float*>((first + huge_page - 1) / huge_page * huge_page);
    }
};

class Pool {
  public:
    Mapping take(std::size_t bytes) {
        const std::size_t wanted = (bytes / huge_page + 2) * huge_page;
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            const auto fits = [&](const Mapping& m) {
                return wanted <= m.bytes && m.bytes <= 2 * wanted;
            };
            const auto found = std::find_if(waiting_.begin(), waiting_.end(), fits);
            if (found != waiting_.end()) {
                const Mapping mapping = *found;
                waiting_.erase(found);
                return mapping;
            }
        }
        void* p = mmap(nullptr, wanted, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) throw std::bad_alloc();
        const Mapping mapping{p, wanted};
        advise_huge_pages(mapping.data(), wanted - huge_page);
        return mapping;
    }
    // Most recently used first, and kept longest: their pages are the likeliest to be in a cache.
    void give(const Mapping& mapping) {
        const std::lock_guard<std::mutex> lock(mutex_);
        waiting_.insert(waiting_.begin(), mapping);
        trim(most);
    }
    void release() {
        const std::lock_guard<std::mutex> lock(mutex_);
        trim(0);
    }

  private:
    void trim(std::size_t limit) {
        std::size_t sum = 0;
        for (const Mapping& m : waiting_) sum += m.bytes;
        for (; sum > limit; waiting_.pop_back()) {
            sum -= waiting_.back().bytes;
            munmap(waiting_.back().mapped, waiting_.back().bytes);
        }
    }
    std::mutex mutex_;
    std::vector<Mapping> waiting_;
};

// Never destroyed: tensors may give their buffers back while the process ends.
Pool& pool() {
    static Pool* const made = new Pool;
    return *made;
}
#endif

}  // namespace

void FreeBuffer::operator()(float* data) const {
#ifdef __linux__
    if (mapped != nullptr) return pool().give({mapped, bytes});
#endif
    std::free(data);
}

Buffer make_buffer(std::size_t n) {
    const std::size_t bytes = n * sizeof(float);
#ifdef __linux__
    if (bytes >= huge_page / 2) {
        const Mapping mapping = pool().take(bytes);
        return Buffer(mapping.data(), FreeBuffer{mapping.mapped, mapping.bytes});
    }
#endif
    constexpr std::size_t line = 64;
    void* p = std::aligned_alloc(line, (bytes / line + 1) * line);
    if (p == nullptr) throw std::bad_alloc();
    return Buffer(static_cast<float*>(p), FreeBuffer{});
}

void release_buffers() {
#ifdef __linux__
    pool().release();
#endif
}

}  // namespace sslfast::cpu
