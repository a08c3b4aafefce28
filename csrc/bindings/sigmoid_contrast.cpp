// Pairwise sigmoid loss.
#include "similarities.h"

namespace sslfast::bindings {

static void add(py::module_& module) {
    module.def(
        "sigmoid_contrast_cpu",
        [](Address rows, std::int64_t m, Address columns, std::int64_t n, int dim, float scale,
           PairingFields pairing, int threads, float bias, Address row_weight, Address loss,
           Address d_rows, Address d_columns, Address d_bias) {
            cpu::sigmoid_contrast(similarities(rows, m, columns, n, dim, scale, pairing, threads),
                                  bias, pointer<const float>(row_weight), pointer<float>(loss),
                                  pointer<float>(d_rows), pointer<float>(d_columns),
                                  pointer<float>(d_bias));
        },
        Release());
}

static const Binding binding(&add);

}  // namespace sslfast::bindings
