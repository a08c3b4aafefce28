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
    sslfast::bindings::buffer(module);
    sslfast::bindings::ema(module);
    sslfast::bindings::gather_patches(module);
    sslfast::bindings::linear_cross_entropy(module);
    sslfast::bindings::masked_mse(module);
    sslfast::bindings::optim(module);
    sslfast::bindings::patch_mask(module);
    sslfast::bindings::patchify_visible(module);
    sslfast::bindings::philox(module);
    sslfast::bindings::restore_with_tokens(module);
    sslfast::bindings::sigmoid_contrast(module);
    sslfast::bindings::similarity_softmax(module);
    sslfast::bindings::tensors(module);
}
