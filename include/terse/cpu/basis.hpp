/// Turning vectors to a codec's basis and back, with the kernels where the basis is known to them.
#pragma once

#include "terse/config.hpp"
#include "terse/cpu/kernel_table.hpp"
#include "terse/policy/calibration.hpp"
#include "terse/policy/codec.hpp"
#include "terse/quant/hadamard.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cpu {

/// The basis is HadamardBasis, its own inverse, and not one derived from it.
template <class C>
concept HasHadamardBasis = HasBasis<C> && requires {
  requires& C::to_basis == &HadamardBasis<C::hadamard_limit>::to_basis;
  requires& C::from_basis == &HadamardBasis<C::hadamard_limit>::from_basis;
};

/// The same of SignedHadamardBasis.
template <class C>
concept HasSignedHadamardBasis = HasBasis<C> && requires {
  requires& C::to_basis == &SignedHadamardBasis<C::signed_hadamard_limit>::to_basis;
  requires& C::from_basis == &SignedHadamardBasis<C::signed_hadamard_limit>::from_basis;
};

template <Codec C>
void turn_to_basis(const KernelTable& table, const CodecContext& context, float* x) noexcept {
  if constexpr (HasHadamardBasis<C>) {
    table.hadamard(x, context.width, hadamard_size(context.width, C::hadamard_limit));
  } else if constexpr (HasSignedHadamardBasis<C>) {
    turn_signs(x, context.width);
    table.hadamard(x, context.width, hadamard_size(context.width, C::signed_hadamard_limit));
  } else {
    to_basis<C>(context, x);
  }
}

/// Turns a query to where the codec's keys are.
template <Codec C>
void turn_query(const KernelTable& table, const CodecContext& context, float* x) noexcept {
  if constexpr (HasQueryBasis<C>) {
    C::query_to_basis(context, x);
  } else {
    turn_to_basis<C>(table, context, x);
  }
}

template <Codec C>
void turn_from_basis(const KernelTable& table, const CodecContext& context, float* x) noexcept {
  if constexpr (HasHadamardBasis<C>) {
    turn_to_basis<C>(table, context, x);
  } else if constexpr (HasSignedHadamardBasis<C>) {
    table.hadamard(x, context.width, hadamard_size(context.width, C::signed_hadamard_limit));
    turn_signs(x, context.width);
  } else {
    from_basis<C>(context, x);
  }
}

}  // namespace cpu
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
