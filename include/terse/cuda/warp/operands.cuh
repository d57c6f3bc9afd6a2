/// Tensor-core operands of one warp: products, transposes and conversions as single instructions.
///
/// Lane l of a warp is (g, t) = (l / 4, l % 4) throughout. An m16n8k16 product takes A (rows g and
/// g + 8; columns 2t, 2t+1, 2t+8, 2t+9) in four registers, B (rows as A's columns; column g) in two
/// and accumulates C (rows g, g, g+8, g+8; columns 2t, 2t+1) in four floats.
#pragma once

#include <cstdint>
#include <cuda_fp16.h>

#include "terse/config.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

struct Lane {
  int index, g, t;
};

__device__ __forceinline__ Lane this_lane() {
  const int l = static_cast<int>(threadIdx.x) & 31;
  return {l, l >> 2, l & 3};
}

/// Keeps a number in a register, where the compiler would compute it anew for each block.
__device__ __forceinline__ std::uint32_t pinned(std::uint32_t x) {
  asm volatile("" : "+r"(x));
  return x;
}

/// Bytes of the eight of `low` and `high` that the lower four nibbles of `which` name; eight more
/// than a byte's number stands for its uppermost bit, eight times.
__device__ __forceinline__ std::uint32_t permuted(std::uint32_t low, std::uint32_t high,
                                                  std::uint32_t which) {
  std::uint32_t r;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(low), "r"(high), "r"(which));
  return r;
}

/// c += a b, fp16 operands, fp32 sums. Subnormal operands are exact.
__device__ __forceinline__ void multiply_add(float (&c)[4], std::uint32_t a0, std::uint32_t a1,
                                             std::uint32_t a2, std::uint32_t a3, std::uint32_t b0,
                                             std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/// fp32 rounded to the 10 fraction bits that multiply_add_tf32 reads; NaN stays NaN.
__device__ __forceinline__ std::uint32_t to_tf32(float x) {
  std::uint32_t r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x));
  return r;
}

/// c += a b, an m16n8k8 product of tf32 operands with fp32 sums: A's rows g, g + 8, g, g + 8 of
/// columns t, t, t + 4, t + 4; B's rows t and t + 4 of column g; C as above.
__device__ __forceinline__ void multiply_add_tf32(float (&c)[4], const std::uint32_t (&a)[4],
                                                  std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ std::uint32_t multiply_half2(std::uint32_t a, std::uint32_t b) {
  std::uint32_t r;
  asm("mul.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}

__device__ __forceinline__ std::uint32_t subtract_half2(std::uint32_t a, std::uint32_t b) {
  const __half2 r = __hsub2(*reinterpret_cast<__half2*>(&a), *reinterpret_cast<__half2*>(&b));
  return *reinterpret_cast<const std::uint32_t*>(&r);
}

/// The larger halves; of a NaN and a number the number.
__device__ __forceinline__ std::uint32_t max_half2(std::uint32_t a, std::uint32_t b) {
  std::uint32_t r;
  asm("max.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}

/// 2^x, the hardware's approximation: relative error below 2^-22.
__device__ __forceinline__ float exp2_approximate(float x) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}

/// {low, high} rounded to fp16.
__device__ __forceinline__ std::uint32_t pack_half2(float low, float high) {
  std::uint32_t r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}

/// Four 8x8 matrices of 16-bit numbers from shared memory, transposed: lane l names row l % 8 of
/// matrix l / 8 and receives elements (2t, 2t+1; g) of each.
__device__ __forceinline__ void load_transposed(std::uint32_t (&r)[4], std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

/// The same, not transposed: elements (g; 2t, 2t+1) of each.
__device__ __forceinline__ void load_matrices(std::uint32_t (&r)[4], std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

/// Transposes an 8x8 matrix of 16-bit numbers held by the warp.
__device__ __forceinline__ std::uint32_t transpose(std::uint32_t x) {
  std::uint32_t r;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(x));
  return r;
}

__device__ __forceinline__ std::uint32_t shared_address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ uint4 load_shared_16(std::uint32_t address) {
  uint4 r;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
               : "r"(address));
  return r;
}

__device__ __forceinline__ uint2 load_shared_8(std::uint32_t address) {
  uint2 r;
  asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(r.x), "=r"(r.y) : "r"(address));
  return r;
}

__device__ __forceinline__ std::uint32_t load_shared_4(std::uint32_t address) {
  std::uint32_t r;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(r) : "r"(address));
  return r;
}

__device__ __forceinline__ void store_shared_1(std::uint32_t address, std::uint32_t byte) {
  asm volatile("st.shared.u8 [%0], %1;" ::"r"(address), "r"(byte) : "memory");
}

__device__ __forceinline__ void store_shared_4(std::uint32_t address, std::uint32_t value) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}

__device__ __forceinline__ void store_shared_16(std::uint32_t address, const uint4& x) {
  asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(x.x), "r"(x.y), "r"(x.z),
               "r"(x.w)
               : "memory");
}

/// Two e4m3 numbers in the low 16 bits as {low, high} fp16, exactly.
__device__ __forceinline__ std::uint32_t e4m3_to_half2(std::uint32_t pair) {
#if __CUDA_ARCH__ >= 890
  std::uint32_t r;
  asm("{.reg .b16 x, y; mov.b32 {x, y}, %1; cvt.rn.f16x2.e4m3x2 %0, x;}" : "=r"(r) : "r"(pair));
  return r;
#else
  // The same bits read as fp16 are 2^8 too small, subnormals included.
  const std::uint32_t wide = __byte_perm(pair, 0, 0x1404);
  const std::uint32_t half = (wide & 0x80008000u) | ((wide & 0x7f007f00u) >> 1);
  return multiply_half2(half, 0x5c005c00u);  // 256
#endif
}

/// Adds one to a counter with release and acquire semantics; gives what it was.
__device__ __forceinline__ unsigned arrive(unsigned* counter) {
  unsigned before;
  asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;"
               : "=r"(before)
               : "l"(counter)
               : "memory");
  return before;
}

/// Where a launch may begin before the kernel in front of it has ended: waits until that one's
/// writes are visible, and lets the next launch begin likewise.
__device__ __forceinline__ void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
