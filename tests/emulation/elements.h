// Elements of the tensor cores in software: bits to numbers, and rounding to nearest.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include <sslfast/fragments.h>

namespace sslfast::emulation {

inline float from_bits(std::uint32_t word) {
    float value;
    std::memcpy(&value, &word, 4);
    return value;
}

inline std::uint32_t to_bits(float value) {
    std::uint32_t word;
    std::memcpy(&word, &value, 4);
    return word;
}

inline std::uint16_t element_bits(Bf16, float value) {
    std::uint32_t word = to_bits(value);
    if (std::isnan(value)) return 0x7fff;
    word += 0x7fff + (word >> 16 & 1);  // ties to even
    return static_cast<std::uint16_t>(word >> 16);
}

inline std::uint16_t element_bits(Fp16, float value) {
    const auto sign = static_cast<std::uint16_t>(to_bits(value) >> 16 & 0x8000);
    const float size = std::fabs(value);
    if (std::isnan(value)) return 0x7fff;
    if (size >= 65520.0f) return sign | 0x7c00;
    int exponent = 0;
    std::frexp(size, &exponent);  // size < 2^exponent
    if (size == 0.0f || exponent < -13) exponent = -13;
    // In units of the last place, which nearbyint rounds to even; a carry moves into the exponent.
    const auto units = static_cast<int>(std::nearbyint(std::ldexp(size, 11 - exponent)));
    return sign | static_cast<std::uint16_t>(units + (exponent + 13) * 1024);
}

// Round to nearest, ties away from zero: cvt.rna.tf32.f32.
inline std::uint32_t rounded_to_tf32(std::uint32_t word) {
    const bool finite = (word & 0x7f800000) != 0x7f800000;
    return finite ? (word + 0x1000) & 0xffffe000 : word;
}

inline float element_value(Bf16, std::uint32_t word, int e) {
    return from_bits(e == 0 ? word << 16 : word & 0xffff0000);
}

inline float element_value(Fp16, std::uint32_t word, int e) {
    const std::uint32_t bits = word >> 16 * e & 0xffff;
    const int exponent = static_cast<int>(bits >> 10 & 31);
    const auto fraction = static_cast<float>(bits & 1023);
    const float size = exponent == 31  ? (fraction == 0 ? INFINITY : NAN)
                       : exponent == 0 ? std::ldexp(fraction, -24)
                                       : std::ldexp(fraction + 1024, exponent - 25);
    return bits & 0x8000 ? -size : size;
}

inline float element_value(Tf32, std::uint32_t word, int) { return from_bits(word & 0xffffe000); }
inline float element_value(Ieee32, std::uint32_t word, int) { return from_bits(word); }

}  // namespace sslfast::emulation
