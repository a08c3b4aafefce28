// Selection of patches (kernels/patch_mask): one block a sample. Keys lie in shared memory; a radix
// select (sslfast/select.h, as on the CPU) finds the threshold, prefix sums over the block give the
// indices. random_patch_mask reads 8 bytes a sample and writes 9 an element and 8 a kept one.
#include <sslfast/cuda.h>
#include <sslfast/select.h>

#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>

namespace sslfast::cuda {
namespace {

constexpr int threads = 256, warps = threads / 32;
constexpr unsigned all = 0xffffffffu;

// The exclusive prefix sum and the total of a predicate over the threads of a block, by ballots.
// Every thread calls.
struct BlockScan {
    int before, total;

    __device__ BlockScan(bool predicate, int* warp_counts) {
        const unsigned votes = __ballot_sync(all, predicate);
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        if (lane == 0) warp_counts[warp] = __popc(votes);
        __syncthreads();
        before = __popc(votes & ((1u << lane) - 1));
        total = 0;
        for (int w = 0; w < warps; ++w) {
            if (w < warp) before += warp_counts[w];
            total += warp_counts[w];
        }
        __syncthreads();
    }
};

struct Shared {
    int histogram[RadixSelect<std::uint64_t>::bins];
    int warp_counts[warps];
    int digit, below;
};

// As on the CPU: a histogram in shared memory (integer atomics), then one warp looks for the digit
// by a prefix sum of the bins.
template <typename Key>
__device__ RadixSelect<Key> radix_select(const Key* keys, int length, std::int64_t count,
                                         int key_bits, Shared& shared) {
    using Select = RadixSelect<Key>;
    static_assert(Select::bins == threads, "a thread a bin");
    Select found(count, key_bits);
    while (!found.done()) {
        shared.histogram[threadIdx.x] = 0;
        __syncthreads();
        for (int e = threadIdx.x; e < length; e += threads)
            if (found.matches(keys[e])) atomicAdd(&shared.histogram[found.digit(keys[e])], 1);
        __syncthreads();
        if (threadIdx.x < 32) {
            constexpr int share = Select::bins / 32;
            const int first = threadIdx.x * share;
            int mine = 0;
#pragma unroll
            for (int i = 0; i < share; ++i) mine += shared.histogram[first + i];
            int inclusive = mine;  // prefix sum: bins up to and including this lane's
#pragma unroll
            for (int step = 1; step < 32; step *= 2) {
                const int other = __shfl_up_sync(all, inclusive, step);
                if (static_cast<int>(threadIdx.x) >= step) inclusive += other;
            }
            int below = inclusive - mine;  // exclusive
            if (below < found.count && found.count <= inclusive) {
                int digit = first;
                while (below + shared.histogram[digit] < found.count)
                    below += shared.histogram[digit++];
                shared.digit = digit;
                shared.below = below;
            }
        }
        __syncthreads();
        found.take(shared.digit, shared.below);
    }
    return found;
}

// Calls visit(e, whether it is among the smallest) in every thread of the block, one element a
// thread at a time, also for e >= length (as not chosen).
template <typename Key, typename Visit>
__device__ void for_each_choice(const Key* keys, int length, const RadixSelect<Key>& found,
                                Shared& shared, Visit visit) {
    int equal_so_far = 0;
    for (int first = 0; first < length; first += threads) {
        const int e = first + threadIdx.x;
        const bool equal = e < length && keys[e] == found.prefix;
        const BlockScan scan(equal, shared.warp_counts);
        visit(e, e < length && found.chosen(keys[e], equal_so_far + scan.before));
        equal_so_far += scan.total;
    }
}

// A stable partition: kept elements first, then hidden ones; the same for all threads of a block.
struct Partition {
    std::int64_t* ids_keep;
    std::int64_t* ids_restore;
    int length;
    std::int64_t keep, visible;
    int kept = 0;

