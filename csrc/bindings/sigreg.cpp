// SIGReg: what is done with projections [views, rows, columns].
#include "bind.h"

#include <sslfast/cpu.h>

namespace sslfast::bindings {

static void add(py::module_& module) {
    module.def(
        "sigreg_sums_cpu",
        [](Address p, std::int64_t views, std::int64_t rows, std::int64_t columns, double step,
           int count, int threads, Address sums) {
            sslfast::cpu::wave_sums(pointer<const float>(p),
                                    {views, rows, columns, step, count, threads},
                                    pointer<double>(sums));
        },
        Release());
    module.def(
        "sigreg_gradient_cpu",
        [](Address p, std::int64_t views, std::int64_t rows, std::int64_t columns, double step,
           int count, int threads, Address coefficients) {
            sslfast::cpu::wave_gradient(pointer<float>(p),
                                        {views, rows, columns, step, count, threads},
                                        pointer<const float>(coefficients));
        },
        Release());
}

static const Binding binding(&add);

}  // namespace sslfast::bindings
