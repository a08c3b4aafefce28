// Python module sslfast._C: plain functions over addresses, sizes and, for CUDA, the stream.
// Callers (kernels/*/cpu.py, cuda.py) own the tensors and keep them alive during the call.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <tuple>

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

// (rows, m, columns, n, dim, scale, (length, shift, row_base, column_base, leave_out_self), threads)
using PairingFields = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t, bool>;

sslfast::cpu::Similarities similarities(Address rows, std::int64_t m, Address columns,
                                        std::int64_t n, int dim, float scale, PairingFields pairing,
                                        int threads) {
    const auto [length, shift, row_base, column_base, leave_out_self] = pairing;
    return {pointer<const float>(rows), m,   pointer<const float>(columns), n, dim, scale,
            {length, shift, row_base, column_base, leave_out_self},         threads};
}

sslfast::cpu::Statistics statistics(Address lse, Address g) {
    return {pointer<const float>(lse), pointer<const float>(g)};
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
        "similarity_forward_cpu",
        [](Address rows, std::int64_t m, Address columns, std::int64_t n, int dim, float scale,
           PairingFields pairing, int threads, Address lse, Address positive, Address column_lse) {
            sslfast::cpu::similarity_forward(
                similarities(rows, m, columns, n, dim, scale, pairing, threads),
                pointer<float>(lse), pointer<float>(positive), pointer<float>(column_lse));
        },
        release);
    module.def(
        "similarity_backward_cpu",
        [](Address rows, std::int64_t m, Address columns, std::int64_t n, int dim, float scale,
           PairingFields pairing, int threads, Address row_lse, Address row_g, Address column_lse,
           Address column_g, Address d_rows, Address d_columns) {
            sslfast::cpu::similarity_backward(
                similarities(rows, m, columns, n, dim, scale, pairing, threads),
                statistics(row_lse, row_g), statistics(column_lse, column_g),
                pointer<float>(d_rows), pointer<float>(d_columns));
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
