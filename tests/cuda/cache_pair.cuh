/// A cache on the host and one on the device, in steps, and attention over the latter.
#pragma once

#include <algorithm>
#include <tuple>
#include <vector>

#include "cuda/attend_check.cuh"
#include "cuda/twin.cuh"
#include "support/catch.hpp"

namespace terse::tests {

inline constexpr int dim = 64, kv_heads = 2, query_heads = 8;
using Dims = cuda::HeadDims<dim>;

inline CacheConfig config_of(int layers, int max_step_tokens = 128) {
  return {.num_layers = layers,
          .num_query_heads = query_heads,
          .num_kv_heads = kv_heads,
          .head_dim = dim,
          .max_sequences = 4,
          .max_tokens = 1024,
          .max_step_tokens = max_step_tokens};
}

/// Both caches, and steps of them.
template <class P, Layout L = PagedLayout<>>
struct Pair : Twin<L, P> {
  using Base = Twin<L, P>;
  using Base::device;
  using Base::host;
  Random random{7};

  using Configs = typename Base::Host::Configs;
  using FirstConfig = std::tuple_element_t<0, Configs>;
  explicit Pair(int layers, const Configs& policies = {}) : Pair(config_of(layers), policies) {}
  explicit Pair(const CacheConfig& config, const Configs& policies = {}) : Base(config, policies) {}
  Pair(const CacheConfig& config, const Configs& policies, const Configs& on_device)
      : Base(config, policies, on_device) {}
  /// Of one policy class.
  Pair(int layers, const FirstConfig& policy) : Pair(config_of(layers), policy) {}
  Pair(const CacheConfig& config, const FirstConfig& policy) : Base(config, Configs(policy)) {}

  SequenceId create() {
    const SequenceId id = *host.cache.create_sequence();
    REQUIRE(*device.create_sequence(nullptr) == id);
    return id;
  }
  void step(const std::vector<StepPart>& parts) {
    int rows = 0;
    for (const StepPart& part : parts) rows += part.tokens;
    REQUIRE(host.cache.begin_step(parts).ok());
    REQUIRE(device.begin_step(parts, nullptr).ok());
    for (int layer = 0; layer < host.config.num_layers; ++layer) {
      REQUIRE(this->append(random, layer, rows, Scalar::f16).ok());
    }
    REQUIRE(host.cache.commit_step().ok());
    REQUIRE(device.commit_step(nullptr).ok());
  }
  void fill(SequenceId id, int length, int chunk) {
    while (*device.length(id) < length) {
      step({{id, std::min(chunk, length - static_cast<int>(*device.length(id)))}});
    }
  }
};

/// A launch of attention for the cache's step in progress, or the newest tokens of `parts`.
struct Query {
  std::vector<float> queries;
  DeviceBytes parts, query_bytes, output, lse, workspace;
  cuda::AttendInputs in;
  cuda::AttendOutputs out;

  template <class Ref>
  Query(const Ref& view, const std::vector<StepPart>& host_parts, std::uint64_t seed)
      : queries(Random(seed).normals(rows_of(host_parts) * query_heads * dim)),
        parts(DeviceBytes::copy_of(host_parts.data(), host_parts.size())),
        query_bytes(DeviceBytes::copy_of(queries.data(), queries.size())),
        output(queries.size() * sizeof(float)),
        lse(rows_of(host_parts) * query_heads * sizeof(float)) {
    in = {parts.as<StepPart>(), static_cast<int>(host_parts.size()),
          static_cast<int>(rows_of(host_parts)),
          HeadRows::dense(query_bytes.as<float>(), Scalar::f32, query_heads, dim)};
    out = {MutableHeadRows::dense(output.as<float>(), Scalar::f32, query_heads, dim),
           lse.as<float>()};
    workspace = DeviceBytes(*cuda::attend_workspace_bytes(view, in));
    REQUIRE(cuda::clear_workspace(workspace.span(), nullptr).ok());
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  }
  template <class Ref>
  Status launch(const Ref& view, cudaStream_t stream) const {
    return cuda::attend<Dims>(view, in, out, workspace.span(), {}, stream);
  }

 private:
  static std::size_t rows_of(const std::vector<StepPart>& parts) {
    std::size_t rows = 0;
    for (const StepPart& part : parts) rows += static_cast<std::size_t>(part.tokens);
    return rows;
  }
};

template <class C>
std::vector<float> attend_on_device(const C& cache, const std::vector<StepPart>& parts,
                                    std::uint64_t seed) {
  const Query query(cache.layer(0), parts, seed);
  REQUIRE(query.launch(cache.layer(0), nullptr).ok());
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  return query.output.to_host<float>();
}

template <class P, Layout L>
void check_attention(const Pair<P, L>& pair, const std::vector<StepPart>& parts) {
  const Query query(pair.device.layer(0), parts, 11);
  const Attended slow = run_attend(pair.host.cache.layer(0), {parts.data(), parts.size()},
                                   query.queries, Path::oracle);
  REQUIRE(slow.status.ok());
  CHECK(relative_l2(attend_on_device(pair.device, parts, 11), slow.output) < device_tolerance);
}

}  // namespace terse::tests
