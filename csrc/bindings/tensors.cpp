// Tables of tensors (sslfast/rows.h) made from Python's lists in one walk.
#include "bind.h"
#include "dlpack.h"

#include <sslfast/rows.h>

namespace sslfast::bindings {
namespace {

using dlpack::Tensor;

// A TypeCode, or none_code for what kernels do not take.
int type_code(dlpack::DataType type) {
    if (type.lanes != 1) return none_code;
    if (type.code == 4) return type.bits == 16 ? bfloat16_code : none_code;
    if (type.code != 2) return none_code;
    switch (type.bits) {
        case 16: return float16_code;
        case 32: return float32_code;
        case 64: return float64_code;
        default: return none_code;
    }
}

std::int64_t elements(const Tensor& x) {
    std::int64_t n = 1;
    for (int d = 0; d < x.ndim; ++d) n *= x.shape[d];
    return n;
}

bool same_shape(const Tensor& a, const Tensor& b) {
    if (a.ndim != b.ndim) return false;
    for (int d = 0; d < a.ndim; ++d)
        if (a.shape[d] != b.shape[d]) return false;
    return true;
}

bool contiguous(const Tensor& x) {
    if (x.strides == nullptr) return true;
    std::int64_t expected = 1;
    for (int d = x.ndim - 1; d >= 0; --d) {
        if (x.shape[d] != 1 && x.strides[d] != expected) return false;
        expected *= x.shape[d];
    }
    return true;
}

// Whether both have the same strides, and those fill one stretch of memory in whatever order.
bool same_dense_strides(const Tensor& a, const Tensor& b) {
    if (a.strides == nullptr || b.strides == nullptr) return false;
    std::int64_t filled = 1;
    for (int found = 0; found < a.ndim; ++found)
        for (int d = 0; d < a.ndim; ++d) {
            if (a.strides[d] != b.strides[d]) return false;
            if (a.shape[d] != 1 && a.strides[d] == filled) filled *= a.shape[d];
        }
    return filled == elements(a);
}

struct Reader {
    const dlpack::ExchangeApi* api;
    PyTypeObject *plain, *parameter;

    // Describes a torch.Tensor or Parameter. Subclasses may have no memory of their own.
    bool operator()(PyObject* object, Tensor& out) const {
        if (Py_TYPE(object) != plain && Py_TYPE(object) != parameter) return false;
        if (api->describe(object, &out) == 0) return true;
        PyErr_Clear();  // what it has no description for, the caller looks at in Python
        return false;
    }
};

// One row; false where anything is unusual. `types` is that of the first and of column `second`.
bool fill(Row& row, const py::list& columns, py::ssize_t n, int second, const Reader& read,
          dlpack::Device& device) {
    Tensor first{};
    int types = none_code;
    for (py::ssize_t c = 0; c < PyList_GET_SIZE(columns.ptr()); ++c) {
        PyObject* object = PyList_GET_ITEM(PyList_GET_ITEM(columns.ptr(), c), n);
        row.address[c] = 0;
        if (object == Py_None && c > 0) continue;
        Tensor x{};
        if (!read(object, x)) return false;
        const int type = type_code(x.dtype);
        if (c == 0) {
            first = x;
            types = 5 * type + none_code;
            if (n == 0) device = x.device;
        }
        if (type == none_code || x.device.type != device.type || x.device.index != device.index)
            return false;
        row.address[c] =
            reinterpret_cast<std::int64_t>(x.data) + static_cast<std::int64_t>(x.byte_offset);
        if (c == 0 || c == step_address) continue;
        if (c == second)
            types += type - none_code;
        else if (type != types / 5)
            return false;
        if (!same_shape(first, x)) return false;
        if (contiguous(first) ? !contiguous(x) : !same_dense_strides(first, x)) return false;
    }
    row.count = elements(first);
    row.types = types;
    return true;
}

// Fills rows from up to six lists of as many tensors (or None, but in the first), and returns the
// set of their types, a bit each; or -1 where anything is unusual: a class, dtype or device,
// shapes, dtypes or orders of elements that differ within a row.
std::int64_t rows_of_tensors(Address address, const py::list& columns, int second,
                             const py::object& groups, const py::object& plain,
                             const py::object& parameter) {
    const py::object capsule = plain.attr("__dlpack_c_exchange_api__");
    const Reader read{static_cast<const dlpack::ExchangeApi*>(
                          PyCapsule_GetPointer(capsule.ptr(), dlpack::capsule_name)),
                      reinterpret_cast<PyTypeObject*>(plain.ptr()),
                      reinterpret_cast<PyTypeObject*>(parameter.ptr())};
    if (read.api == nullptr) throw py::error_already_set();
    if (read.api->major != 1 || read.api->describe == nullptr) return -1;
    if (py::len(columns) > row_addresses) throw py::value_error("a row has six addresses at most");
    const auto n = static_cast<py::ssize_t>(py::len(columns[0]));
    for (py::handle column : columns)
        if (!PyList_CheckExact(column.ptr()) || PyList_GET_SIZE(column.ptr()) != n)
            throw py::value_error("columns must be lists of one length");
    Row* rows = pointer<Row>(address);
    std::int64_t found = 0;
    dlpack::Device device{};
    for (py::ssize_t i = 0; i < n; ++i) {
        if (!fill(rows[i], columns, i, second, read, device)) return -1;
        rows[i].group = groups.is_none() ? 0 : groups[py::int_(i)].cast<std::int32_t>();
        found |= std::int64_t{1} << rows[i].types;
    }
    return n == 0 || device.type == dlpack::cpu || device.type == dlpack::cuda ? found : -1;
}

}  // namespace

static void add(py::module_& module) { module.def("rows_of_tensors", &rows_of_tensors); }

static const Binding binding(&add);

}  // namespace sslfast::bindings
