// Marks code that C++ for the CPU, CUDA kernels and the emulation of kernels share.
#pragma once

#ifdef __CUDACC__
#define SSLFAST_HOST_DEVICE __host__ __device__ __forceinline__
#define SSLFAST_ON_DEVICE __device__ __forceinline__    // takes lambdas, which are of one side
#define SSLFAST_KERNEL_CODE __device__ __forceinline__  // calls a Machine: fragments.h
#define SSLFAST_UNROLL _Pragma("unroll")
#define SSLFAST_ROLLED _Pragma("unroll 1")  // saves registers
#else
// Always inlined: files are compiled for several levels of the instruction set, and the linker
// would keep one level's copy of a function for all.
#define SSLFAST_HOST_DEVICE inline __attribute__((always_inline))
#define SSLFAST_ON_DEVICE SSLFAST_HOST_DEVICE
#define SSLFAST_KERNEL_CODE inline
#define SSLFAST_UNROLL
#define SSLFAST_ROLLED
#endif
