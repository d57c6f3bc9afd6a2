#pragma once

#include <cstddef>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "terse/cache/calibration.hpp"

#include "model/llama.hpp"
#include "model/thread_pool.hpp"

namespace terse::examples {

/// Low-rank factors of one layer's key and value projections: W ~ up * down.
struct LayerFactors {
  int key_rank = 0;
  int value_rank = 0;
  std::vector<float> key_down;    ///< [key_rank, hidden]
  std::vector<float> value_down;  ///< [value_rank, hidden]
  std::vector<float> key_up;      ///< [kv_head, channel, key_rank]
  std::vector<float> value_up;    ///< [kv_head, channel, value_rank]
};

/// Where caches lie.
enum class Processor { cpu, cuda };

/// How a session's cache is to be made.
struct SessionConfig {
  const LlamaModel* model = nullptr;
  int first_layer = 0;  ///< the cache serves layers [first_layer, first_layer + layers)
  int layers = 1;
  int max_tokens = 0;       ///< longest sequence
  int max_step_tokens = 1;  ///< most tokens per step
  /// Every query reads its own chunk of 128 tokens exactly and everything before it decoded;
  /// eviction happens after every chunk.
  bool chunk_tail = false;
  Processor processor = Processor::cpu;
  ThreadPool* pool = nullptr;  ///< threads of attention on the CPU; null: the calling thread
  const std::vector<LayerFactors>* factors = nullptr;  ///< [layer of the model]
  const Calibration* calibration = nullptr;            ///< null: policies do without
};

/// What a session's cache holds, over its layers.
struct SessionMemory {
  double bits_per_element = 0;
  double page_bytes = 0;   ///< pages held
  double other_bytes = 0;  ///< tails, tables, masks, evictor state
  /// Of the bytes of encoded blocks that attention went over, those that it read; NaN: not counted.
  double share_read = std::numeric_limits<double>::quiet_NaN();
};

/// One sequence in a cache under some policy.
class Session {
 public:
  Session() = default;
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  virtual ~Session() = default;

  /// Starts the sequence anew, for the layers from `first_layer` on.
  virtual void restart(int first_layer) = 0;

  /// Most tokens that one step may have without changing when tokens are sealed or evicted.
  [[nodiscard]] virtual int natural_step_tokens() const = 0;

  virtual void begin_step(int tokens) = 0;
  /// Whether attend_layer wants latents, made from the normed hidden state.
  [[nodiscard]] virtual bool projects() const = 0;
  /// Appends one layer's keys and values [token, KV head, channel] (or latents [token, rank]) of
  /// the step and attends with its queries [token, query head, channel] into `output`.
  virtual void attend_layer(int layer, const float* queries, const float* keys, const float* values,
                            float* output) = 0;
  /// Stores without attending: for filling a cache.
  virtual void append_layer(int layer, const float* keys, const float* values) = 0;
  /// Ends the step; evicts where the policy's schedule says so.
  virtual void commit_step() = 0;

  [[nodiscard]] virtual SessionMemory memory() const = 0;
  /// Bytes of tails and tables of a cache for the whole model with single-token steps.
  [[nodiscard]] virtual double generation_overhead_bytes() const = 0;
};

/// What `session.attend_layer` takes of layer `layer` for the tokens from `position` on: queries,
/// and keys and values or, where the session projects, their latents.
/// \param normed `[token, hidden]`, the input of the projections
[[nodiscard]] Qkv session_inputs(const LlamaModel& model, const SessionConfig& config,
                                 const Session& session, int layer, std::span<const float> normed,
                                 int position);

}  // namespace terse::examples