    __device__ void add(int e, bool chosen, int* warp_counts) {
        const BlockScan scan(chosen, warp_counts);
        const std::int64_t before = kept + scan.before;
        kept += scan.total;
        if (e >= length) return;
        const std::int64_t place = chosen ? before : visible + (e - before);
        if (place < keep) ids_keep[place] = e;
        ids_restore[e] = place;
    }
};

__global__ void __launch_bounds__(threads)
    random_kernel(const std::int64_t* __restrict__ sample_ids,
                  const std::int64_t* __restrict__ step, std::uint64_t seed,
                  std::int64_t stream_number, int length, std::int64_t keep,
                  std::int64_t* __restrict__ ids_keep, std::int64_t* __restrict__ ids_restore,
                  bool* __restrict__ mask) {
    extern __shared__ __align__(8) char memory[];
    auto* keys = reinterpret_cast<std::uint32_t*>(memory);
    __shared__ Shared shared;
    const std::int64_t sample = blockIdx.x;
    for (int first = 4 * threadIdx.x; first < length; first += 4 * threads) {
        const Words4 words = philox_block(static_cast<std::uint32_t>(first / 4), sample_ids[sample],
                                          *step, stream_number, seed);
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (first + i < length) keys[first + i] = words.word[i];
    }
    __syncthreads();
    const auto found = radix_select(keys, length, keep, 32, shared);
    Partition out{ids_keep + sample * keep, ids_restore + sample * length, length, keep, keep};
    for_each_choice(keys, length, found, shared, [&](int e, bool chosen) {
        out.add(e, chosen, shared.warp_counts);
        if (e < length) mask[sample * length + e] = !chosen;
    });
}

__global__ void __launch_bounds__(threads)
    smallest_kernel(const std::int64_t* __restrict__ keys, const std::int64_t* __restrict__ counts,
                    int length, int key_bits, bool* __restrict__ chosen) {
    extern __shared__ __align__(8) char memory[];
    auto* row = reinterpret_cast<std::uint64_t*>(memory);
    __shared__ Shared shared;
    const std::int64_t sample = blockIdx.x;
    for (int e = threadIdx.x; e < length; e += threads)
        row[e] = static_cast<std::uint64_t>(keys[sample * length + e]);
    __syncthreads();
    std::int64_t count = counts[sample];
    count = count < 0 ? 0 : count > length ? length : count;
    const auto found = radix_select(row, length, count, key_bits, shared);
    for_each_choice(row, length, found, shared, [&](int e, bool c) {
        if (e < length) chosen[sample * length + e] = c;
    });
}

__global__ void __launch_bounds__(threads)
    compact_kernel(const bool* __restrict__ mask, int length, std::int64_t keep,
                   std::int64_t* __restrict__ ids_keep, std::int64_t* __restrict__ ids_restore) {
    __shared__ int warp_counts[warps];
    const std::int64_t sample = blockIdx.x;
    const bool* hidden = mask + sample * length;
    int visible = 0;
    for (int first = 0; first < length; first += threads) {
        const int e = first + threadIdx.x;
        visible += BlockScan(e < length && !hidden[e], warp_counts).total;
    }
    Partition out{ids_keep + sample * keep, ids_restore + sample * length, length, keep, visible};
    for (int first = 0; first < length; first += threads) {
        const int e = first + threadIdx.x;
        out.add(e, e < length && !hidden[e], warp_counts);
    }
}

void check(const char* what, std::int64_t batch, std::int64_t length) {
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess)
        throw std::runtime_error(std::string(what) + " (batch " + std::to_string(batch) +
                                 ", length " + std::to_string(length) +
                                 "): " + cudaGetErrorString(error));
}

}  // namespace

void random_patch_mask(const std::int64_t* sample_ids, std::int64_t batch, const std::int64_t* step,
                       std::uint64_t seed, std::int64_t stream_number, std::int64_t length,
                       std::int64_t keep, std::int64_t* ids_keep, std::int64_t* ids_restore,
                       bool* mask, void* stream) {
    if (batch == 0 || length == 0) return;
    random_kernel<<<static_cast<unsigned>(batch), threads, length * sizeof(std::uint32_t),
                    static_cast<cudaStream_t>(stream)>>>(sample_ids, step, seed, stream_number,
                                                         static_cast<int>(length), keep, ids_keep,
                                                         ids_restore, mask);
    check("random_patch_mask", batch, length);
}

void smallest_keys(const std::int64_t* keys, const std::int64_t* counts, std::int64_t batch,
                   std::int64_t length, int key_bits, bool* chosen, void* stream) {
    if (batch == 0 || length == 0) return;
    smallest_kernel<<<static_cast<unsigned>(batch), threads, length * sizeof(std::uint64_t),
                      static_cast<cudaStream_t>(stream)>>>(keys, counts, static_cast<int>(length),
                                                           key_bits, chosen);
    check("smallest_keys", batch, length);
}

void compact_mask(const bool* mask, std::int64_t batch, std::int64_t length, std::int64_t keep,
                  std::int64_t* ids_keep, std::int64_t* ids_restore, void* stream) {
    if (batch == 0 || length == 0) return;
    compact_kernel<<<static_cast<unsigned>(batch), threads, 0, static_cast<cudaStream_t>(stream)>>>(
        mask, static_cast<int>(length), keep, ids_keep, ids_restore);
    check("compact_mask", batch, length);
}

}  // namespace sslfast::cuda
