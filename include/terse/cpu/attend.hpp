/// Attention over a cache on the host, straight from the encoded blocks.
///
/// The work is cut into items (part, unit, split of the entries) of a size that depends on the
/// inputs only, so results do not depend on the number of threads. A block is visited once for all
/// rows and query heads of its unit. Per-token scales, zeros and rotations never reach the inner
/// loop (docs/arithmetic.md).
#pragma once

#include <cstddef>
#include <cstdint>

#include "terse/cache/attention.hpp"
#include "terse/config.hpp"
#include "terse/cpu/attend_call.hpp"
#include "terse/cpu/attend_finish.hpp"
#include "terse/cpu/attend_items.hpp"
#include "terse/cpu/block_reader.hpp"
#include "terse/cpu/dispatch.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cpu {

/// A `parallel_for(count, f)` that calls `f(0) ... f(count - 1)` one after another. Callers pass
/// their own to use threads; calls of f are independent.
struct Serial {
  template <class F>
  void operator()(int count, F&& f) const {
    for (int i = 0; i < count; ++i) f(i);
  }
};

/// Whether codes are read by a kernel of their own rather than through the codec's `decode`.
template <class Ref>
inline constexpr bool is_specialized = BlockReader<typename Ref::policy::key_codec>::specialized&&
    BlockReader<typename Ref::policy::value_codec>::specialized;

/// Names of the key and value kernels that attend will run, for example "affine_2_bit_per_channel".
template <class Ref>
[[nodiscard]] constexpr const char* key_kernel_name() noexcept {
  return BlockReader<typename Ref::policy::key_codec>::name;
}
template <class Ref>
[[nodiscard]] constexpr const char* value_kernel_name() noexcept {
  return BlockReader<typename Ref::policy::value_codec>::name;
}

namespace detail {

/// Whether the table's own code reads the blocks' codes, rather than the codec's `decode` or the
/// portable code that serves odd scale groups.
template <class Ref>
[[nodiscard]] bool runs_specialized(const Ref& r, const KernelTable& table) noexcept {
  const auto covered = [&]<class C>(Side side, int width) {
    if constexpr (AffineCodec<C>) return table.covers(C::affine_format, side, width);
    return true;
  };
  return is_specialized<Ref> &&
         covered.template operator()<typename Ref::policy::key_codec>(Side::key,
                                                                      r.shape.key_width) &&
         covered.template operator()<typename Ref::policy::value_codec>(Side::value,
                                                                        r.shape.value_width);
}

template <class Ref>
[[nodiscard]] Status check_specialized(const Ref& r, const AttendParams& params,
                                       const KernelTable& table) noexcept {
  if (params.require_specialized && !runs_specialized(r, table)) {
    return error(StatusCode::unsupported,
                 "terse::attend: no specialised kernel reads this policy's codes; store them by "
                 "terse/quant/codes.hpp and declare affine_format with scale groups of a multiple "
                 "of 16, or drop require_specialized");
  }
  return {};
}

[[nodiscard]] inline Status check_workspace(Span<std::byte> workspace, std::size_t need) noexcept {
  if (workspace.data() == nullptr || workspace.size() < need) {
    return error(StatusCode::buffer_too_small,
                 "terse::attend: the workspace is smaller than attend_workspace_bytes; detail: "
                 "bytes needed",
                 static_cast<std::int64_t>(need));
  }
  if (reinterpret_cast<std::uintptr_t>(workspace.data()) % 64 != 0) {
    return error(StatusCode::misaligned, "terse::attend: the workspace must be 64-byte aligned");
  }
  return {};
}

}  // namespace detail

/// Attention of the parts' query rows over everything their sequences hold.
///
/// Const and reentrant; allocates nothing. `workspace`: attend_workspace_bytes, 64-byte aligned,
/// used by this call alone while it runs. `parallel_for(count, f)` must call f(0) ... f(count - 1),
/// in any order, on any threads, and return when all are done. Fully masked rows give zeros and
/// lse_ln = -inf. Outputs are within 1e-5 (fp32) of exact arithmetic on the decoded codes, relative
/// L2 (docs/arithmetic.md has the one exception), and do not depend on threads.
template <class Ref, class ParallelFor = Serial>
Status attend(const Ref& r, const AttendInputs& in, const AttendOutputs& out,
              Span<std::byte> workspace, const AttendParams& params = {},
              ParallelFor&& parallel_for = {}, const KernelTable& table = kernels()) {
  if (Status s = terse::detail::check_attend(r, in, out, params); !s.ok()) return s;
  if (Status s = detail::check_specialized(r, params, table); !s.ok()) return s;
  const std::size_t need = attend_workspace_bytes(r, in.parts, table);
  if (Status s = detail::check_workspace(workspace, need); !s.ok()) return s;
  const auto call = detail::make_call(r, in, out, params, table, workspace.data());
  const int units = r.shape.unit.units, splits = call.max_splits;
  parallel_for(static_cast<int>(in.parts.size()) * units * splits, [&](int item) {
    const auto part = static_cast<std::size_t>(item / splits / units);
    detail::run_item(call, part, item / splits % units, item % splits, detail::first_row(in, part));
  });
  detail::for_each_unit(call, parallel_for, [&](std::size_t part, int unit, std::int64_t row0) {
    detail::finish_unit(call, part, unit, row0);
    if (out.column_sums != nullptr) detail::sum_columns(call, part, unit, row0);
  });
  return {};
}

/// Column sums of attention that was computed in parts: probabilities of the tokens held here under
/// `lse_ln [row, query_head]`, the merged log-sum-exp of this cache and of whatever else the rows
/// saw. Rows with lse_ln = -inf saw nothing. Writes `column_sums [part, unit, entry, 64]` as attend
/// does, for KVCache::observe; workspace, threads and errors as in attend. Sink logits are in
/// lse_ln already and not read.
template <class Ref, class ParallelFor = Serial>
Status sum_attention_columns(const Ref& r, const AttendInputs& in, const float* lse_ln,
                             float* column_sums, Span<std::byte> workspace,
                             const AttendParams& params = {}, ParallelFor&& parallel_for = {},
                             const KernelTable& table = kernels()) {
  if (Status s = terse::detail::check_queries(r, in, params); !s.ok()) return s;
  if (lse_ln == nullptr || column_sums == nullptr) {
    return error(StatusCode::null_pointer,
                 "terse::sum_attention_columns: lse_ln or column_sums is null");
  }
  if (Status s = detail::check_specialized(r, params, table); !s.ok()) return s;
  const std::size_t need = attend_workspace_bytes(r, in.parts, table);
  if (Status s = detail::check_workspace(workspace, need); !s.ok()) return s;
  const AttendOutputs out{.column_sums = column_sums};
  const auto call = detail::make_call(r, in, out, params, table, workspace.data());
  detail::for_each_unit(call, parallel_for, [&](std::size_t part, int unit, std::int64_t row0) {
    detail::take_lse(call, part, unit, row0, lse_ln);
    detail::sum_columns(call, part, unit, row0);
  });
  return {};
}

}  // namespace cpu
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
