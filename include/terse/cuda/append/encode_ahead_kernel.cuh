/// Codes of blocks of a slot that are complete but not due yet (cache/encode_ahead.hpp): a thread
/// block a block of a stream, or a piece of one where codes take long.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cuda_runtime.h>

#include "terse/cache/class_shape.hpp"
#include "terse/config.hpp"
#include "terse/core/status.hpp"
#include "terse/cuda/append/append_kernel.cuh"
#include "terse/cuda/append/encode.cuh"
#include "terse/cuda/append/launch.cuh"
#include "terse/cuda/append/token_tile.cuh"
#include "terse/cuda/cache/step_record.cuh"
#include "terse/cuda/launch.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// Everything that the kernel is given. Pointers are the device's.
template <class Ref>
struct EncodeAheadCall {
  Ref r;
  StepView step;
  AppendLaunch launch;
};

/// What a thread block encodes; the same for all its threads.
struct AheadWork {
  std::byte* tail;  ///< the block, all streams; null: there is nothing to do
  std::uint32_t* mark;
};

template <class Ref>
struct EncodeAheadKernel {
  const EncodeAheadCall<Ref>& call;

  /// The tokens of a thread block's piece in the mark of its block.
  [[nodiscard]] __device__ std::uint32_t bits_of(int piece) const {
    return call.launch.pieces == 1 ? ClassShape::all_ahead : 1u << piece;
  }

  /// By one thread.
  [[nodiscard]] __device__ AheadWork find(const StreamOfItem& own, int ahead, int piece) const {
    const Ref& r = call.r;
    const ClassShape& shape = r.shape;
    const auto part = static_cast<int>(blockIdx.x);
    if (part >= *call.step.num_parts) return {};
    const StepPart step = call.step.parts[part];
    const int index = step.sequence.index;
    const SequenceRecord sequence = r.sequences[index];
    if (sequence.failed != 0 || sequence.alive == 0 ||
        sequence.generation != step.sequence.generation || sequence.pending_tokens != step.tokens) {
      return {};
    }
    const StepBlocks blocks(shape, r.grids[index], sequence.length_tokens, step.tokens);
    const int b = blocks.seals_to + ahead;
    if (blocks.origin + (b + 1) * block_tokens > blocks.end) return {};
    std::byte* tail = r.tail_block(index, own.unit, blocks.origin + b * block_tokens);
    auto* mark = reinterpret_cast<std::uint32_t*>(
        tail + shape.ahead_mark_offset(own.is_key ? Side::key : Side::value, own.stream));
    const std::uint32_t bits = bits_of(piece);
    return (*mark & bits) == bits ? AheadWork{} : AheadWork{tail, mark};
  }

  template <Codec C, Side S>
  __device__ void encode(const AheadWork& work, const StreamOfItem& own, int piece,
                         float* shared) const {
    const ClassShape& shape = call.r.shape;
    const CodecContext context = call.r.context(S, own.unit, own.stream);
    const int places = block_tokens / call.launch.pieces, first = piece * places;
    const int stride = tile_stride<C>(context.width);
    const TokenTile tile{shared - first * stride, stride, first, places};
    const EncodeScratch scratch{shared + call.launch.tile_rows * stride, nullptr,
                                call.launch.stages};
    begin_encoding<C>(context, scratch);
    std::byte* codes = work.tail + shape.ahead_offset(S, own.stream);
    if (call.launch.pieces == 1) {  // as pages are, by the codecs' contract
      auto* vectors = reinterpret_cast<uint4*>(codes);
      const auto all = static_cast<int>(shape.record(S).bytes / sizeof(uint4));
      for (auto i = static_cast<int>(threadIdx.x); i < all; i += static_cast<int>(blockDim.x)) {
        vectors[i] = uint4{};
      }
    }
    load_tail<typename Ref::policy::tail_codec>(context,
                                                work.tail + shape.tail_offset(S, own.stream), tile);
    encode_tokens<C>(context, tile, true, scratch, codes);
    // The codes are read by a later kernel, which sees all that this one has written.
    if (threadIdx.x == 0) atomicOr(work.mark, bits_of(piece));
  }

  /// By all threads.
  __device__ void run(float* shared, AheadWork& work) const {
    const StreamOfItem own(call.r.shape.unit, static_cast<int>(blockIdx.y));
    const int pieces = call.launch.pieces, all = call.r.shape.most_blocks_ahead() * pieces;
    for (int i = static_cast<int>(blockIdx.z); i < all; i += static_cast<int>(gridDim.z)) {
      const int piece = i % pieces;
      if (threadIdx.x == 0) work = find(own, i / pieces, piece);
      __syncthreads();
      if (work.tail != nullptr && own.is_key) {
        encode<typename Ref::policy::key_codec, Side::key>(work, own, piece, shared);
      } else if (work.tail != nullptr) {
        encode<typename Ref::policy::value_codec, Side::value>(work, own, piece, shared);
      }
      __syncthreads();  // `work` has been read
    }
  }
};

/// Grid: part x {unit, stream} x {block, piece}.
template <class Ref>
__global__ void __launch_bounds__(most_append_threads<Ref>, 2)
    encode_ahead_kernel(const __grid_constant__ EncodeAheadCall<Ref> call) {
  extern __shared__ __align__(16) float append_shared[];
  static_assert(sizeof(AheadWork) <= work_bytes);
  EncodeAheadKernel<Ref>{call}.run(append_shared + work_bytes / sizeof(float),
                                   *reinterpret_cast<AheadWork*>(append_shared));
}

/// Launches it for a slot of a step of `num_parts` parts.
template <class Ref>
[[nodiscard]] Status encode_ahead_on_device(EncodeAheadCall<Ref>& call, int num_parts,
                                            cudaStream_t stream) noexcept {
  const ClassShape& shape = call.r.shape;
  const bool in_pieces = can_seal_in_pieces<Ref>;
  call.launch = {in_pieces ? piece_tokens : block_tokens, in_pieces ? pieces_of_block : 1,
                 rounds_by_warps<Ref> && in_pieces};
  const std::size_t bytes = append_shared_bytes<Ref>(shape, call.launch);
  if (Status s = allow_shared_bytes(encode_ahead_kernel<Ref>, bytes, wide_streams,
                                    "terse::cuda::KVCache: the program holds no code for this "
                                    "device");
      !s.ok()) {
    return s;
  }
  const dim3 grid(static_cast<unsigned>(num_parts), static_cast<unsigned>(append_items(shape.unit)),
                  static_cast<unsigned>(std::min(shape.most_blocks_ahead() * call.launch.pieces,
                                                 most_parallel_blocks)));
  return launch_kernel({grid, 256, bytes}, stream,
                       "terse::cuda::KVCache::encode_ahead: the launch failed",
                       encode_ahead_kernel<Ref>, call);
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
