// Memory for operands of products.
#pragma once

#include <cstddef>
#include <memory>

namespace sslfast::cpu {

// Where a buffer goes: to the pool or, small, to the heap.
struct FreeBuffer {
    void* mapped = nullptr;
    std::size_t bytes = 0;
    void operator()(float* data) const;
};
using Buffer = std::unique_ptr<float[], FreeBuffer>;

// n floats, not set, at a cache line. Large ones lie in large pages of their own: in the heap they
// would come between the caller's tensors and leave holes. What is freed waits in a pool for the
// next call, a step of training later, because fresh pages cost more than the passes that fill
// them.
Buffer make_buffer(std::size_t n);

// Gives the pool's memory back to the system.
void release_buffers();

}  // namespace sslfast::cpu
