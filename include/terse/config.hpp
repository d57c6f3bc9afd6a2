/// Compiler facts that every header relies on. No CUDA header is included here or in any `.hpp`.
#pragma once

#if defined(__CUDACC__)
#define TERSE_HOST_DEVICE __host__ __device__
#else
#define TERSE_HOST_DEVICE
#endif

// Functions whose generated code depends on compiler flags live in a namespace named by these
// flags, so that translation units built with different flags never share one definition.
#if defined(__AVX512F__)
#define TERSE_FLAGS_NAMESPACE built_for_avx512
#elif defined(__FMA__)
#define TERSE_FLAGS_NAMESPACE built_for_fma
#else
#define TERSE_FLAGS_NAMESPACE built_for_baseline
#endif

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__)) && !defined(__CUDA_ARCH__)
#define TERSE_X86_DISPATCH 1
#else
#define TERSE_X86_DISPATCH 0
#endif
