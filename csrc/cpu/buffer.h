// Aligned memory for packed operands and scratch tiles.
#pragma once

#include <cstddef>
#include <memory>

namespace sslfast::cpu {

// Gives a buffer back: to the pool or, a small one, to the heap.
struct FreeBuffer {
    void* mapped = nullptr;
    std::size_t bytes = 0;
    void operator()(float* data) const;
};
using Buffer = std::unique_ptr<float[], FreeBuffer>;

// n uninitialised floats, aligned to a cache line. Large buffers have huge pages of their own: in
// the heap they would come between the caller's tensors and fragment it. Freed ones wait in a pool
// for the next call, a training step later: first-touch page faults cost more than the passes that
// fill the memory.
Buffer make_buffer(std::size_t n);

// Gives the pool's memory back to the system.
void release_buffers();

}  // namespace sslfast::cpu
