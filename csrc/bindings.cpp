// Python module sslfast._C: plain functions over addresses, one file of csrc/bindings/ for each op.
#include "bindings/bind.h"

#include <sslfast/cpu.h>

PYBIND11_MODULE(_C, module) {
    module.doc() = "Compiled kernels of sslfast.";
#ifdef SSLFAST_WITH_CUDA
    module.attr("CUDA_ARCHITECTURES") = SSLFAST_CUDA_ARCHITECTURES;
#else
    module.attr("CUDA_ARCHITECTURES") = "";
#endif
    module.def("instruction_set", &sslfast::cpu::instruction_set);
    for (const auto add : sslfast::bindings::Binding::all()) add(module);
}
