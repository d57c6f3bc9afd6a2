#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <numeric>
#include <random>
#include <vector>

#include <flashinfer/attention/decode.cuh>
#include <flashinfer/attention/default_decode_params.cuh>
#include <flashinfer/attention/default_prefill_params.cuh>
#include <flashinfer/attention/prefill.cuh>
#include <flashinfer/attention/scheduler.cuh>
#include <flashinfer/attention/variants.cuh>

#include "cuda/device_cache.cuh"
#include "cuda/flashinfer.hpp"

namespace terse::bench {

namespace {

constexpr int head_dim = 128;
constexpr std::size_t float_workspace_bytes = std::size_t{512} << 20;
constexpr std::size_t int_workspace_bytes = std::size_t{64} << 20;
using Id = std::int32_t;
using Variant = flashinfer::DefaultAttention<false, false, false, false>;
template <class KV>
using DecodeParams = flashinfer::BatchDecodeParams<half, KV, half, Id>;
template <class KV>
using PrefillParams = flashinfer::BatchPrefillPagedParams<half, KV, half, Id>;

template <class T>
T* at(const DeviceArray<std::byte>& workspace, std::int64_t offset) {
  return reinterpret_cast<T*>(workspace.data() + offset);
}

/// Makes e4m3 numbers smaller than 2: softmax then has more than one token to weigh.
__global__ void lower_exponents(std::uint32_t* words, std::size_t count) {
  const std::size_t step = static_cast<std::size_t>(gridDim.x) * blockDim.x;
  for (std::size_t i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
    words[i] &= 0xbfbfbfbfu;
  }
}

}  // namespace

struct FlashInferDecode::Batch {
  Shape shape;
  int copies = 0;
  std::vector<Id> page_begin, ids;      // [sequence + 1], [copy, page]
  DeviceArray<std::byte> keys, values;  // [page, kv head, token, channel]
  DeviceArray<Id> device_begin, device_ids, last_tokens, query_begin;
  DeviceArray<half> queries, output;  // [sequence, query head, channel]
  DeviceArray<std::byte> floats, ints;
  flashinfer::PrefillPlanInfo prefill;
  flashinfer::DecodePlanInfo decode;

  [[nodiscard]] int sequences() const { return static_cast<int>(shape.lengths.size()); }
  [[nodiscard]] std::size_t pages() const { return static_cast<std::size_t>(page_begin.back()); }
  [[nodiscard]] std::size_t element_bytes() const { return shape.is_fp8 ? 1 : 2; }
  [[nodiscard]] std::size_t page_elements() const {
    return static_cast<std::size_t>(shape.kv_heads * shape.page_tokens * head_dim);
  }

  template <class KV>
  [[nodiscard]] flashinfer::paged_kv_t<KV, Id> cache(int copy) const {
    return {static_cast<std::uint32_t>(shape.kv_heads),
            static_cast<std::uint32_t>(shape.page_tokens),
            head_dim,
            static_cast<std::uint32_t>(sequences()),
            flashinfer::QKVLayout::kHND,
            reinterpret_cast<KV*>(keys.data()),
            reinterpret_cast<KV*>(values.data()),
            device_ids.data() + static_cast<std::size_t>(copy) * pages(),
            device_begin.data(),
            last_tokens.data()};
  }
  static float scale() { return 1.0f / std::sqrt(static_cast<float>(head_dim)); }

  template <class KV>
  void plan() {
    void* pinned = nullptr;
    must(cudaMallocHost(&pinned, int_workspace_bytes));
    const auto heads = static_cast<std::uint32_t>(shape.query_heads);
    const auto kv_heads = static_cast<std::uint32_t>(shape.kv_heads);
    const auto count = static_cast<std::uint32_t>(sequences());
    const auto page = static_cast<std::uint32_t>(shape.page_tokens);
    if (shape.uses_tensor_cores) {
      std::vector<Id> rows(count + 1);
      std::iota(rows.begin(), rows.end(), 0);
      must(flashinfer::PrefillPlan<Id>(
          floats.data(), floats.size(), ints.data(), pinned, ints.size(), prefill, rows.data(),
          page_begin.data(), count, count, heads, kv_heads, head_dim, head_dim, page, false,
          sizeof(half), -1, -1, false, 0, 0, nullptr, static_cast<std::uint32_t>(sizeof(KV))));
    } else {
      DISPATCH_GQA_GROUP_SIZE(heads / kv_heads, GROUP, {
        must((flashinfer::DecodePlan<head_dim, flashinfer::PosEncodingMode::kNone, Variant,
                                     DecodeParams<KV>>(
            floats.data(), floats.size(), ints.data(), pinned, ints.size(), decode,
            page_begin.data(), count, heads, page, false, nullptr,
            flashinfer::BatchDecodeWithPagedKVCacheWorkEstimationDispatched<
                GROUP, head_dim, flashinfer::PosEncodingMode::kNone, Variant, DecodeParams<KV>>)));
      });
    }
    must(cudaDeviceSynchronize());
    must(cudaFreeHost(pinned));
  }

