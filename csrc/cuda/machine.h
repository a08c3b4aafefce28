// The Machine of csrc/include/sslfast/fragments.h on a GPU: sm_80 instructions, in PTX where CUDA
// C++ has no name for them. With SSLFAST_CUDA_DEBUG, shared offsets and alignments are checked.
#pragma once

#ifdef SSLFAST_CUDA_DEBUG
#undef NDEBUG
#endif
#include <cassert>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include <sslfast/fragments.h>

namespace sslfast::cuda {

extern __shared__ uint4 shared_memory[];

class Machine {
  public:
    __device__ __forceinline__ Machine()
        : shared_(static_cast<unsigned>(__cvta_generic_to_shared(shared_memory))) {}

    __device__ __forceinline__ int thread() const { return static_cast<int>(threadIdx.x); }
    __device__ __forceinline__ int lane() const { return thread() % warp_size; }
    __device__ __forceinline__ int warp() const { return thread() / warp_size; }
    __device__ __forceinline__ int block_x() const { return static_cast<int>(blockIdx.x); }
    __device__ __forceinline__ int block_y() const { return static_cast<int>(blockIdx.y); }
    __device__ __forceinline__ int block_z() const { return static_cast<int>(blockIdx.z); }

    __device__ __forceinline__ float as_float(std::uint32_t word) const {
        return __uint_as_float(word);
    }
    __device__ __forceinline__ std::uint32_t as_word(float value) const {
        return __float_as_uint(value);
    }
    __device__ __forceinline__ float infinity() const { return __uint_as_float(0x7f800000); }
    __device__ __forceinline__ float absolute(float a) const { return fabsf(a); }
    __device__ __forceinline__ float maximum(float a, float b) const { return fmaxf(a, b); }
    __device__ __forceinline__ float multiply_add(float a, float b, float c) const {
        return fmaf(a, b, c);
    }
    // To 2 ulp; results below 2^-126 are flushed to zero.
    __device__ __forceinline__ float exp2(float a) const {
        float power;
        asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(a));
        return power;
    }
    __device__ __forceinline__ float log2(float a) const { return log2f(a); }
    __device__ __forceinline__ float shuffle(float value, int lane) const {
        return __shfl_sync(0xffffffffu, value, lane);
    }
    __device__ __forceinline__ float shuffle_xor(float value, int mask) const {
        return __shfl_xor_sync(0xffffffffu, value, mask);
    }
    __device__ __forceinline__ void synchronize() const { __syncthreads(); }

    __device__ __forceinline__ Fragment load_vector(unsigned from) const {
        Fragment v;
        asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
                     : "r"(at(from, vector_bytes)));
        return v;
    }
    __device__ __forceinline__ std::uint32_t load_word(unsigned from) const {
        std::uint32_t word;
        asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(at(from, 4)));
        return word;
    }
    __device__ __forceinline__ void store_vector(unsigned to, Fragment v) const {
        asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(at(to, vector_bytes)),
                     "r"(v.word[0]), "r"(v.word[1]), "r"(v.word[2]), "r"(v.word[3])
                     : "memory");
    }
    __device__ __forceinline__ void store_word(unsigned to, std::uint32_t word) const {
        asm volatile("st.shared.u32 [%0], %1;" ::"r"(at(to, 4)), "r"(word) : "memory");
    }

    // Asynchronous copies from global memory; zeros where not `inside`, and nothing is read.
    __device__ __forceinline__ void copy_vector(unsigned to, const char* from, bool inside) const {
        check(reinterpret_cast<std::uintptr_t>(from) % vector_bytes == 0);
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at(to, vector_bytes)),
                     "l"(__cvta_generic_to_global(from)), "r"(inside ? 16 : 0)
                     : "memory");
    }
    __device__ __forceinline__ void copy_word(unsigned to, const float* from, bool inside) const {
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(at(to, 4)),
                     "l"(__cvta_generic_to_global(from)), "r"(inside ? 4 : 0)
                     : "memory");
    }
    __device__ __forceinline__ void commit_copies() const {
        asm volatile("cp.async.commit_group;" ::: "memory");
    }
    // Until all but the last `pending` groups have arrived.
    __device__ __forceinline__ void wait_copies(int pending) const {
        if (pending == 0)
            asm volatile("cp.async.wait_group 0;" ::: "memory");
        else
            asm volatile("cp.async.wait_group 1;" ::: "memory");
    }

    __device__ __forceinline__ Fragment load_matrices(unsigned row) const {
        Fragment m;
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(m.word[0]), "=r"(m.word[1]), "=r"(m.word[2]), "=r"(m.word[3])
                     : "r"(at(row, vector_bytes)));
        return m;
    }
    __device__ __forceinline__ Fragment load_matrices_transposed(unsigned row) const {
        Fragment m;
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(m.word[0]), "=r"(m.word[1]), "=r"(m.word[2]), "=r"(m.word[3])
                     : "r"(at(row, vector_bytes)));
        return m;
    }

    // Words as tensor cores take them: float32 is rounded to TF32, where they would truncate.
    template <class E>
    __device__ __forceinline__ Fragment operand(E, Fragment words) const {
        if constexpr (std::is_same_v<E, Tf32>) {
#pragma unroll
            for (int w = 0; w < 4; ++w)
                asm("cvt.rna.tf32.f32 %0, %1;"
                    : "=r"(words.word[w])
                    : "f"(__uint_as_float(words.word[w])));
        }
        return words;
    }
    __device__ __forceinline__ std::uint32_t pack(Bf16, float low, float high) const {
        std::uint32_t word;
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
        return word;
    }
    __device__ __forceinline__ std::uint32_t pack(Fp16, float low, float high) const {
        std::uint32_t word;
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
        return word;
    }

// c += a b by one of the mma instructions of sm_80.
#define SSLFAST_MULTIPLY(Element, instruction)                                                  \
    __device__ __forceinline__ void multiply(Element, const Fragment& a, std::uint32_t b0,      \
                                             std::uint32_t b1, float (&c)[4]) const {           \
        asm volatile("mma.sync.aligned." instruction                                            \
                     " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"         \
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                           \
                     : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "r"(b0), \
                       "r"(b1));                                                                \
    }
    SSLFAST_MULTIPLY(Bf16, "m16n8k16.row.col.f32.bf16.bf16.f32")
    SSLFAST_MULTIPLY(Fp16, "m16n8k16.row.col.f32.f16.f16.f32")
    SSLFAST_MULTIPLY(Tf32, "m16n8k8.row.col.f32.tf32.tf32.f32")
#undef SSLFAST_MULTIPLY

  private:
    static __device__ __forceinline__ void check([[maybe_unused]] bool right) {
#ifdef SSLFAST_CUDA_DEBUG
        assert(right);
#endif
    }
    // The address of an offset into shared memory.
    __device__ __forceinline__ unsigned at(unsigned offset, [[maybe_unused]] unsigned bytes) const {
#ifdef SSLFAST_CUDA_DEBUG
        unsigned size;
        asm volatile("mov.u32 %0, %%dynamic_smem_size;" : "=r"(size));
        check(offset % bytes == 0 && offset + bytes <= size);
#endif
        return shared_ + offset;
    }

    unsigned shared_;
};

}  // namespace sslfast::cuda
