// How a problem over the products of rows and columns comes from Python.
#pragma once

#include "bind.h"

#include <tuple>

#include <pybind11/stl.h>

#include <sslfast/cpu.h>

namespace sslfast::bindings {

// (rows, m, columns, n, dim, scale, (length, shift, row_base, column_base, leave_out_self),
// threads)
using PairingFields = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t, bool>;

inline cpu::Similarities similarities(Address rows, std::int64_t m, Address columns, std::int64_t n,
                                      int dim, float scale, PairingFields pairing, int threads) {
    const auto [length, shift, row_base, column_base, leave_out_self] = pairing;
    return {pointer<const float>(rows),
            m,
            pointer<const float>(columns),
            n,
            dim,
            scale,
            {length, shift, row_base, column_base, leave_out_self},
            threads};
}

}  // namespace sslfast::bindings
