// A quantizer of one's own: NormalFloat4, written in this file, checked, and used in a cache.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "terse/cpu/attend.hpp"
#include "terse/terse.hpp"
#include "terse/testing/conformance.hpp"

#include "support/example.hpp"

using example::Memory, example::must, example::random_vectors, example::rows;

// [quantizer]
/// NormalFloat4 (QLoRA, arXiv 2305.14314, appendix E): a code stands for one of 16 levels that lie
/// at quantiles of the normal distribution; the largest magnitude of a token is its fp16 factor.
struct NormalFloat4 {
  static constexpr terse::Granularity granularity = terse::Granularity::per_token;
  static constexpr float levels[16] = {-1.0f,       -0.6961928f, -0.5250731f, -0.3949175f,
                                       -0.2844414f, -0.1847734f, -0.0910500f, 0.0f,
                                       0.0795803f,  0.1609302f,  0.2461123f,  0.3379152f,
                                       0.4407098f,  0.5626170f,  0.7229568f,  1.0f};

  /// A block of 64 tokens: 4-bit codes, then one factor a token.
  static constexpr terse::Record record(terse::Side side, int width) {
    terse::Record r;
    r.add(terse::codes_bytes<4>(side, width));
    r.add(terse::block_tokens * sizeof(terse::F16));
    return r;
  }

  static void encode_token(const terse::CodecContext& context, const float* x, int token,
                           std::byte* block) {
    float peak = 0;
    for (int c = 0; c < context.width; ++c) peak = std::fmax(peak, std::fabs(x[c]));
    const terse::F16 factor = terse::to_f16_saturating(peak);
    std::memcpy(block + factor_offset(context, token), &factor, sizeof factor);
    for (int c = 0; c < context.width; ++c) {
      unsigned best = 7;  // the level 0
      for (unsigned code = 0; code < 16; ++code) {
        const float error = std::fabs(x[c] - levels[code] * terse::to_float(factor));
        if (error < std::fabs(x[c] - levels[best] * terse::to_float(factor))) best = code;
      }
      terse::store_code<4>(block, place(context, token, c), best);
    }
  }

  static float decode(const terse::CodecContext& context, const std::byte* block, int token,
                      int channel) {
    terse::F16 factor;
    std::memcpy(&factor, block + factor_offset(context, token), sizeof factor);
    return levels[terse::load_code<4>(block, place(context, token, channel))] *
           terse::to_float(factor);
  }

 private:
  static std::size_t factor_offset(const terse::CodecContext& context, int token) {
    return record(context.side, context.width).sections[1].offset_bytes +
           static_cast<std::size_t>(token) * sizeof(terse::F16);
  }
  static terse::CodePlace place(const terse::CodecContext& context, int token, int channel) {
    return terse::code_place<4>(context.side, context.width, token, channel);
  }
};
// [quantizer]

// [rotated]
using RotatedNormalFloat4 = terse::InBasis<NormalFloat4, terse::HadamardBasis<256>>;
// [rotated]

namespace {

constexpr int heads = 2, head_dim = 128, tokens = 500;

struct Result {
  double bits_per_element;
  std::vector<float> output;
};

/// Attention of one query over `tokens` tokens whose keys and values went through `Codec`.
template <class Codec>
Result attend_through(const std::vector<float>& keys, const std::vector<float>& values,
                      const std::vector<float>& queries) {
  using Cache = terse::KVCache<terse::PagedLayout<>, Codec>;
  const terse::CacheConfig config{.num_query_heads = heads,
                                  .num_kv_heads = heads,
                                  .head_dim = head_dim,
                                  .max_tokens = tokens,
                                  .max_step_tokens = tokens};
  const terse::MemoryPlan plan = must(Cache::plan(config));
  Memory pages(plan.pages_bytes), tails(plan.tails_bytes), state(plan.state_bytes);
  Cache cache = must(Cache::create(config, {pages, tails, state}));
  const terse::SequenceId sequence = must(cache.create_sequence());
  const terse::StepPart prompt[] = {{sequence, tokens}}, query[] = {{sequence, 1}};
  must(cache.begin_step(prompt));
  must(cache.append(0, {rows(keys, heads, head_dim), rows(values, heads, head_dim)}));
  must(cache.commit_step());

  Result result{plan.classes[0].bits_per_element, std::vector<float>(heads * head_dim)};
  Memory workspace(terse::cpu::attend_workspace_bytes(cache.layer(0), query));
  must(terse::cpu::attend(cache.layer(0), {query, rows(queries, heads, head_dim)},
                          {rows(result.output, heads, head_dim)}, workspace));
  return result;
}

double relative_error(const Result& a, const Result& reference) {
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < a.output.size(); ++i) {
    error += std::pow(a.output[i] - reference.output[i], 2);
    norm += std::pow(reference.output[i], 2);
  }
  return std::sqrt(error / norm);
}

}  // namespace

int main() {
  // [check]
  const terse::testing::Report report = terse::testing::check_codec<RotatedNormalFloat4>(128);
  if (!report.ok()) {
    std::fprintf(stderr, "NormalFloat4: %s\n", report.failure.c_str());
    return 1;
  }
  // [check]
  auto keys = random_vectors(tokens * heads, head_dim);
  for (std::size_t i = 7; i < keys.size(); i += head_dim) keys[i] *= 10.0f;  // an outlier channel
  const auto values = random_vectors(tokens * heads, head_dim);
  const auto queries = random_vectors(heads, head_dim);
  const Result exact = attend_through<terse::Identity>(keys, values, queries);
  const auto show = [&](const char* name, const Result& result) {
    std::printf("%-20s %6.3f bits per element, attention off by %.2f %%\n", name,
                result.bits_per_element, 100 * relative_error(result, exact));
    return relative_error(result, exact);
  };
  std::printf("%d checks passed\n", report.checks);
  const double plain = show("NormalFloat4", attend_through<NormalFloat4>(keys, values, queries));
  const double rotated =
      show("rotated NormalFloat4", attend_through<RotatedNormalFloat4>(keys, values, queries));
  show("Int4Rotated", attend_through<terse::Int4Rotated>(keys, values, queries));
  return rotated < plain ? 0 : 1;
}
