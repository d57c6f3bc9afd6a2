/// FlashInfer's decode attention (Ye et al., "FlashInfer: Efficient and Customizable Attention
/// Engine for LLM Inference Serving", arXiv 2501.01005), for rows beside the library's own.
/// Compiled from the headers of its PyPI package, where TERSE_BENCH_FLASHINFER_DIR names them.
#pragma once

#include <cstddef>
#include <cuda_runtime_api.h>
#include <memory>
#include <vector>

namespace terse::bench {

/// One query row a sequence over paged keys and values of random numbers, 128 channels a head.
class FlashInferDecode {
 public:
  struct Shape {
    int query_heads;
    int kv_heads;
    std::vector<int> lengths;  ///< tokens of each sequence
    int page_tokens;
    bool is_fp8;             ///< e4m3 in place of fp16
    bool uses_tensor_cores;  ///< the prefill kernel with a tile of few rows, not the decode kernel
  };

  explicit FlashInferDecode(const Shape& shape);
  FlashInferDecode(const FlashInferDecode&) = delete;
  FlashInferDecode& operator=(const FlashInferDecode&) = delete;
  ~FlashInferDecode();

  /// Copies of the batch in memory: as many as make every read cold.
  [[nodiscard]] int copies() const;
  /// Bytes that one launch reads.
  [[nodiscard]] std::size_t bytes_read() const;
  /// Attends to one copy; the work was divided at construction.
  void launch(int copy, cudaStream_t stream) const;
  /// Relative L2 distance of the first query head of sequence 0 from fp64 arithmetic, after a
  /// launch of copy 0.
  [[nodiscard]] double error() const;

 private:
  struct Batch;
  std::unique_ptr<Batch> batch_;
};

}  // namespace terse::bench
