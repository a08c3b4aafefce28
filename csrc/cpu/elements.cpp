// Elementwise updates of slices of tensors at one level of the instruction set: compiled several
// times, with SSLFAST_LEVEL its name. As in tile.cpp, nothing of the standard library here.
#include "elements.h"

#include <sslfast/floats.h>

#define SSLFAST_JOIN_(a, b) a##b
#define SSLFAST_JOIN(a, b) SSLFAST_JOIN_(a, b)

namespace sslfast::cpu {
namespace {

template <typename T, typename S>
void ema_slice(T* __restrict__ teacher, const S* __restrict__ student, std::int64_t n,
               double momentum) {
    if (momentum == 0) {
        for (std::int64_t i = 0; i < n; ++i) teacher[i] = converted<T>(student[i]);
        return;
    }
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) follow(teacher[i], student[i], 1 - momentum);
}

void ema(const Row& row, std::int64_t begin, std::int64_t end, double momentum) {
    with_types(row.types, [&](auto t, auto s) {
        if constexpr (!is_none<decltype(s)>)
            ema_slice(slice<decltype(t)>(row, 0, begin), slice<const decltype(s)>(row, 1, begin),
                      end - begin, momentum);
    });
}

template <typename P, typename E>
void adamw_slice(P* __restrict__ p, const P* __restrict__ g, P* __restrict__ m, P* __restrict__ v,
                 E* __restrict__ teacher, std::int64_t n, const AdamwNumbers<double>& numbers,
                 double weight) {
    using A = decltype(widen(P{}));
    const auto a = numbers_as<A>(numbers);
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) {
        A parameter = widen(p[i]), exp_avg = widen(m[i]), exp_avg_sq = widen(v[i]);
        sslfast::adamw<A>(a, widen(g[i]), parameter, exp_avg, exp_avg_sq);
        p[i] = narrow<P>(parameter);
        m[i] = narrow<P>(exp_avg);
        v[i] = narrow<P>(exp_avg_sq);
        if constexpr (!is_none<E>) follow(teacher[i], p[i], weight);
    }
}

template <typename P, typename E>
void lars_slice(P* __restrict__ p, const P* __restrict__ g, P* __restrict__ buffer,
                E* __restrict__ teacher, std::int64_t n, const LarsNumbers<double>& numbers,
                double weight) {
    using A = decltype(widen(P{}));
    const auto a = numbers_as<A>(numbers);
    const bool has_buffer = buffer != nullptr;
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) {
        A parameter = widen(p[i]), momentum = has_buffer ? widen(buffer[i]) : A(0);
        sslfast::lars<A>(a, widen(g[i]), parameter, momentum);
        p[i] = narrow<P>(parameter);
        if (has_buffer) buffer[i] = narrow<P>(momentum);
        if constexpr (!is_none<E>) follow(teacher[i], p[i], weight);
    }
}

void adamw(const Row& row, std::int64_t begin, std::int64_t end,
           const AdamwNumbers<double>& numbers, double momentum) {
    with_types(types_without_teacher(row.types, momentum == 1), [&](auto p, auto e) {
        using P = decltype(p);
        adamw_slice(slice<P>(row, 0, begin), slice<const P>(row, 1, begin), slice<P>(row, 2, begin),
                    slice<P>(row, 3, begin), slice<decltype(e)>(row, 5, begin), end - begin,
                    numbers, 1 - momentum);
    });
}

void lars(const Row& row, std::int64_t begin, std::int64_t end, const LarsNumbers<double>& numbers,
          double momentum) {
    with_types(types_without_teacher(row.types, momentum == 1), [&](auto p, auto e) {
        using P = decltype(p);
        P* buffer = row.address[2] == 0 ? nullptr : slice<P>(row, 2, begin);
        lars_slice(slice<P>(row, 0, begin), slice<const P>(row, 1, begin), buffer,
                   slice<decltype(e)>(row, 5, begin), end - begin, numbers, 1 - momentum);
    });
}

}  // namespace

extern const ElementKernels SSLFAST_JOIN(element_kernels_, SSLFAST_LEVEL);
const ElementKernels SSLFAST_JOIN(element_kernels_, SSLFAST_LEVEL) = {ema, adamw, lars};

}  // namespace sslfast::cpu
