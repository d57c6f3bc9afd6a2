/// Compiler facts that every header relies on. No CUDA header is included here or in any `.hpp`.
#pragma once

#if defined(__CUDACC__)
#define TERSE_HOST_DEVICE __host__ __device__
#else
#define TERSE_HOST_DEVICE
#endif

#if defined(__NVCC__)
/// In front of a TERSE_HOST_DEVICE template that calls whatever its argument offers: functions of
/// the host for the host's types, of the device for the device's.
#define TERSE_OF_EITHER_PROCESSOR _Pragma("nv_exec_check_disable")
#else
#define TERSE_OF_EITHER_PROCESSOR
#endif

#if defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__) || \
    (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__ > 0)
#error "terse: compile without -ffast-math or parts of it; codes rely on IEEE arithmetic."
#endif

// Everything lives in an inline namespace named by the flags that change generated code, so that
// translation units built for different instruction sets do not share one definition. Named are the
// sets that change code like this library's.
#if defined(__AVX512BW__)
#define TERSE_FLAG_VECTORS avx512bw
#elif defined(__AVX512F__)
#define TERSE_FLAG_VECTORS avx512
#elif defined(__FMA__)
#define TERSE_FLAG_VECTORS fma
#elif defined(__AVX2__)
#define TERSE_FLAG_VECTORS avx2
#elif defined(__AVX__)
#define TERSE_FLAG_VECTORS avx
#elif defined(__SSE4_2__)
#define TERSE_FLAG_VECTORS sse4_2
#elif defined(__SSE4_1__)
#define TERSE_FLAG_VECTORS sse4_1
#elif defined(__SSSE3__)
#define TERSE_FLAG_VECTORS ssse3
#elif defined(__SSE3__)
#define TERSE_FLAG_VECTORS sse3
#else
#define TERSE_FLAG_VECTORS baseline
#endif
#if defined(__AVX512VPOPCNTDQ__)
#define TERSE_FLAG_COUNTS _vpopcnt
#elif defined(__POPCNT__)
#define TERSE_FLAG_COUNTS _popcnt
#else
#define TERSE_FLAG_COUNTS
#endif
#if defined(__BMI2__)
#define TERSE_FLAG_BITS _bmi2
#elif defined(__BMI__) && defined(__LZCNT__)
#define TERSE_FLAG_BITS _bmi_lzcnt
#elif defined(__BMI__)
#define TERSE_FLAG_BITS _bmi
#elif defined(__LZCNT__)
#define TERSE_FLAG_BITS _lzcnt
#else
#define TERSE_FLAG_BITS
#endif
#if defined(__AVX512VNNI__)
#define TERSE_FLAG_PRODUCTS _vnni
#else
#define TERSE_FLAG_PRODUCTS
#endif
#define TERSE_JOIN_EXPANDED(a, b, c, d) built_for_##a##b##c##d
#define TERSE_JOIN(a, b, c, d) TERSE_JOIN_EXPANDED(a, b, c, d)
#define TERSE_FLAGS_NAMESPACE \
  TERSE_JOIN(TERSE_FLAG_VECTORS, TERSE_FLAG_COUNTS, TERSE_FLAG_BITS, TERSE_FLAG_PRODUCTS)

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__)) && !defined(__CUDA_ARCH__)
#define TERSE_X86_DISPATCH 1
#else
#define TERSE_X86_DISPATCH 0
#endif
