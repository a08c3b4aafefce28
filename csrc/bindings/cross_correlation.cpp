// Cross-correlation: the passes over features, without the products. Features are an address and a
// stride.
#include "bind.h"

#include <sslfast/cpu.h>

#include <utility>

namespace sslfast::bindings {

using Rows = std::pair<Address, std::int64_t>;

static sslfast::cpu::StridedRows<const float> read(Rows rows) {
    return {pointer<const float>(rows.first), rows.second};
}

static sslfast::cpu::StridedRows<float> write(Rows rows) {
    return {pointer<float>(rows.first), rows.second};
}

static void add(py::module_& module) {
    module.def(
        "column_moments_cpu",
        [](Address x, std::int64_t rows, std::int64_t columns, int threads, Address mean,
           Address variance) {
            sslfast::cpu::column_moments(pointer<const float>(x), rows, columns, threads,
                                         pointer<float>(mean), pointer<float>(variance));
        },
        Release());
    module.def(
        "standardize_columns_cpu",
        [](Rows x, std::int64_t rows, std::int64_t columns, Address mean, Address factor,
           int threads, Rows out) {
            sslfast::cpu::standardize_columns(read(x), rows, columns, pointer<const float>(mean),
                                              pointer<const float>(factor), threads, write(out));
        },
        Release());
    module.def(
        "column_products_cpu",
        [](Rows a, Rows b, std::int64_t rows, std::int64_t columns, int threads, Address out) {
            sslfast::cpu::column_products(read(a), read(b), rows, columns, threads,
                                          pointer<float>(out));
        },
        Release());
    module.def(
        "correlation_gradient_cpu",
        [](Rows product, Rows own, Rows other, std::int64_t rows, std::int64_t columns, float alpha,
           Address beta, Address along, Address factor, int threads, Rows out) {
            sslfast::cpu::correlation_gradient(
                {read(product), read(own), read(other), rows, columns, alpha,
                 pointer<const float>(beta), pointer<const float>(along),
                 pointer<const float>(factor)},
                threads, write(out));
        },
        Release());
}

static const Binding binding(&add);

}  // namespace sslfast::bindings
