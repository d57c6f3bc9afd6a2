/// Compiler facts that every header relies on. No CUDA header is included here or in any `.hpp`.
#pragma once

#if defined(__CUDACC__)
#define TERSE_HOST_DEVICE __host__ __device__
#else
#define TERSE_HOST_DEVICE
#endif

#if defined(__FAST_MATH__)
#error "terse: compile without -ffast-math; stored codes and NaN checks rely on IEEE arithmetic."
#endif

// Everything lives in an inline namespace named by the flags that change generated code, so that
// translation units built for different instruction sets never share one definition.
#if defined(__AVX512BW__)
#define TERSE_FLAGS_NAMESPACE built_for_avx512bw
#elif defined(__AVX512F__)
#define TERSE_FLAGS_NAMESPACE built_for_avx512
#elif defined(__FMA__)
#define TERSE_FLAGS_NAMESPACE built_for_fma
#elif defined(__AVX2__)
#define TERSE_FLAGS_NAMESPACE built_for_avx2
#elif defined(__AVX__)
#define TERSE_FLAGS_NAMESPACE built_for_avx
#else
#define TERSE_FLAGS_NAMESPACE built_for_baseline
#endif

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__)) && !defined(__CUDA_ARCH__)
#define TERSE_X86_DISPATCH 1
#else
#define TERSE_X86_DISPATCH 0
#endif
