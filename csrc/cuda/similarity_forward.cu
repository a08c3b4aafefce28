// Log-sum-exps of the rows and positive logits; csrc/include/sslfast/similarity_forward.h.
#include <sslfast/similarity_forward.h>

#include "machine.h"
#include "similarity_launch.h"

namespace sslfast::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(T::threads)
    forward_kernel(const __grid_constant__ Similarity p,
                   const __grid_constant__ ForwardResults out) {
    Machine machine;
    forward_block<T>(machine, p, out);
}

constexpr int merge_threads = 256;

__global__ void merge_kernel(std::int64_t rows, const ForwardResults out) {
    Machine machine;
    const std::int64_t i = std::int64_t{blockIdx.x} * merge_threads + threadIdx.x;
    if (i < rows) merge_forward(machine, i, rows, out);
}

}  // namespace

std::int64_t similarity_forward_workspace(const Similarities& p) {
    return with_element(p.arithmetic, [&](auto e) {
        return current_plan<decltype(e)>(p, false).workspace(p.m, 2);
    });
}

void similarity_forward(const Similarities& p, float* lse, float* positive, float* workspace,
                        void* stream) {
    if (p.m == 0) return;
    with_element(p.arithmetic, [&](auto e) {
        using T = ForwardTile<decltype(e)>;
        const Plan plan = current_plan<decltype(e)>(p, false);
        const ForwardResults out{lse, positive, workspace, plan.splits};
        launch<T>(forward_kernel<T>, "similarity_forward", p, plan, stream,
                  similarity<decltype(e)>(p, plan), out);
        if (plan.splits == 1) return;
        const auto grid = static_cast<unsigned>((p.m + merge_threads - 1) / merge_threads);
        merge_kernel<<<grid, merge_threads, 0, static_cast<cudaStream_t>(stream)>>>(p.m, out);
        check(cudaGetLastError(), "similarity_forward, merge", p);
    });
}

}  // namespace sslfast::cuda
