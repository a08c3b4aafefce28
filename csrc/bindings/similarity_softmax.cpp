// Similarity softmax.
#include "similarities.h"

namespace sslfast::bindings {
namespace {

sslfast::cpu::Statistics statistics(Address lse, Address g) {
    return {pointer<const float>(lse), pointer<const float>(g)};
}

}  // namespace

void similarity_softmax(py::module_& module) {
    module.def(
        "similarity_forward_cpu",
        [](Address rows, std::int64_t m, Address columns, std::int64_t n, int dim, float scale,
           PairingFields pairing, int threads, Address lse, Address positive, Address column_lse) {
            sslfast::cpu::similarity_forward(
                similarities(rows, m, columns, n, dim, scale, pairing, threads),
                pointer<float>(lse), pointer<float>(positive), pointer<float>(column_lse));
        },
        Release());
    module.def(
        "similarity_backward_cpu",
        [](Address rows, std::int64_t m, Address columns, std::int64_t n, int dim, float scale,
           PairingFields pairing, int threads, Address row_lse, Address row_g, Address column_lse,
           Address column_g, Address d_rows, Address d_columns) {
            sslfast::cpu::similarity_backward(
                similarities(rows, m, columns, n, dim, scale, pairing, threads),
                statistics(row_lse, row_g), statistics(column_lse, column_g),
                pointer<float>(d_rows), pointer<float>(d_columns));
        },
        Release());
}

}  // namespace sslfast::bindings
