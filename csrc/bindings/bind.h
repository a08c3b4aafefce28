// What the binding files share. Functions take addresses, sizes and, for CUDA, the stream; callers
// (kernels/*/cpu.py, cuda.py) own the tensors and keep them alive during the call.
#pragma once

#include <cstdint>

#include <pybind11/pybind11.h>

namespace sslfast::bindings {

namespace py = pybind11;
using Address = std::uintptr_t;

template <typename T>
T* pointer(Address address) {
    return reinterpret_cast<T*>(address);
}

// Other Python threads run while a kernel does.
using Release = py::call_guard<py::gil_scoped_release>;

// One for every file of this folder; bindings.cpp calls them all.
void buffer(py::module_& module);
void ema(py::module_& module);
void gather_patches(py::module_& module);
void linear_cross_entropy(py::module_& module);
void masked_mse(py::module_& module);
void optim(py::module_& module);
void patch_mask(py::module_& module);
void patchify_visible(py::module_& module);
void philox(py::module_& module);
void restore_with_tokens(py::module_& module);
void sigmoid_contrast(py::module_& module);
void similarity_softmax(py::module_& module);
void tensors(py::module_& module);

}  // namespace sslfast::bindings
