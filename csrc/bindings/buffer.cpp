// Memory of the kernels' pool, for tensors.
#include "bind.h"

#include <pybind11/buffer_info.h>

#include "../cpu/buffer.h"

namespace sslfast::bindings {
namespace {

// Floats that Python sees through the buffer protocol.
struct Floats {
    explicit Floats(std::size_t n) : size(n), data(cpu::make_buffer(n)) {}
    const std::size_t size;
    const cpu::Buffer data;
};

}  // namespace

static void add(py::module_& module) {
    py::class_<Floats>(module, "Floats", py::buffer_protocol())
        .def(py::init<std::size_t>())
        .def_buffer([](Floats& floats) {
            return py::buffer_info(floats.data.get(), static_cast<py::ssize_t>(floats.size));
        });
    module.def("release_buffers", &cpu::release_buffers);
}

static const Binding binding(&add);

}  // namespace sslfast::bindings