  template <class KV>
  void launch_decode(int copy, cudaStream_t stream) const {
    DecodeParams<KV> p(queries.data(), nullptr, cache<KV>(copy), output.data(), nullptr, nullptr,
                       static_cast<std::uint32_t>(shape.query_heads), shape.query_heads * head_dim,
                       head_dim, -1, 0.0f, scale(), 1.0f, 1e4f);
    p.request_indices = at<Id>(ints, decode.request_indices_offset);
    p.kv_tile_indices = at<Id>(ints, decode.kv_tile_indices_offset);
    p.o_indptr = at<Id>(ints, decode.o_indptr_offset);
    p.kv_chunk_size_ptr = at<Id>(ints, decode.kv_chunk_size_ptr_offset);
    p.padded_batch_size = static_cast<std::uint32_t>(decode.padded_batch_size);
    half* partial = decode.split_kv ? at<half>(floats, decode.v_offset) : nullptr;
    float* states = decode.split_kv ? at<float>(floats, decode.s_offset) : nullptr;
    must((flashinfer::BatchDecodeWithPagedKVCacheDispatched<
          head_dim, flashinfer::PosEncodingMode::kNone, Variant>(p, partial, states, true,
                                                                 stream)));
  }

  template <class KV>
  void launch_prefill(int copy, cudaStream_t stream) const {
    PrefillParams<KV> p(queries.data(), cache<KV>(copy), nullptr, query_begin.data(), nullptr,
                        nullptr, output.data(), nullptr, nullptr,
                        static_cast<std::uint32_t>(shape.query_heads), shape.query_heads * head_dim,
                        head_dim, -1, 0.0f, scale(), 1.0f, 1e4f);
    p.request_indices = at<Id>(ints, prefill.request_indices_offset);
    p.qo_tile_indices = at<Id>(ints, prefill.qo_tile_indices_offset);
    p.kv_tile_indices = at<Id>(ints, prefill.kv_tile_indices_offset);
    p.o_indptr = at<Id>(ints, prefill.o_indptr_offset);
    p.kv_chunk_size_ptr = at<Id>(ints, prefill.kv_chunk_size_ptr_offset);
    half* partial = nullptr;
    float* states = nullptr;
    if (prefill.split_kv) {
      p.merge_indptr = at<Id>(ints, prefill.merge_indptr_offset);
      partial = at<half>(floats, prefill.v_offset);
      states = at<float>(floats, prefill.s_offset);
    }
    p.padded_batch_size = static_cast<std::uint32_t>(prefill.padded_batch_size);
    p.max_total_num_rows = static_cast<std::uint32_t>(prefill.total_num_rows);
    // One row of up to eight query heads fills sixteen rows of a tile at most.
    if (prefill.cta_tile_q != 16) throw std::runtime_error("FlashInfer plans another tile");
    must((flashinfer::BatchPrefillWithPagedKVCacheDispatched<
          true, 16, head_dim, head_dim, flashinfer::PosEncodingMode::kNone, false,
          flashinfer::MaskMode::kNone, Variant>(p, partial, states, true, stream)));
  }

