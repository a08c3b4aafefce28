// Masked mean squared error.
#include "bind.h"

#include <sslfast/cpu.h>

namespace sslfast::bindings {

static void add(py::module_& module) {
    module.def(
        "masked_mse_cpu",
        [](Address prediction, Address target, Address mask, std::int64_t rows, std::int64_t dim,
           bool norm_target, float eps, int threads, Address loss) {
            sslfast::cpu::masked_mse(
                {pointer<const float>(prediction), pointer<const float>(target),
                 pointer<const bool>(mask), rows, dim, norm_target, eps, threads},
                pointer<float>(loss));
        },
        Release());
    module.def(
        "masked_mse_backward_cpu",
        [](Address prediction, Address target, Address mask, std::int64_t rows, std::int64_t dim,
           bool norm_target, float eps, int threads, Address gradient, Address d_prediction,
           Address d_target) {
            sslfast::cpu::masked_mse_backward(
                {pointer<const float>(prediction), pointer<const float>(target),
                 pointer<const bool>(mask), rows, dim, norm_target, eps, threads},
                pointer<const float>(gradient), pointer<float>(d_prediction),
                pointer<float>(d_target));
        },
        Release());
}

static const Binding binding(&add);

}  // namespace sslfast::bindings
