/// Numbers that name a layout, a policy and what its codecs store.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "terse/cache/class_store.hpp"
#include "terse/config.hpp"
#include "terse/policy/tail.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace detail {

/// FNV-1a, 64 bits.
[[nodiscard]] inline std::uint64_t fingerprint(
    const void* data, std::size_t bytes, std::uint64_t hash = 0xcbf29ce484222325ull) noexcept {
  const auto* p = static_cast<const unsigned char*>(data);
  for (std::size_t i = 0; i < bytes; ++i) hash = (hash ^ p[i]) * 0x100000001b3ull;
  return hash;
}

/// What a codec makes of a fixed block: differs as soon as its stored bytes would be read wrongly.
template <class CodecPart, class Store>
[[nodiscard]] std::uint64_t codec_identity(Store& store, Side side, std::uint64_t hash) noexcept {
  const ClassShape& shape = store.shape;
  const CodecContext context{side, side == Side::key ? shape.key_width : shape.value_width};
  const std::size_t bytes = CodecPart::record(side, context.width).bytes;
  std::uint32_t state = 1;
  for (int i = 0; i < block_tokens * context.width; ++i) {
    state = state * 1664525u + 1013904223u;
    store.vectors[i] = static_cast<float>(static_cast<int>(state >> 16) - 32768) / 8192.0f;
  }
  for (int t = 0; t < block_tokens; ++t) {
    to_basis<CodecPart>(context, store.vectors + t * context.width);
  }
  auto* block = reinterpret_cast<std::byte*>(store.item_keys);
  std::memset(block, 0, bytes);
  encode_block<CodecPart>(context, store.vectors, block);
  return fingerprint(block, bytes, hash);
}

template <class Store>
[[nodiscard]] std::uint64_t class_identity(Store& store) noexcept {
  using Ref = typename Store::Ref;
  using Policy = typename Ref::policy;
  const ClassShape& s = store.shape;
  const std::int64_t facts[] = {
      Ref::layout::paged,
      static_cast<std::int64_t>(Ref::layout::head_paging),
      s.slots,
      s.kv_heads,
      s.head_dim,
      s.unit.units,
      s.unit.key_streams,
      s.unit.value_streams,
      s.key_width,
      s.value_width,
      s.rows,
      s.open,
      s.tail.min_tokens,
      s.tail.granule_tokens,
      s.tail.sink_tokens,
      Ref::scatters,
      static_cast<std::int64_t>(Policy::signal),
      static_cast<std::int64_t>(Policy::reindex),
      static_cast<std::int64_t>(token_state_bytes<typename Policy::evictor>),
      static_cast<std::int64_t>(s.unit_bytes),
      static_cast<std::int64_t>(s.tail_stride_bytes)};
  std::uint64_t hash = fingerprint(facts, sizeof facts);
  if (store.calibration != nullptr) {
    const std::uint64_t own = store.calibration_identity;
    hash = fingerprint(&own, sizeof own, hash);
  }
  if (s.encodes_ahead) hash = fingerprint(&s.encodes_ahead, sizeof s.encodes_ahead, hash);
  if (!has_f16_tail<Policy> && !s.open) {
    hash = codec_identity<typename Policy::tail_codec>(store, Side::key, hash);
    hash = codec_identity<typename Policy::tail_codec>(store, Side::value, hash);
  }
  hash = codec_identity<typename Policy::key_codec>(store, Side::key, hash);
  return codec_identity<typename Policy::value_codec>(store, Side::value, hash);
}

}  // namespace detail
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