  /// Calls `f(KV{})` with the type of stored elements.
  template <class F>
  void with_type(F&& f) const {
    shape.is_fp8 ? f(__nv_fp8_e4m3{}) : f(half{});
  }
  template <class KV>
  [[nodiscard]] std::vector<double> vectors_of(const DeviceArray<std::byte>& from) const {
    const auto row_elements = static_cast<std::size_t>(shape.page_tokens * head_dim);
    std::vector<KV> page(row_elements);
    std::vector<double> result;
    for (Id i = 0; i < page_begin[1]; ++i) {  // head 0 comes first in a page
      must(cudaMemcpy(page.data(),
                      from.data() + static_cast<std::size_t>(ids[static_cast<std::size_t>(i)]) *
                                        page_elements() * sizeof(KV),
                      page.size() * sizeof(KV), cudaMemcpyDefault));
      for (const KV& x : page) result.push_back(static_cast<double>(static_cast<float>(x)));
    }
    result.resize(static_cast<std::size_t>(shape.lengths[0]) * head_dim);
    return result;
  }
};

FlashInferDecode::FlashInferDecode(const Shape& shape) : batch_(std::make_unique<Batch>()) {
  Batch& b = *batch_;
  b.shape = shape;
  std::vector<Id> last;
  b.page_begin = {0};
  for (const int length : shape.lengths) {
    b.page_begin.push_back(b.page_begin.back() + ceil_div(length, shape.page_tokens));
    last.push_back((length - 1) % shape.page_tokens + 1);
  }
  const std::size_t page_bytes = b.page_elements() * b.element_bytes();
  b.copies = static_cast<int>(cold_device_bytes / (2 * b.pages() * page_bytes) + 2);
  b.ids.resize(b.pages() * static_cast<std::size_t>(b.copies));
  std::iota(b.ids.begin(), b.ids.end(), 0);
  std::shuffle(b.ids.begin(), b.ids.end(), std::mt19937(7));
  b.keys = DeviceArray<std::byte>(b.ids.size() * page_bytes);
  b.values = DeviceArray<std::byte>(b.ids.size() * page_bytes);
  for (const auto* side : {&b.keys, &b.values}) {
    fill_random<<<1024, 256>>>(reinterpret_cast<std::uint32_t*>(side->data()), side->size() / 4,
                               side == &b.keys ? 1 : 2);
    if (shape.is_fp8) {
      lower_exponents<<<1024, 256>>>(reinterpret_cast<std::uint32_t*>(side->data()),
                                     side->size() / 4);
    }
  }
  b.device_begin = DeviceArray<Id>(b.page_begin);
  b.device_ids = DeviceArray<Id>(b.ids);
  b.last_tokens = DeviceArray<Id>(last);
  std::vector<Id> rows(shape.lengths.size() + 1);
  std::iota(rows.begin(), rows.end(), 0);
  b.query_begin = DeviceArray<Id>(rows);
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  std::vector<half> queries(shape.lengths.size() *
                            static_cast<std::size_t>(shape.query_heads * head_dim));
  for (half& q : queries) q = __float2half(normal(random));
  b.queries = DeviceArray<half>(queries);
  b.output = DeviceArray<half>(queries.size());
  must(cudaMemset(b.output.data(), 0xff, queries.size() * sizeof(half)));  // NaN
  b.floats = DeviceArray<std::byte>(float_workspace_bytes);
  b.ints = DeviceArray<std::byte>(int_workspace_bytes);
  b.with_type([&]<class KV>(KV) { b.template plan<KV>(); });
}

FlashInferDecode::~FlashInferDecode() = default;

int FlashInferDecode::copies() const { return batch_->copies; }

std::size_t FlashInferDecode::bytes_read() const {
  const Batch& b = *batch_;
  const auto tokens = static_cast<std::size_t>(
      std::accumulate(b.shape.lengths.begin(), b.shape.lengths.end(), std::int64_t{0}));
  return tokens * static_cast<std::size_t>(b.shape.kv_heads * head_dim) * 2 * b.element_bytes() +
         b.pages() * sizeof(Id);
}

void FlashInferDecode::launch(int copy, cudaStream_t stream) const {
  const Batch& b = *batch_;
  b.with_type([&]<class KV>(KV) {
    if (b.shape.uses_tensor_cores) {
      b.template launch_prefill<KV>(copy, stream);
    } else {
      b.template launch_decode<KV>(copy, stream);
    }
  });
}

double FlashInferDecode::error() const {
  const Batch& b = *batch_;
  std::vector<double> keys, values;
  b.with_type([&]<class KV>(KV) {
    keys = b.template vectors_of<KV>(b.keys);
    values = b.template vectors_of<KV>(b.values);
  });
  half query[head_dim], output[head_dim];
  must(cudaMemcpy(query, b.queries.data(), sizeof query, cudaMemcpyDefault));
  must(cudaMemcpy(output, b.output.data(), sizeof output, cudaMemcpyDefault));
  const std::size_t tokens = keys.size() / head_dim;
  std::vector<double> weights(tokens, 0.0);
  for (std::size_t t = 0; t < tokens; ++t) {
    for (int c = 0; c < head_dim; ++c) {
      weights[t] += static_cast<double>(__half2float(query[c])) *
                    keys[t * head_dim + static_cast<std::size_t>(c)];
    }
    weights[t] /= std::sqrt(static_cast<double>(head_dim));
  }
  const double high = *std::max_element(weights.begin(), weights.end());
  double sum = 0.0;
  for (double& w : weights) sum += w = std::exp(w - high);
  double difference = 0.0, norm = 0.0;
  for (int c = 0; c < head_dim; ++c) {
    double expected = 0.0;
    for (std::size_t t = 0; t < tokens; ++t) {
      expected += weights[t] / sum * values[t * head_dim + static_cast<std::size_t>(c)];
    }
    const double d = static_cast<double>(__half2float(output[c])) - expected;
    difference += d * d;
    norm += expected * expected;
  }
  return std::sqrt(difference / norm);
}

}  // namespace terse::bench
