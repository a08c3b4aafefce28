// The tile kernels of one level of the instruction set: compiled several times, with SSLFAST_LEVEL
// its name and SSLFAST_VECTOR_BYTES its vector. No templates or inline functions of the standard
// library here: the linker keeps one copy of them for all levels, perhaps one of a higher level.
#include "tile.h"

#define SSLFAST_JOIN_(a, b) a##b
#define SSLFAST_JOIN(a, b) SSLFAST_JOIN_(a, b)
#define SSLFAST_STRING_(a) #a
#define SSLFAST_STRING(a) SSLFAST_STRING_(a)
#define SSLFAST_INLINE inline __attribute__((always_inline))
#define SSLFAST_LAMBDA __attribute__((always_inline))

namespace sslfast::cpu {
namespace {

typedef float Vector __attribute__((vector_size(SSLFAST_VECTOR_BYTES), aligned(4)));

constexpr int lanes = SSLFAST_VECTOR_BYTES / 4;
constexpr int width = 2 * lanes;
// Accumulators of a register tile: max_rows x 2 vectors, beside two of B and one of A.
#if SSLFAST_VECTOR_BYTES == 64 || defined(__aarch64__)
constexpr int max_rows = 12;  // 32 registers
#else
constexpr int max_rows = 6;  // 16 registers
#endif
// Blocking of k. Register tiles of 12 rows read the panel [depth, width] seldom enough for it to be
// in the L2 cache; smaller ones want it in the L1 cache.
constexpr int depth = max_rows == 12 ? 512 : 256;

SSLFAST_INLINE Vector load(const float* p) { return *reinterpret_cast<const Vector*>(p); }
SSLFAST_INLINE void store(float* p, Vector v) { *reinterpret_cast<Vector*>(p) = v; }

// What to prefetch: `lines` cache lines of 64 bytes in each row.
struct Prefetch {
    const float* data;
    std::ptrdiff_t row;  // floats from a row to the next
    int rows, lines;
};

// The micro-kernel: c [R, width] (+)= factor a [R, k] b [k, width], a register tile. It prefetches
// c, then what the next ones read, a line or two a step: a burst of misses would stall the loads.
template <int R>
SSLFAST_INLINE void block(int k, Strided a, const float* b, const Factor* factor, bool accumulate,
                          float* c, std::ptrdiff_t ldc, Prefetch ahead) {
    Vector sum[R][2] = {};
    const float* x = a.data;
    int step = 0;
    const auto steps_to = [&](int end, auto prefetch) SSLFAST_LAMBDA {
        for (end = end < k ? end : k; step < end; ++step, x += a.column, b += width) {
            prefetch();
            const Vector b0 = load(b), b1 = load(b + lanes);
#pragma GCC unroll 12
            for (int i = 0; i < R; ++i) {
                const float xi = x[i * a.row];
                sum[i][0] += xi * b0;
                sum[i][1] += xi * b1;
            }
        }
    };
    steps_to(R, [&]() SSLFAST_LAMBDA {
        __builtin_prefetch(c + step * ldc, 1);
        __builtin_prefetch(c + step * ldc + lanes, 1);
    });
    for (int row = 0; row < ahead.rows; ++row) {
        const float* line = ahead.data + row * ahead.row;
        steps_to(step + ahead.lines, [&]() SSLFAST_LAMBDA {
            __builtin_prefetch(line, 0, 2);
            line += 16;
        });
    }
    steps_to(k, [] {});
    if (factor != nullptr) {
#pragma GCC unroll 12
        for (int i = 0; i < R; ++i)
            for (Vector& s : sum[i]) s = s * factor->high + s * factor->low;
    }
    if (accumulate) {
#pragma GCC unroll 12
        for (int i = 0; i < R; ++i) {
            sum[i][0] += load(c + i * ldc);
            sum[i][1] += load(c + i * ldc + lanes);
        }
    }
#pragma GCC unroll 12
    for (int i = 0; i < R; ++i) {
        store(c + i * ldc, sum[i][0]);
        store(c + i * ldc + lanes, sum[i][1]);
    }
}

template <int R>
SSLFAST_INLINE void block_rows(int rows, int k, Strided a, const float* b, const Factor* factor,
                               bool accumulate, float* c, std::ptrdiff_t ldc) {
    if (rows == R) return block<R>(k, a, b, factor, accumulate, c, ldc, Prefetch{nullptr, 0, 0, 0});
    if constexpr (R > 1) block_rows<R - 1>(rows, k, a, b, factor, accumulate, c, ldc);
}

// A register tile at the edge: only `columns` < width columns exist in c.
void partial_block(int rows, int columns, int k, Strided a, const float* b, const Factor* factor,
                   bool accumulate, float* c, std::ptrdiff_t ldc) {
    float whole[max_rows * width] = {};
    for (int i = 0; accumulate && i < rows; ++i)
        for (int j = 0; j < columns; ++j) whole[i * width + j] = c[i * ldc + j];
    block_rows<max_rows>(rows, k, a, b, factor, accumulate, whole, width);
    for (int i = 0; i < rows; ++i)
        for (int j = 0; j < columns; ++j) c[i * ldc + j] = whole[i * width + j];
}

void multiply(int m, int n, int k, Strided a, Panels b, const Factor* factor, bool accumulate,
              float* c, std::ptrdiff_t ldc) {
    if (m < 1) return;
    for (int k0 = 0; k0 < k; k0 += depth) {
        const int ks = k - k0 < depth ? k - k0 : depth;
        const bool add = accumulate || k0 > 0;
        for (int j = 0; j < n; j += width) {
            const float* panel = b.data + j / width * b.stride + k0 * width;
            const std::ptrdiff_t row = ldc != in_panels ? ldc : n - j < width ? n - j : width;
            // Prefetched into the L2 cache: beside the first panel the next rows of a, then the
            // next panel, an equal share with every register tile.
            const float* next = j + width < n ? panel + b.stride : nullptr;
            const int share = next == nullptr ? 0 : (ks * width / 16 * max_rows + m - 1) / m;
            const bool rows_first = j == 0 && a.column == 1;
            for (int i = 0; i < m; i += max_rows) {
                const int rows = m - i < max_rows ? m - i : max_rows;
                const Strided x{a.data + i * a.row + k0 * a.column, a.row, a.column};
                float* out = c + (ldc == in_panels ? j * m : j) + i * row;
                if (n - j < width)
                    partial_block(rows, n - j, ks, x, panel, factor, add, out, row);
                else if (rows == max_rows)
                    block<max_rows>(
                        ks, x, panel, factor, add, out, row,
                        rows_first && i + 2 * max_rows <= m
                            ? Prefetch{x.data + max_rows * a.row, a.row, max_rows, ks / 16}
                            : Prefetch{next + i / max_rows * share * 16, 0, 1, share});
                else
                    block_rows<max_rows>(rows, ks, x, panel, factor, add, out, row);
            }
        }
    }
}

// 2^x to about 1 ulp for x <= 127 (beyond: undefined); exactly 0 below -127, so that elements
// masked with -infinity add nothing; NaN for NaN. Cody-Waite range reduction to [-1/2, 1/2],
// polynomial of degree 6 (coefficients: Cephes exp2f).
SSLFAST_INLINE float exp2_fast(float x) {
    const float clamped = x < -127.0f ? -127.0f : x;  // NaN passes
    constexpr float round_magic = 12582912.0f;        // 1.5 * 2^23: adding it rounds to an integer
    const float shifted = clamped + round_magic;
    const float r = clamped - (shifted - round_magic);
    float p = 1.535336188319500e-4f;
    p = p * r + 1.339887440266574e-3f;
    p = p * r + 9.618437357674640e-3f;
    p = p * r + 5.550332471162809e-2f;
    p = p * r + 2.402264791363012e-1f;
    p = p * r + 6.931472028550421e-1f;
    p = p * r + 1.0f;
    unsigned bits;
    __builtin_memcpy(&bits, &shifted, sizeof bits);
    const unsigned exponent = (bits + 127u) << 23;  // at -127 this is the float 0
    float power;
    __builtin_memcpy(&power, &exponent, sizeof power);
    return p * power;
}

// The minimum and maximum of many numbers; NaNs are ignored.
struct Range {
    float least, greatest;
};

SSLFAST_INLINE Range range(const float* x, int n, Range so_far) {
    float least = so_far.least, greatest = so_far.greatest;
#pragma omp simd reduction(min : least) reduction(max : greatest)
    for (int i = 0; i < n; ++i) {
        least = x[i] < least ? x[i] : least;
        greatest = x[i] > greatest ? x[i] : greatest;
    }
    return {least, greatest};
}

// Where all maxima or log-sum-exps of a tile lie this close together, an element's row and column
// share one exponential: 2^t = 2^(t - a) 2^a for a in their midst. What underflow loses is below
// 2^-67 of a sum.
constexpr float close = 60.0f;

void merge(const float* tile, std::ptrdiff_t ld, int rows, int columns, float* row_maximum,
           float* row_sum, float* column_maximum, float* column_sum, float* scratch) {
    const bool both = column_maximum != nullptr;
    float* new_maximum = scratch;
    for (int j = 0; both && j < columns; ++j) new_maximum[j] = column_maximum[j];
    for (int i = 0; i < rows; ++i) {
        const float* t = tile + i * ld;
        float maximum = row_maximum[i];
        if (both) {
#pragma omp simd reduction(max : maximum)
            for (int j = 0; j < columns; ++j) {
                maximum = t[j] > maximum ? t[j] : maximum;
                new_maximum[j] = t[j] > new_maximum[j] ? t[j] : new_maximum[j];
            }
        } else {
#pragma omp simd reduction(max : maximum)
            for (int j = 0; j < columns; ++j) maximum = t[j] > maximum ? t[j] : maximum;
        }
        row_sum[i] *= exp2_fast(row_maximum[i] - maximum);
        row_maximum[i] = maximum;
    }
#pragma omp simd
    for (int j = 0; j < (both ? columns : 0); ++j) {
        column_sum[j] *= exp2_fast(column_maximum[j] - new_maximum[j]);
        column_maximum[j] = new_maximum[j];
    }
    Range maxima = range(row_maximum, rows, {row_maximum[0], row_maximum[0]});
    if (both) maxima = range(column_maximum, columns, maxima);
    const float all = maxima.greatest;
    const bool share = both && all - maxima.least < close;
    float* column_add = scratch;
    for (int j = 0; share && j < columns; ++j) column_add[j] = 0.0f;
    for (int i = 0; i < rows; ++i) {
        const float* t = tile + i * ld;
        const float maximum = row_maximum[i];
        float sum = 0.0f;
        if (share) {
#pragma omp simd reduction(+ : sum)
            for (int j = 0; j < columns; ++j) {
                const float power = exp2_fast(t[j] - all);
                sum += power;
                column_add[j] += power;
            }
            sum *= exp2_fast(all - maximum);
        } else if (both) {
#pragma omp simd reduction(+ : sum)
            for (int j = 0; j < columns; ++j) {
                sum += exp2_fast(t[j] - maximum);
                column_sum[j] += exp2_fast(t[j] - column_maximum[j]);
            }
        } else {
#pragma omp simd reduction(+ : sum)
            for (int j = 0; j < columns; ++j) sum += exp2_fast(t[j] - maximum);
        }
        row_sum[i] += sum;
    }
#pragma omp simd
    for (int j = 0; j < (share ? columns : 0); ++j)
        column_sum[j] += column_add[j] * exp2_fast(all - column_maximum[j]);
}

void column_sums(const float* tile, std::ptrdiff_t ld, int rows, int columns, float* maximum,
                 float* sum) {
    for (int j = 0; j < columns; ++j) maximum[j] = -1e30f, sum[j] = 0.0f;
    for (int i = 0; i < rows; ++i) {
        const float* t = tile + i * ld;
#pragma omp simd
        for (int j = 0; j < columns; ++j) maximum[j] = t[j] > maximum[j] ? t[j] : maximum[j];
    }
    for (int i = 0; i < rows; ++i) {
        const float* t = tile + i * ld;
#pragma omp simd
        for (int j = 0; j < columns; ++j) sum[j] += exp2_fast(t[j] - maximum[j]);
    }
}

// log(1 + u) for 0 <= u <= 1 with a relative error of about 1 ulp, also for tiny u: twice the
// series of atanh in u / (2 + u) <= 1/3.
SSLFAST_INLINE float log1p_fast(float u) {
    const float s = u / (2.0f + u), q = s * s;
    float p = 1.0f / 15.0f;
    p = p * q + 1.0f / 13.0f;
    p = p * q + 1.0f / 11.0f;
    p = p * q + 1.0f / 9.0f;
    p = p * q + 1.0f / 7.0f;
    p = p * q + 1.0f / 5.0f;
    p = p * q + 1.0f / 3.0f;
    return 2.0f * (s + s * q * p);
}

void sigmoid(float* tile, std::ptrdiff_t ld, int rows, int columns, const float* row_weight,
             float* row_loss) {
    for (int i = 0; i < rows; ++i) {
        float* t = tile + i * ld;
        float sum = 0.0f;
        if (row_weight == nullptr) {
#pragma omp simd reduction(+ : sum)
            for (int j = 0; j < columns; ++j) {
                const float x = t[j];
                sum += (x > 0.0f ? x : 0.0f) + log2_e * log1p_fast(exp2_fast(x > 0.0f ? -x : x));
            }
        } else {
            const float weight = row_weight[i];
#pragma omp simd reduction(+ : sum)
            for (int j = 0; j < columns; ++j) {
                const float x = t[j];
                const float u = exp2_fast(x > 0.0f ? -x : x);
                sum += (x > 0.0f ? x : 0.0f) + log2_e * log1p_fast(u);
                t[j] = weight * (x > 0.0f ? 1.0f : u) / (1.0f + u);
            }
        }
        row_loss[i] += sum;
    }
}

void weigh(float* tile, std::ptrdiff_t ld, int rows, int columns, const float* row_lse,
           const float* row_g, const float* column_lse, const float* column_g, float* scratch) {
    const bool both = row_lse != nullptr && column_lse != nullptr;
    Range lses{0.0f, 0.0f};
    if (both) lses = range(column_lse, columns, range(row_lse, rows, {row_lse[0], row_lse[0]}));
    const bool share = both && lses.greatest - lses.least < close;
    const float middle = 0.5f * (lses.least + lses.greatest);
#pragma omp simd
    for (int j = 0; j < (share ? columns : 0); ++j)
        scratch[j] = column_g[j] * exp2_fast(middle - column_lse[j]);
    for (int i = 0; i < rows; ++i) {
        float* t = tile + i * ld;
        if (share) {
            const float row = row_g[i] * exp2_fast(middle - row_lse[i]);
#pragma omp simd
            for (int j = 0; j < columns; ++j) t[j] = exp2_fast(t[j] - middle) * (row + scratch[j]);
        } else if (column_lse == nullptr) {
            const float lse = row_lse[i], g = row_g[i];
#pragma omp simd
            for (int j = 0; j < columns; ++j) t[j] = g * exp2_fast(t[j] - lse);
        } else if (row_lse == nullptr) {
#pragma omp simd
            for (int j = 0; j < columns; ++j) t[j] = column_g[j] * exp2_fast(t[j] - column_lse[j]);
        } else {
            const float lse = row_lse[i], g = row_g[i];
#pragma omp simd
            for (int j = 0; j < columns; ++j)
                t[j] = g * exp2_fast(t[j] - lse) + column_g[j] * exp2_fast(t[j] - column_lse[j]);
        }
    }
}

void scale(const float* tile, std::ptrdiff_t ld, int rows, int columns, const Factor* row,
           const float* column_high, const float* column_low, float* out) {
    for (int i = 0; i < rows; ++i) {
        const float* t = tile + i * ld;
        float* o = out + i * ld;
        const Factor f = row[i];
#pragma omp simd
        for (int j = 0; j < columns; ++j) {
            const float x = t[j] * f.high + t[j] * f.low;
            o[j] = x * column_high[j] + x * column_low[j];
        }
    }
}

void inner(float* tile, const float* raw, std::ptrdiff_t ld, int rows, int columns,
           const float* row, const float* column, float* row_sum, float* column_sum) {
    for (int i = 0; i < rows; ++i) {
        float* t = tile + i * ld;
        const float* r = raw + i * ld;
        const float factor = row[i];
        float sum = 0.0f;
        if (column_sum == nullptr) {
#pragma omp simd reduction(+ : sum)
            for (int j = 0; j < columns; ++j) {
                t[j] *= factor * column[j];
                sum += t[j] * r[j];
            }
        } else {
#pragma omp simd reduction(+ : sum)
            for (int j = 0; j < columns; ++j) {
                t[j] *= factor * column[j];
                const float product = t[j] * r[j];
                sum += product;
                column_sum[j] += product;
            }
        }
        row_sum[i] += sum;
    }
}

void add(float* tile, const float* other, std::ptrdiff_t ld, int rows, int columns) {
    for (int i = 0; i < rows; ++i) {
        float* t = tile + i * ld;
        const float* o = other + i * ld;
#pragma omp simd
        for (int j = 0; j < columns; ++j) t[j] += o[j];
    }
}

bool split(float* tile, float* positives, std::ptrdiff_t ld, int rows, int columns,
           const int* row_group, const int* column_group, const int* row_ignored,
           const int* column_ignored, float sign, float limit, std::ptrdiff_t own) {
    constexpr float nothing = -__builtin_inff();
    int any = 0;
    for (int i = 0; i < rows; ++i) {
        float* t = tile + i * ld;
        float* p = positives + i * ld;
        const int group = row_group[i], ignored = row_ignored[i];
        const bool has_self = 0 <= i + own && i + own < columns;
        if (has_self) t[i + own] = nothing;  // as a positive of itself too
        int found = 0;
#pragma omp simd reduction(| : found)
        for (int j = 0; j < columns; ++j) {
            const float x = t[j];
            const bool same = group == column_group[j];
            const bool out = same | (ignored == column_ignored[j]) | (sign * x > limit);
            p[j] = same ? x : nothing;
            t[j] = out ? nothing : x;
            found |= same;
        }
        any |= found;
    }
    return any != 0;
}

void soft_targets(float* tile, std::ptrdiff_t ld, int rows, const SoftTargets& a, float* scratch,
                  float* sum, float* usage) {
    const int samples = a.samples, columns = a.teachers * samples;
    for (int r = 0; r < columns + a.students * samples; ++r) sum[r] = 0.0f;
    for (int i = 0; i < rows; ++i) {
        float* t = tile + i * ld;
        float used = 0.0f;
#pragma omp simd reduction(+ : used)
        for (int r = 0; r < columns; ++r) {
            const float x = t[r] - a.greatest[r];
            t[r] = a.factor[r] * exp2_fast(x);
            sum[r] += t[r] * (a.log_total[r] - x);
            used += t[r];
        }
        usage[i] += used;
        for (int s = 0; s < a.students; ++s) {
            const int first = columns + s * samples;
            const float *pairs = a.pairs + s * a.teachers, *greatest = a.greatest + first;
            const float *log_total = a.log_total + first, *factor = a.factor + first;
            float *x = t + first, *total = sum + first;
            for (int r = 0; r < samples; ++r) scratch[r] = 0.0f;
            for (int k = 0; k < a.teachers; ++k) {
                const float pair = pairs[k];
                const float* q = t + k * samples;
                if (pair == 0.0f) continue;
#pragma omp simd
                for (int r = 0; r < samples; ++r) scratch[r] += pair * q[r];
            }
            if (a.upstream == nullptr) {
#pragma omp simd
                for (int r = 0; r < samples; ++r)
                    total[r] += scratch[r] * (log_total[r] - (x[r] - greatest[r]));
                continue;
            }
            const float* upstream = a.upstream + s * samples;
#pragma omp simd
            for (int r = 0; r < samples; ++r) {
                const float score = x[r] - greatest[r], q = scratch[r];
                total[r] += q * (log_total[r] - score);
                x[r] = factor[r] * exp2_fast(score) - upstream[r] * q;
            }
        }
    }
}

// tanh to about 2 ulp: a Pade approximant where 1 - u would cancel.
SSLFAST_INLINE float tanh_fast(float x) {
    const float size = x < 0.0f ? -x : x, q = x * x;
    const float u = exp2_fast(-2.0f * log2_e * size);
    const bool small = size < 0.75f;
    const float above = small ? size * (945.0f + q * (105.0f + q)) : 1.0f - u;
    const float below = small ? 945.0f + q * (420.0f + q * 15.0f) : 1.0f + u;
    const float quotient = above / below;
    return x < 0.0f ? -quotient : quotient;
}

void softcap(float* tile, std::ptrdiff_t ld, int rows, int columns, float inverse, Factor cap) {
    for (int i = 0; i < rows; ++i) {
        float* t = tile + i * ld;
#pragma omp simd
        for (int j = 0; j < columns; ++j) {
            const float share = tanh_fast(inverse * t[j]);
            t[j] = share * cap.high + share * cap.low;
        }
    }
}

}  // namespace

extern const TileKernels SSLFAST_JOIN(tile_kernels_, SSLFAST_LEVEL);
const TileKernels SSLFAST_JOIN(tile_kernels_, SSLFAST_LEVEL) = {SSLFAST_STRING(SSLFAST_LEVEL),
                                                                width,
                                                                multiply,
                                                                merge,
                                                                column_sums,
                                                                sigmoid,
                                                                weigh,
                                                                scale,
                                                                inner,
                                                                add,
                                                                split,
                                                                soft_targets,
                                                                softcap};

}  // namespace sslfast::cpu
