// The floating-point types of tensors: 16-bit formats as bits, and the types for arithmetic. Plain
// integer arithmetic, so that conversions vectorise at every level of the instruction set, rounding
// to nearest even as PyTorch does; on a GPU the hardware's own conversions.
#pragma once

#include <cstdint>

#include <sslfast/host_device.h>

#ifdef __CUDA_ARCH__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace sslfast {

struct BFloat16 {
    std::uint16_t bits;
};
struct Float16 {
    std::uint16_t bits;
};

SSLFAST_HOST_DEVICE float float_of(std::uint32_t bits) {
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}

SSLFAST_HOST_DEVICE std::uint32_t bits_of(float value) {
    std::uint32_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    return bits;
}

SSLFAST_HOST_DEVICE float widen(float x) { return x; }
SSLFAST_HOST_DEVICE double widen(double x) { return x; }
SSLFAST_HOST_DEVICE float widen(BFloat16 x) { return float_of(std::uint32_t{x.bits} << 16); }

SSLFAST_HOST_DEVICE float widen(Float16 x) {
#ifdef __CUDA_ARCH__
    return __half2float(__ushort_as_half(x.bits));
#else
    // Exponent and mantissa shifted into place, the exponent rebiased by 112; of infinities by 224;
    // subnormal numbers gain an implicit one, which a subtraction takes off again.
    const std::uint32_t magnitude = (std::uint32_t{x.bits} & 0x7fffu) << 13;
    const std::uint32_t exponent = magnitude & 0x0f800000u;
    const std::uint32_t rebased = magnitude + 0x38000000u;
    const float subnormal = float_of(rebased + 0x00800000u) - float_of(0x38800000u);
    const std::uint32_t large = exponent == 0x0f800000u ? rebased + 0x38000000u : rebased;
    const std::uint32_t bits = exponent == 0 ? bits_of(subnormal) : large;
    return float_of(bits | (std::uint32_t{x.bits} & 0x8000u) << 16);
#endif
}

template <typename T>
SSLFAST_HOST_DEVICE T narrow(double x) {
    return static_cast<T>(x);
}
template <typename T>
SSLFAST_HOST_DEVICE T narrow(float x) {
    return static_cast<T>(x);
}

template <>
SSLFAST_HOST_DEVICE BFloat16 narrow<BFloat16>(float x) {
#ifdef __CUDA_ARCH__
    return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
#else
    const std::uint32_t bits = bits_of(x);
    const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return {static_cast<std::uint16_t>(is_nan ? 0x7fc0u : rounded)};
#endif
}

template <>
SSLFAST_HOST_DEVICE Float16 narrow<Float16>(float x) {
#ifdef __CUDA_ARCH__
    return {__half_as_ushort(__float2half_rn(x))};
#else
    const std::uint32_t sign = bits_of(x) & 0x80000000u, magnitude = bits_of(x) ^ sign;
    const std::uint32_t normal = (magnitude + 0xc8000fffu + ((magnitude >> 13) & 1u)) >> 13;
    // Adding 1/2 leaves the bits of a subnormal number at the end of the mantissa, rounded.
    const std::uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
    const std::uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    const std::uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
    const std::uint32_t bits = magnitude >= 0x47800000u ? special : finite;
    return {static_cast<std::uint16_t>(bits | sign >> 16)};
#endif
}

// A double reaches a 16-bit format through float, as in PyTorch.
template <>
SSLFAST_HOST_DEVICE BFloat16 narrow<BFloat16>(double x) {
    return narrow<BFloat16>(static_cast<float>(x));
}
template <>
SSLFAST_HOST_DEVICE Float16 narrow<Float16>(double x) {
    return narrow<Float16>(static_cast<float>(x));
}

// The type for arithmetic between tensors of these types: double where one is double, else float.
template <typename A, typename B>
struct Arithmetic {
    using type = decltype(widen(A{}) + widen(B{}));
};

}  // namespace sslfast
