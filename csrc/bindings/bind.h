// What the binding files share. Functions take addresses, sizes and, for CUDA, the stream; callers
// (kernels/*/cpu.py, cuda.py) own the tensors and keep them alive during the call.
#pragma once

#include <cstdint>
#include <vector>

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

// Every file of this folder has one, and with it a place in the module: there is no list to edit.
class Binding {
  public:
    using Add = void (*)(py::module_& module);

    explicit Binding(Add add) { all().push_back(add); }

    static std::vector<Add>& all() {
        static std::vector<Add> added;
        return added;
    }
};

}  // namespace sslfast::bindings
