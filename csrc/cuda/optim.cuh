// What multi-tensor optimiser steps share: loads, the update, and stores, also of the EMA teacher.
#pragma once

#include <sslfast/update.h>

#include "chunks.cuh"

namespace sslfast::cuda {

template <typename E, int n>
__device__ __forceinline__ auto load_teacher(const E* teacher) {
    if constexpr (is_none<E>)
        return None{};
    else
        return load<n>(teacher);
}

// Calls update(gradient, parameter, first, second) for every element of a chunk, with its moments.
// A moment that does not exist is 0: the second of one, or the only one of a row without it.
template <typename P, typename E, int moments, typename Update>
__device__ __forceinline__ void step_chunk(const Chunk& chunk, double momentum, Update update) {
    using A = decltype(widen(P{}));
    P* parameters = slice<P>(chunk.row, 0, chunk.begin);
    const P* gradients = slice<const P>(chunk.row, 1, chunk.begin);
    P* moment[2] = {slice<P>(chunk.row, 2, chunk.begin), slice<P>(chunk.row, 3, chunk.begin)};
    const bool has_moments = moments == 2 || chunk.row.address[2] != 0;
    E* teachers = slice<E>(chunk.row, 5, chunk.begin);
    for_elements<width_of<P, P>>(chunk, [&](int i, auto width) {
        constexpr int n = decltype(width)::value;
        auto p = load<n>(parameters + i);
        const auto g = load<n>(gradients + i);
        Pack<P, n> m[2] = {};
#pragma unroll
        for (int j = 0; j < moments; ++j)
            if (has_moments) m[j] = load<n>(moment[j] + i);
        auto teacher = load_teacher<E, n>(teachers + i);
#pragma unroll
        for (int k = 0; k < n; ++k) {
            A parameter = widen(p.value[k]);
            A first = widen(m[0].value[k]), second = widen(m[1].value[k]);
            update(widen(g.value[k]), parameter, first, second);
            p.value[k] = narrow<P>(parameter);
            m[0].value[k] = narrow<P>(first);
            m[1].value[k] = narrow<P>(second);
            if constexpr (!is_none<E>) follow(teacher.value[k], p.value[k], 1 - momentum);
        }
        store(parameters + i, p);
#pragma unroll
        for (int j = 0; j < moments; ++j)
            if (has_moments) store(moment[j] + i, m[j]);
        if constexpr (!is_none<E>) store(teachers + i, teacher);
    });
}

}  // namespace sslfast::cuda
