// Similarity softmax with groups of positives.
#include "similarities.h"

namespace sslfast::bindings {
namespace {

// (groups of rows and columns, their ignored ids, threshold, own)
using GroupFields = std::tuple<Address, Address, Address, Address, double, std::int64_t>;

cpu::Groups groups(GroupFields fields) {
    const auto [row, column, row_ignored, column_ignored, threshold, own] = fields;
    return {pointer<const int>(row),
            pointer<const int>(column),
            pointer<const int>(row_ignored),
            pointer<const int>(column_ignored),
            threshold,
            own};
}

// (log-sum-exps, their upstream gradients)
using Side = std::tuple<Address, Address>;

cpu::Statistics statistics(Side side) {
    const auto [lse, g] = side;
    return {pointer<const double>(lse), pointer<const double>(g)};
}

}  // namespace

static void add(py::module_& module) {
    module.def(
        "grouped_forward_cpu",
        [](Address rows, std::int64_t m, Address columns, std::int64_t n, int dim, float scale,
           PairingFields pairing, int threads, GroupFields fields, Address lse,
           Address positive_lse, Address column_lse, Address column_positive_lse, Address kept,
           std::int64_t kept_size) {
            cpu::grouped_forward(
                similarities(rows, m, columns, n, dim, scale, pairing, threads), groups(fields),
                pointer<double>(lse), pointer<double>(positive_lse), pointer<double>(column_lse),
                pointer<double>(column_positive_lse), {pointer<float>(kept), kept_size});
        },
        Release());
    module.def(
        "grouped_backward_cpu",
        [](Address rows, std::int64_t m, Address columns, std::int64_t n, int dim, float scale,
           PairingFields pairing, int threads, GroupFields fields, Side row, Side row_positive,
           Side column, Side column_positive, Address kept, std::int64_t kept_size, Address d_rows,
           Address d_columns) {
            cpu::grouped_backward(similarities(rows, m, columns, n, dim, scale, pairing, threads),
                                  groups(fields), statistics(row), statistics(row_positive),
                                  statistics(column), statistics(column_positive),
                                  {pointer<float>(kept), kept_size}, pointer<float>(d_rows),
                                  pointer<float>(d_columns));
        },
        Release());
}

static const Binding binding(&add);

}  // namespace sslfast::bindings
