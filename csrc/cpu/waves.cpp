// Cosines and sines of the multiples of an angle at one level of the instruction set: compiled
// several times, with SSLFAST_LEVEL its name and SSLFAST_VECTOR_BYTES its vector. As in tile.cpp,
// nothing of the standard library here.
//
// exp(i k x) is the k-th power of exp(i x): four operations for every multiple, and a polynomial
// for the first alone. An error of the first, some 2^-25, is k times as large in the k-th.
#include "waves.h"

#define SSLFAST_JOIN_(a, b) a##b
#define SSLFAST_JOIN(a, b) SSLFAST_JOIN_(a, b)
#define SSLFAST_INLINE inline __attribute__((always_inline))

namespace sslfast::cpu {
namespace {

typedef float Vector __attribute__((vector_size(SSLFAST_VECTOR_BYTES)));

constexpr int lanes = SSLFAST_VECTOR_BYTES / 4;
// Rows whose powers stay in registers, so that sums and coefficients are read once for all.
#if SSLFAST_VECTOR_BYTES == 64 || defined(__aarch64__)
constexpr int group = 4;  // 32 registers
#else
constexpr int group = 2;  // 16 registers
#endif

SSLFAST_INLINE Vector load(const float* p) {
    Vector v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}
SSLFAST_INLINE void store(float* p, Vector v) { __builtin_memcpy(p, &v, sizeof v); }

// Cosine and sine to about 1 ulp; NaN of what is not finite. The nearest multiple of pi / 2 is
// subtracted in double, so that angles may be large: up to 1e8 the rest errs by less than 1e-8, and
// from 1e15 on it is no more than bounded, as what a float is of such an angle. Polynomials: Cephes
// sinf and cosf.
SSLFAST_INLINE void turn(double x, float& cosine, float& sine) {
    constexpr double round_magic =
        6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer
    const double shifted = x * 0.63661977236758134308 + round_magic;
    const float rest = static_cast<float>(x - (shifted - round_magic) * 1.57079632679489661923);
    constexpr float most = 0.7853982f;
    const float below = rest > most ? most : rest;  // NaN passes
    const float r = below < -most ? -most : below;
    std::uint64_t bits;
    __builtin_memcpy(&bits, &shifted, sizeof bits);
    const std::uint32_t quarter = static_cast<std::uint32_t>(bits);
    const float q = r * r;
    const float s = r + r * q * (-1.6666654611e-1f + q * (8.3321608736e-3f - q * 1.9515295891e-4f));
    const float c =
        1.0f - 0.5f * q +
        q * q * (4.166664568298827e-2f + q * (-1.388731625493765e-3f + q * 2.443315711809948e-5f));
    const bool odd = quarter & 1u;
    const float u = odd ? s : c, v = odd ? c : s;
    cosine = (quarter + 1u) & 2u ? -u : u;
    sine = quarter & 2u ? -v : v;
}

// exp(i step p) of a group of rows and as many columns as a vector has; 0 beyond what there is.
struct Turns {
    float cosine[group][lanes] = {}, sine[group][lanes] = {};
};

SSLFAST_INLINE void turns(const float* p, std::ptrdiff_t ld, int rows, int columns, double step,
                          Turns& found) {
    if (rows == group && columns == lanes) {
        for (int i = 0; i < group; ++i) {
#pragma omp simd
            for (int j = 0; j < lanes; ++j)
                turn(step * p[i * ld + j], found.cosine[i][j], found.sine[i][j]);
        }
        return;
    }
    found = Turns{};
    for (int i = 0; i < rows; ++i)
        for (int j = 0; j < columns; ++j)
            turn(step * p[i * ld + j], found.cosine[i][j], found.sine[i][j]);
}

SSLFAST_INLINE int smaller(std::int64_t a, int b) { return a < b ? static_cast<int>(a) : b; }

void sums(const float* p, std::ptrdiff_t ld, std::int64_t rows, int columns, double step, int count,
          float* cosines, float* sines) {
    Turns first;
    for (int j = 0; j < columns; j += lanes) {
        for (std::int64_t i = 0; i < rows; i += group) {
            turns(p + i * ld + j, ld, smaller(rows - i, group), smaller(columns - j, lanes), step,
                  first);
            Vector c[group], s[group], x[group], y[group];
            for (int r = 0; r < group; ++r) {
                c[r] = x[r] = load(first.cosine[r]);
                s[r] = y[r] = load(first.sine[r]);
            }
            for (int k = 0; k < count; ++k) {
                float *to_c = cosines + k * wave_columns + j, *to_s = sines + k * wave_columns + j;
                Vector sum_c = x[0], sum_s = y[0];
#pragma GCC unroll 4
                for (int r = 1; r < group; ++r) sum_c += x[r], sum_s += y[r];
                store(to_c, load(to_c) + sum_c);
                store(to_s, load(to_s) + sum_s);
#pragma GCC unroll 4
                for (int r = 0; r < group; ++r) {
                    const Vector real = x[r] * c[r] - y[r] * s[r];
                    y[r] = x[r] * s[r] + y[r] * c[r];
                    x[r] = real;
                }
            }
        }
    }
}

// Horner's scheme: the sum is the real part of sum_k (of_cos_k - i of_sin_k) exp(i k step p).
void gradient(float* p, std::ptrdiff_t ld, std::int64_t rows, int columns, double step, int count,
              const float* of_cos, const float* of_sin) {
    Turns first;
    for (int j = 0; j < columns; j += lanes) {
        for (std::int64_t i = 0; i < rows; i += group) {
            const int height = smaller(rows - i, group), width = smaller(columns - j, lanes);
            float* here = p + i * ld + j;
            turns(here, ld, height, width, step, first);
            Vector c[group], s[group], x[group] = {}, y[group] = {};
            for (int r = 0; r < group; ++r) {
                c[r] = load(first.cosine[r]);
                s[r] = load(first.sine[r]);
            }
            for (int k = count - 1; k >= 0; --k) {
                const Vector a = load(of_cos + k * wave_columns + j);
                const Vector b = load(of_sin + k * wave_columns + j);
#pragma GCC unroll 4
                for (int r = 0; r < group; ++r) {
                    const Vector real = x[r] + a, imaginary = y[r] - b;
                    x[r] = real * c[r] - imaginary * s[r];
                    y[r] = real * s[r] + imaginary * c[r];
                }
            }
            for (int r = 0; r < height; ++r) {
                if (width == lanes) {
                    store(here + r * ld, x[r]);
                    continue;
                }
                for (int l = 0; l < width; ++l) here[r * ld + l] = x[r][l];
            }
        }
    }
}

}  // namespace

extern const WaveKernels SSLFAST_JOIN(wave_kernels_, SSLFAST_LEVEL);
const WaveKernels SSLFAST_JOIN(wave_kernels_, SSLFAST_LEVEL) = {sums, gradient};

}  // namespace sslfast::cpu
