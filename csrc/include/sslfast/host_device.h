// Marks what C++ for the CPU, CUDA kernels and the emulation of kernels share.
#pragma once

#ifdef __CUDACC__
#define SSLFAST_HOST_DEVICE __host__ __device__ __forceinline__
#define SSLFAST_KERNEL_CODE __device__ __forceinline__  // calls a Machine: fragments.h
#define SSLFAST_UNROLL _Pragma("unroll")
#define SSLFAST_ROLLED _Pragma("unroll 1")  // spares registers
#else
#define SSLFAST_HOST_DEVICE inline
#define SSLFAST_KERNEL_CODE inline
#define SSLFAST_UNROLL
#define SSLFAST_ROLLED
#endif
