// What multi-tensor kernels over a table of rows share: a thread block takes a chunk of a row at a
// time, with vectorised accesses of 16 bytes where alignment allows it. With SSLFAST_CUDA_DEBUG,
// chunks and alignments are checked.
#pragma once

#ifdef SSLFAST_CUDA_DEBUG
#undef NDEBUG
#include <cassert>
#endif

#include <sslfast/cuda.h>
#include <sslfast/rows.h>

#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>

namespace sslfast::cuda {

constexpr int threads = 256;
constexpr int blocks_per_multiprocessor = 8;

// In a debug build a chunk or an address that a kernel must not be given stops it.
__device__ __forceinline__ void check([[maybe_unused]] bool right) {
#ifdef SSLFAST_CUDA_DEBUG
    assert(right);
#endif
}

// An aligned vector of elements, for one load or store.
template <typename T, int n>
struct alignas(sizeof(T) * n < 16 ? sizeof(T) * n : 16) Pack {
    T value[n];
};

template <int n, typename T>
__device__ __forceinline__ Pack<T, n> load(const T* p) {
    check(reinterpret_cast<std::uintptr_t>(p) % alignof(Pack<T, n>) == 0);
    return *reinterpret_cast<const Pack<T, n>*>(p);
}

template <int n, typename T>
__device__ __forceinline__ void store(T* p, Pack<T, n> pack) {
    check(reinterpret_cast<std::uintptr_t>(p) % alignof(Pack<T, n>) == 0);
    *reinterpret_cast<Pack<T, n>*>(p) = pack;
}

// A slice of a row: the elements of one chunk.
struct Chunk {
    const Row& row;
    std::int64_t begin;
    int size;
};

__device__ __forceinline__ Chunk chunk_of(const Row* rows, std::int64_t chunk) {
    const Row& row = rows[chunk >> 32];
    const std::int64_t begin = (chunk & 0xffffffff) * chunk_elements;
    const std::int64_t left = row.count - begin;
    check(chunk >= 0 && left > 0);
    return {row, begin, left < chunk_elements ? static_cast<int>(left) : chunk_elements};
}

// Elements a thread takes at a time: 16 bytes of the widest type of 4 bytes or less.
template <typename T, typename S>
constexpr int width_of = sizeof(T) == 2 || sizeof(S) == 2 ? 8 : 4;

template <int n>
struct Width {
    static constexpr int value = n;
};

// Calls f(i, Width<n>) so that all elements [i, i + n) of a chunk are covered once: n is `width`
// where all addresses of the row are aligned, and 1 otherwise and in the tail. Chunks begin at
// multiples of 16 bytes.
template <int width, typename F>
__device__ __forceinline__ void for_elements(const Chunk& chunk, F f) {
    bool aligned = true;
#pragma unroll
    for (int n = 0; n < row_addresses; ++n)
        aligned &= n == step_address || chunk.row.address[n] % 16 == 0;
    const int packed = aligned ? chunk.size / width * width : 0;
    for (int i = threadIdx.x * width; i < packed; i += threads * width) f(i, Width<width>{});
#pragma unroll 1
    for (int i = packed + threadIdx.x; i < chunk.size; i += threads) f(i, Width<1>{});
}

// Launches kernel(arguments...), a grid-stride loop over n chunks.
template <typename Kernel, typename... Arguments>
void launch(const char* name, Kernel kernel, std::int64_t n, void* stream, Arguments... arguments) {
    if (n == 0) return;
    int device = 0, multiprocessors = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    const auto grid = std::min<std::int64_t>(n, multiprocessors * blocks_per_multiprocessor);
    kernel<<<static_cast<unsigned>(grid), threads, 0, static_cast<cudaStream_t>(stream)>>>(
        arguments...);
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess)
        throw std::runtime_error(std::string(name) + " (" + std::to_string(n) +
                                 " chunks): " + cudaGetErrorString(error));
}

}  // namespace sslfast::cuda
