// Rows of tokens by index.
#include "bind.h"

#include <sslfast/cpu.h>
#ifdef SSLFAST_WITH_CUDA
#include <sslfast/cuda.h>
#endif

namespace sslfast::bindings {

static void add(py::module_& module) {
    module.def(
        "gather_rows_cpu",
        [](Address tokens, Address ids, std::int64_t batch, std::int64_t length, std::int64_t keep,
           std::int64_t row_bytes, Address out, int threads) {
            return sslfast::cpu::gather_rows(pointer<const char>(tokens),
                                             pointer<const std::int64_t>(ids), batch, length, keep,
                                             row_bytes, pointer<char>(out), threads);
        },
        Release());
    module.def(
        "scatter_rows_cpu",
        [](Address rows, Address ids, std::int64_t batch, std::int64_t length, std::int64_t keep,
           std::int64_t row_bytes, Address out, int threads) {
            return sslfast::cpu::scatter_rows(pointer<const char>(rows),
                                              pointer<const std::int64_t>(ids), batch, length, keep,
                                              row_bytes, pointer<char>(out), threads);
        },
        Release());
#ifdef SSLFAST_WITH_CUDA
    module.def(
        "gather_rows_cuda",
        [](Address tokens, Address ids, std::int64_t batch, std::int64_t length, std::int64_t keep,
           std::int64_t row_bytes, Address out, Address stream) {
            sslfast::cuda::gather_rows(pointer<const char>(tokens),
                                       pointer<const std::int64_t>(ids), batch, length, keep,
                                       row_bytes, pointer<char>(out), pointer<void>(stream));
        },
        Release());
#endif
}

static const Binding binding(&add);

}  // namespace sslfast::bindings
