// Row gradients: the float16 scale, the kernel, and the reduction of partial results.
#include <algorithm>
#include <type_traits>

#include "similarity_backward.h"

namespace sslfast::cuda {
namespace {

constexpr int growth_threads = 1024, merge_threads = 256;

__global__ void growth_kernel(const float* row_weight, int rows, const float* column_weight,
                              int columns, float* growth) {
    Machine machine;
    growth_block<growth_threads>(machine, row_weight, rows, column_weight, columns, growth);
}

__global__ void merge_kernel(std::int64_t elements, const BackwardResults out) {
    const std::int64_t stride = std::int64_t{gridDim.x} * merge_threads;
    for (std::int64_t i = std::int64_t{blockIdx.x} * merge_threads + threadIdx.x; i < elements;
         i += stride)
        merge_backward(i, elements, out);
}

}  // namespace

// The scale of the weights and its inverse come first.
std::int64_t similarity_backward_workspace(const Similarities& p) {
    return 2 + with_element(p.arithmetic, [&](auto e) {
               return current_plan<decltype(e)>(p, true).workspace(p.m, p.dim);
           });
}

void similarity_backward(const Similarities& p, Statistics row, Statistics column, float* d_rows,
                         float* workspace, void* stream) {
    const std::int64_t elements = p.m * p.dim;
    if (elements == 0) return;
    const auto cuda_stream = static_cast<cudaStream_t>(stream);
    if (p.arithmetic == Arithmetic::float16 && column.lse != nullptr) {
        constexpr int shared_bytes = growth_threads / warp_size * 4;
        growth_kernel<<<1, growth_threads, shared_bytes, cuda_stream>>>(
            row.g, static_cast<int>(p.m), column.g, static_cast<int>(p.n), workspace);
        check(cudaGetLastError(), "similarity_backward, growth", p);
    }
    with_element(p.arithmetic, [&](auto e) {
        using E = decltype(e);
        const Plan plan = current_plan<E>(p, true);
        const BackwardResults out{d_rows, workspace + 2, workspace, plan.splits};
        launch_backward<E>(p, plan, {row.lse, row.g}, {column.lse, column.g}, out, stream);
        if (plan.splits == 1) return;
        const std::int64_t blocks = (elements + merge_threads - 1) / merge_threads;
        const auto grid = static_cast<unsigned>(std::min<std::int64_t>(blocks, 65536));
        merge_kernel<<<grid, merge_threads, 0, cuda_stream>>>(elements, out);
        check(cudaGetLastError(), "similarity_backward, merge", p);
    });
}

}  // namespace sslfast::cuda
