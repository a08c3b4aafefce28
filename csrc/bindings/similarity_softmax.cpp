// Similarity softmax.
#include "similarities.h"

#ifdef SSLFAST_WITH_CUDA
#include <sslfast/cuda.h>
#endif

namespace sslfast::bindings {
namespace {

sslfast::cpu::Statistics statistics(Address lse, Address g) {
    return {pointer<const double>(lse), pointer<const double>(g)};
}

#ifdef SSLFAST_WITH_CUDA
// (arithmetic, rows, m, columns, n, dim, scale, pairing); see kernels/similarity_softmax/cuda.py.
using CudaProblem =
    std::tuple<int, Address, std::int64_t, Address, std::int64_t, int, Address, PairingFields>;

sslfast::cuda::Similarities on_gpu(const CudaProblem& problem) {
    const auto& [arithmetic, rows, m, columns, n, dim, scale, pairing] = problem;
    const auto [length, shift, row_base, column_base, leave_out_self] = pairing;
    return {static_cast<sslfast::cuda::Arithmetic>(arithmetic),
            pointer<const void>(rows),
            m,
            pointer<const void>(columns),
            n,
            dim,
            pointer<const float>(scale),
            {length, shift, row_base, column_base, leave_out_self}};
}

void similarity_softmax_cuda(py::module_& module) {
    module.def(
        "similarity_workspace_cuda",
        [](const CudaProblem& problem, bool backward) {
            return backward ? sslfast::cuda::similarity_backward_workspace(on_gpu(problem))
                            : sslfast::cuda::similarity_forward_workspace(on_gpu(problem));
        },
        Release());
    module.def(
        "similarity_forward_cuda",
        [](const CudaProblem& problem, Address lse, Address positive, Address workspace,
           Address stream) {
            sslfast::cuda::similarity_forward(on_gpu(problem), pointer<float>(lse),
                                              pointer<float>(positive), pointer<float>(workspace),
                                              pointer<void>(stream));
        },
        Release());
    module.def(
        "similarity_backward_cuda",
        [](const CudaProblem& problem, Address row_lse, Address row_g, Address column_lse,
           Address column_g, Address d_rows, Address workspace, Address stream) {
            sslfast::cuda::similarity_backward(
                on_gpu(problem), {pointer<const float>(row_lse), pointer<const float>(row_g)},
                {pointer<const float>(column_lse), pointer<const float>(column_g)},
                pointer<float>(d_rows), pointer<float>(workspace), pointer<void>(stream));
        },
        Release());
}
#endif

}  // namespace

static void add(py::module_& module) {
    module.def(
        "similarity_forward_cpu",
        [](Address rows, std::int64_t m, Address columns, std::int64_t n, int dim, float scale,
           PairingFields pairing, int threads, Address lse, Address positive, Address column_lse,
           Address kept, std::int64_t kept_size) {
            sslfast::cpu::similarity_forward(
                similarities(rows, m, columns, n, dim, scale, pairing, threads),
                pointer<double>(lse), pointer<double>(positive), pointer<double>(column_lse),
                {pointer<float>(kept), kept_size});
        },
        Release());
    module.def(
        "similarity_backward_cpu",
        [](Address rows, std::int64_t m, Address columns, std::int64_t n, int dim, float scale,
           PairingFields pairing, int threads, Address row_lse, Address row_g, Address column_lse,
           Address column_g, Address positive, Address kept, std::int64_t kept_size, Address d_rows,
           Address d_columns) {
            sslfast::cpu::similarity_backward(
                similarities(rows, m, columns, n, dim, scale, pairing, threads),
                statistics(row_lse, row_g), statistics(column_lse, column_g),
                pointer<const float>(positive), {pointer<float>(kept), kept_size},
                pointer<float>(d_rows), pointer<float>(d_columns));
        },
        Release());
#ifdef SSLFAST_WITH_CUDA
    similarity_softmax_cuda(module);
#endif
}

static const Binding binding(&add);

}  // namespace sslfast::bindings
