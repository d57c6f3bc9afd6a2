#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

namespace terse::examples {

/// The tensor formats read here. Values are the identifiers of the GGUF format.
enum class TensorType : std::uint32_t {
  f32 = 0,
  f16 = 1,
  q4_0 = 2,
  q4_1 = 3,
  q8_0 = 8,
  q6_k = 14,
  bf16 = 30,
};

/// A format stores its elements in blocks of equal size; plain formats have blocks of one element.
struct BlockSize {
  std::size_t elements;
  std::size_t bytes;
};

/// The format with this GGUF identifier; nothing where it is not read here.
[[nodiscard]] std::optional<TensorType> supported_tensor_type(std::uint32_t identifier);

/// The name of a GGUF tensor format, also of those not read here; "type N" for an unknown one.
[[nodiscard]] std::string tensor_type_name(std::uint32_t identifier);

[[nodiscard]] BlockSize block_size(TensorType type);

/// Decodes whole blocks to fp32.
/// \param bytes blocks of `type`; need not be aligned
/// \param values one value for each element; `values.size()` must be the elements of `bytes`
///        (std::invalid_argument otherwise)
void dequantize(TensorType type, std::span<const std::byte> bytes, std::span<float> values);

}  // namespace terse::examples
