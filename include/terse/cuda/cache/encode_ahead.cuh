/// encode_ahead of a cache on the device.
#pragma once

#include <cuda_runtime.h>
#include <type_traits>

#include "terse/cache/encode_ahead.hpp"
#include "terse/config.hpp"
#include "terse/core/status.hpp"
#include "terse/cuda/append/encode_ahead_kernel.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

template <class State>
[[nodiscard]] Status encode_layer_ahead(State& state, int layer, cudaStream_t stream) noexcept {
  auto& cache = state.cache;
  if (Status s = terse::detail::check_encode_ahead(cache, layer); !s.ok()) return s;
  if (Status s = state.journal().status(); !s.ok()) return s;
  const LayerPlace at = cache.places[layer];
  Status status{};
  cache.with_store(at.policy_class, [&](auto& store) {
    EncodeAheadCall<typename std::remove_reference_t<decltype(store)>::Ref> call{};
    call.r = state.view(store, at.slot);
    call.step = state.step_view();
    status = encode_ahead_on_device(call, cache.num_parts, stream);
  });
  return status;
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
