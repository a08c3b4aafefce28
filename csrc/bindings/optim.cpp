// Optimisers.
#include "bind.h"

#include <sslfast/cpu.h>
#ifdef SSLFAST_WITH_CUDA
#include <sslfast/cuda.h>
#endif

namespace sslfast::bindings {

static void add(py::module_& module) {
    module.def(
        "adamw_step_cpu",
        [](Address rows, std::int64_t n, Address control, Address groups, int threads) {
            sslfast::cpu::adamw_step(pointer<const Row>(rows), n, pointer<const double>(control),
                                     pointer<const double>(groups), threads);
        },
        Release());
    module.def(
        "lars_step_cpu",
        [](Address rows, std::int64_t n, Address control, Address groups, Address trust,
           int threads) {
            sslfast::cpu::lars_step(pointer<const Row>(rows), n, pointer<const double>(control),
                                    pointer<const double>(groups), pointer<const double>(trust),
                                    threads);
        },
        Release());
#ifdef SSLFAST_WITH_CUDA
    module.def(
        "adamw_step_cuda",
        [](Address rows, Address chunks, std::int64_t n, Address control, Address groups,
           Address stream) {
            sslfast::cuda::adamw_step(pointer<const Row>(rows), pointer<const std::int64_t>(chunks),
                                      n, pointer<const double>(control),
                                      pointer<const double>(groups), pointer<void>(stream));
        },
        Release());
    module.def(
        "lars_step_cuda",
        [](Address rows, Address chunks, std::int64_t n, Address control, Address groups,
           Address trust, Address stream) {
            sslfast::cuda::lars_step(pointer<const Row>(rows), pointer<const std::int64_t>(chunks),
                                     n, pointer<const double>(control),
                                     pointer<const double>(groups), pointer<const double>(trust),
                                     pointer<void>(stream));
        },
        Release());
#endif
}

static const Binding binding(&add);

}  // namespace sslfast::bindings
