// Exponential moving averages.
#include "bind.h"

#include <sslfast/cpu.h>
#ifdef SSLFAST_WITH_CUDA
#include <sslfast/cuda.h>
#endif

namespace sslfast::bindings {

static void add(py::module_& module) {
    module.def(
        "ema_update_cpu",
        [](Address rows, std::int64_t n, double momentum, int threads) {
            sslfast::cpu::ema_update(pointer<const Row>(rows), n, momentum, threads);
        },
        Release());
#ifdef SSLFAST_WITH_CUDA
    module.def(
        "ema_update_cuda",
        [](Address rows, Address chunks, std::int64_t n, Address momentum, Address stream) {
            sslfast::cuda::ema_update(pointer<const Row>(rows), pointer<const std::int64_t>(chunks),
                                      n, pointer<const double>(momentum), pointer<void>(stream));
        },
        Release());
#endif
}

static const Binding binding(&add);

}  // namespace sslfast::bindings
