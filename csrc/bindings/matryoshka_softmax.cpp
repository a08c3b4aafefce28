// Similarity softmaxes of prefixes.
#include "similarities.h"

namespace sslfast::bindings {
namespace {

// (ends, how many prefixes, 1 / norms of the rows, of the columns, which are kept)
using PrefixFields = std::tuple<Address, int, Address, Address, Address>;

cpu::Prefixes prefixes(PrefixFields fields) {
    const auto [ends, count, row, column, kept] = fields;
    return {pointer<const std::int64_t>(ends), count, pointer<const double>(row),
            pointer<const double>(column), pointer<const std::int64_t>(kept)};
}

}  // namespace

static void add(py::module_& module) {
    module.def(
        "matryoshka_forward_cpu",
        [](Address rows, std::int64_t m, Address columns, std::int64_t n, int dim, float scale,
           PairingFields pairing, int threads, PrefixFields fields, Address lse, Address positive,
           Address column_lse, Address kept, std::int64_t kept_size) {
            cpu::matryoshka_forward(similarities(rows, m, columns, n, dim, scale, pairing, threads),
                                    prefixes(fields), pointer<double>(lse),
                                    pointer<double>(positive), pointer<double>(column_lse),
                                    {pointer<float>(kept), kept_size});
        },
        Release());
    module.def(
        "matryoshka_backward_cpu",
        [](Address rows, std::int64_t m, Address columns, std::int64_t n, int dim, float scale,
           PairingFields pairing, int threads, PrefixFields fields, Address row_lse, Address row_g,
           Address column_lse, Address column_g, Address positive, Address kept,
           std::int64_t kept_size, Address d_rows, Address d_columns, Address row_inner,
           Address column_inner) {
            cpu::matryoshka_backward(
                similarities(rows, m, columns, n, dim, scale, pairing, threads), prefixes(fields),
                {pointer<const double>(row_lse), pointer<const double>(row_g)},
                {pointer<const double>(column_lse), pointer<const double>(column_g)},
                pointer<const float>(positive), {pointer<float>(kept), kept_size},
                pointer<float>(d_rows), pointer<float>(d_columns), pointer<float>(row_inner),
                pointer<float>(column_inner));
        },
        Release());
}

static const Binding binding(&add);

}  // namespace sslfast::bindings
