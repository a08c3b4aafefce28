// What the launchers of the similarity softmax share.
#pragma once

#include <sslfast/cuda.h>
#include <sslfast/similarity_plan.h>

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace sslfast::cuda {

// Throws what CUDA says, with the kernel and the sizes.
inline void check(cudaError_t error, const char* kernel, const Similarities& p) {
    if (error == cudaSuccess) return;
    throw std::runtime_error(std::string(kernel) + " (" + std::to_string(p.m) + " x " +
                             std::to_string(p.n) + " logits, " + std::to_string(p.dim) +
                             " features): " + cudaGetErrorString(error));
}

inline Gpu current_gpu(const Similarities& p) {
    constexpr auto what = "similarity_softmax, properties of the GPU";
    int device = 0;
    Gpu gpu{};
    check(cudaGetDevice(&device), what, p);
    check(cudaDeviceGetAttribute(&gpu.multiprocessors, cudaDevAttrMultiProcessorCount, device),
          what, p);
    check(
        cudaDeviceGetAttribute(&gpu.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
        what, p);
    return gpu;
}

template <class E>
Plan current_plan(const Similarities& p, bool backward) {
    return plan_similarity<E>(p.m, p.n, p.dim, backward, current_gpu(p));
}

template <class E>
Similarity similarity(const Similarities& p, const Plan& plan) {
    const auto matrix = [&](const void* data, std::int64_t rows) {
        const bool aligned = reinterpret_cast<std::uintptr_t>(data) % vector_bytes == 0 &&
                             std::int64_t{p.dim} * E::bytes % vector_bytes == 0;
        return Matrix{static_cast<const char*>(data), static_cast<int>(rows), p.dim, aligned};
    };
    const Matrix x = matrix(p.rows, p.m), y = matrix(p.columns, p.n);
    return {x, y, p.scale, p.pairing, plan.panels, plan.stages, plan.resident};
}

// Launches kernel<<<...>>>(arguments...) with the plan's grid and shared memory.
template <class T, class Kernel, class... Arguments>
void launch(Kernel kernel, const char* name, const Similarities& p, const Plan& plan, void* stream,
            Arguments... arguments) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               plan.shared_bytes),
          name, p);
    const dim3 grid(static_cast<unsigned>(plan.row_blocks),
                    static_cast<unsigned>(plan.gradient_panels),
                    static_cast<unsigned>(plan.splits));
    kernel<<<grid, T::threads, static_cast<unsigned>(plan.shared_bytes),
             static_cast<cudaStream_t>(stream)>>>(arguments...);
    check(cudaGetLastError(), name, p);
}

// Calls f(element) for the arithmetic of a problem.
template <class F>
auto with_element(Arithmetic arithmetic, F f) {
    switch (arithmetic) {
        case Arithmetic::bfloat16: return f(Bf16{});
        case Arithmetic::float16: return f(Fp16{});
        case Arithmetic::tf32: return f(Tf32{});
        default: return f(Ieee32{});
    }
}

}  // namespace sslfast::cuda
