// Cross-entropy over the classes of a linear layer.
#include "bind.h"

#include <sslfast/cpu.h>

namespace sslfast::bindings {

static void add(py::module_& module) {
    module.def(
        "linear_cross_entropy_cpu",
        [](Address hidden, std::int64_t n, Address weight, std::int64_t v, int dim, Address bias,
           Address targets, int threads, Address lse, Address target_logit, Address row_weight,
           float smoothing, double softcap, Address d_hidden, Address d_weight, Address d_bias) {
            const cpu::LinearClassifier problem{pointer<const float>(hidden),
                                                n,
                                                pointer<const float>(weight),
                                                v,
                                                dim,
                                                pointer<const float>(bias),
                                                pointer<const std::int64_t>(targets),
                                                softcap,
                                                threads};
            const cpu::LinearGradients gradients{pointer<const float>(row_weight), smoothing,
                                                 pointer<float>(d_hidden), pointer<float>(d_weight),
                                                 pointer<float>(d_bias)};
            cpu::linear_cross_entropy(problem, pointer<float>(lse), pointer<float>(target_logit),
                                      row_weight == 0 ? nullptr : &gradients);
        },
        Release());
}

static const Binding binding(&add);

}  // namespace sslfast::bindings
