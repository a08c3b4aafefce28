// Multi-tensor calls: a table with one row a tensor (or a few that belong together and have the
// same elements in the same order), as kernels/tensors.py builds it.
#pragma once

#include <cstdint>

#include <sslfast/floats.h>

namespace sslfast {

constexpr int row_addresses = 6;
constexpr int step_address = 4;  // not of an array

// What the addresses are is said by each operation; 0 for none.
struct Row {
    std::int64_t address[row_addresses];
    std::int64_t count;  // elements
    std::int32_t types;  // of the tensors: a number that each operation makes of their TypeCodes
    std::int32_t group;  // of hyperparameters
};
static_assert(sizeof(Row) == 64, "kernels/tensors.py writes eight words a row");

// Types are 5 * (that of the first tensor) + (that of the second), and the addresses
//   EMA: teacher and student;
//   AdamW: parameter, gradient, exp_avg, exp_avg_sq, step (one float), and the teacher or none;
//   LARS: parameter, gradient, momentum buffer or none, -, -, and the teacher or none.
// The second of an optimiser is the teacher; all but it have the type of the parameter.
enum TypeCode { float32_code, float64_code, bfloat16_code, float16_code, none_code };

struct None {};  // the type of a tensor that is not there
template <typename T>
constexpr bool is_none = false;
template <>
inline constexpr bool is_none<None> = true;

template <typename F>
SSLFAST_ON_DEVICE void with_type(int code, F f) {
    switch (code) {
        case float32_code: return f(float{});
        case float64_code: return f(double{});
        case bfloat16_code: return f(BFloat16{});
        case float16_code: return f(Float16{});
        default: return f(None{});
    }
}

// Calls f(first, second) with two values of a row's types; the first is never None.
template <typename F>
SSLFAST_ON_DEVICE void with_types(int types, F f) {
    with_type(types / 5, [&](auto first) {
        if constexpr (!is_none<decltype(first)>)
            with_type(types % 5, [&](auto second) { f(first, second); });
    });
}

// Types with the second taken away where the teacher stays as it is.
SSLFAST_HOST_DEVICE constexpr int types_without_teacher(int types, bool stays) {
    return stays ? types / 5 * 5 + none_code : types;
}

// Tensor n of a row from element `begin` on.
template <typename T>
SSLFAST_HOST_DEVICE T* slice(const Row& row, int n, std::int64_t begin) {
    return reinterpret_cast<T*>(row.address[n]) + begin;
}

}  // namespace sslfast
