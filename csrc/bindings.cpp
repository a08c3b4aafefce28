// Python module sslfast._C: plain functions over addresses, sizes and, for CUDA, the stream.
// Callers (kernels/*/cpu.py, cuda.py) own the tensors and keep them alive during the call.
#include <pybind11/pybind11.h>

#include <sslfast/cpu.h>
#ifdef SSLFAST_WITH_CUDA
#include <sslfast/cuda.h>
#endif

namespace py = pybind11;
using Address = std::uintptr_t;

namespace {

template <typename T>
T* pointer(Address address) {
    return reinterpret_cast<T*>(address);
}

sslfast::cpu::Symmetric symmetric(Address rows, std::int64_t m, int dim, float scale,
                                  int threads) {
    return {pointer<const float>(rows), m, dim, scale, threads};
}

}  // namespace

PYBIND11_MODULE(_C, module) {
    module.doc() = "Compiled kernels of sslfast.";
#ifdef SSLFAST_WITH_CUDA
    module.attr("CUDA_ARCHITECTURES") = SSLFAST_CUDA_ARCHITECTURES;
#else
    module.attr("CUDA_ARCHITECTURES") = "";
#endif

    module.def("instruction_set", &sslfast::cpu::instruction_set);

    const auto release = py::call_guard<py::gil_scoped_release>();

    module.def(
        "philox_random_bits_cpu",
        [](Address sample_ids, std::int64_t batch, std::int64_t step, std::uint64_t seed,
           std::int64_t stream, std::int64_t count, Address out, int threads) {
            sslfast::cpu::philox_random_bits(pointer<const std::int64_t>(sample_ids), batch, step,
                                             seed, stream, count, pointer<std::int64_t>(out),
                                             threads);
        },
        release);
    module.def(
        "symmetric_forward_cpu",
        [](Address rows, std::int64_t m, int dim, float scale, int threads,
           Address lse, Address positive) {
            sslfast::cpu::symmetric_forward(symmetric(rows, m, dim, scale, threads),
                                            pointer<float>(lse), pointer<float>(positive));
        },
        release);
    module.def(
        "symmetric_backward_cpu",
        [](Address rows, std::int64_t m, int dim, float scale, int threads,
           Address lse, Address g, Address gradient) {
            sslfast::cpu::symmetric_backward(symmetric(rows, m, dim, scale, threads),
                                             pointer<const float>(lse), pointer<const float>(g),
                                             pointer<float>(gradient));
        },
        release);

#ifdef SSLFAST_WITH_CUDA
    module.def(
        "philox_random_bits_cuda",
        [](Address sample_ids, std::int64_t batch, Address step, std::uint64_t seed,
           std::int64_t stream_number, std::int64_t count, Address out, Address stream) {
            sslfast::cuda::philox_random_bits(pointer<const std::int64_t>(sample_ids), batch,
                                              pointer<const std::int64_t>(step), seed,
                                              stream_number, count, pointer<std::int64_t>(out),
                                              pointer<void>(stream));
        },
        release);
#endif
}
