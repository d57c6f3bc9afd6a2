/// What one sealed block of one stream consists of. Plans, host code and kernels all read this.
#pragma once

#include <cstddef>
#include <cstdint>

#include "terse/config.hpp"
#include "terse/core/math.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

/// Tokens of a block: the unit of encoding, paging and sharing.
inline constexpr int block_tokens = 64;

/// Every record, stream and page starts at a multiple of this many bytes.
inline constexpr std::size_t record_align_bytes = 128;
/// And every section of a record at a multiple of this many.
inline constexpr std::size_t section_align_bytes = 16;

enum class Side : std::uint8_t { key, value };

/// A contiguous range of a record.
struct Section {
  std::size_t offset_bytes = 0;
  std::size_t bytes = 0;
};

/// The sections of one encoded block `[64 tokens, width channels]` of one side, in stored order.
struct Record {
  static constexpr int max_sections = 6;
  Section sections[max_sections]{};
  int num_sections = 0;
  std::size_t bytes = 0;  ///< stored size, padding to record_align_bytes included

  /// Appends a section of `section_bytes`, aligned to section_align_bytes.
  TERSE_HOST_DEVICE constexpr void add(std::size_t section_bytes) noexcept {
    const std::size_t end = num_sections == 0 ? 0
                                              : sections[num_sections - 1].offset_bytes +
                                                    sections[num_sections - 1].bytes;
    sections[num_sections] = {round_up(end, section_align_bytes), section_bytes};
    bytes = round_up(sections[num_sections].offset_bytes + section_bytes, record_align_bytes);
    ++num_sections;
  }
};

/// What a codec knows about the stream it encodes, beside the numbers.
struct CodecContext {
  Side side = Side::key;
  int width = 0;  ///< channels of the stream: the head dimension, or a latent's rank
  /// What is known of the stream beforehand (policy/calibration.hpp); null: nothing.
  const float* calibration = nullptr;
};

/// Stored bits per element of a full block, metadata and padding included.
TERSE_HOST_DEVICE constexpr double bits_per_element(const Record& record, int width) noexcept {
  return 8.0 * static_cast<double>(record.bytes) / (block_tokens * width);
}

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
