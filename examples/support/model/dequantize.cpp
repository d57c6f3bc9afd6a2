#include "dequantize.hpp"

#include <array>
#include <bit>
#include <cstring>
#include <stdexcept>

#include "half.hpp"

namespace terse::examples {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF data are little endian");

template <typename T>
T read(const std::byte* source) {
  T value;
  std::memcpy(&value, source, sizeof(T));
  return value;
}

float read_half(const std::byte* source) { return half_to_float(read<std::uint16_t>(source)); }

int low_nibble(std::byte value) { return std::to_integer<int>(value & std::byte{0x0f}); }
int high_nibble(std::byte value) { return std::to_integer<int>(value >> 4); }

/// [scale, fp16][32 codes of 8 bits, signed]
void decode_q8_0(const std::byte* block, float* values) {
  const float scale = read_half(block);
  for (int i = 0; i < 32; ++i) {
    values[i] = scale * static_cast<float>(read<std::int8_t>(block + 2 + i));
  }
}

/// [scale, fp16][16 bytes; byte i holds code i in its low and code i + 16 in its high half]
void decode_q4_0(const std::byte* block, float* values) {
  const float scale = read_half(block);
  for (int i = 0; i < 16; ++i) {
    values[i] = scale * static_cast<float>(low_nibble(block[2 + i]) - 8);
    values[i + 16] = scale * static_cast<float>(high_nibble(block[2 + i]) - 8);
  }
}

/// [scale, fp16][minimum, fp16][16 bytes as in q4_0]
void decode_q4_1(const std::byte* block, float* values) {
  const float scale = read_half(block);
  const float minimum = read_half(block + 2);
  for (int i = 0; i < 16; ++i) {
    values[i] = scale * static_cast<float>(low_nibble(block[4 + i])) + minimum;
    values[i + 16] = scale * static_cast<float>(high_nibble(block[4 + i])) + minimum;
  }
}

/// [low halves, 128 bytes][upper two bits, 64 bytes][16 scales of 8 bits, signed][scale, fp16]; a
/// scale serves 16 elements. Each half of the block (128 elements) has 64 low and 32 upper bytes;
/// upper byte i completes the elements i, i + 32, i + 64 and i + 96.
void decode_q6_k(const std::byte* block, float* values) {
  const float block_scale = read_half(block + 208);
  for (int half = 0; half < 2; ++half) {
    const std::byte* low = block + 64 * half;
    const std::byte* upper = block + 128 + 32 * half;
    const std::byte* scales = block + 192 + 8 * half;
    for (int i = 0; i < 32; ++i) {
      const int upper_bits = std::to_integer<int>(upper[i]);
      const std::array<int, 4> lower_bits = {low_nibble(low[i]), low_nibble(low[i + 32]),
                                             high_nibble(low[i]), high_nibble(low[i + 32])};
      for (int quarter = 0; quarter < 4; ++quarter) {
        const int element = 32 * quarter + i;
        const int code = lower_bits[static_cast<std::size_t>(quarter)] +
                         ((upper_bits >> (2 * quarter)) & 3) * 16;
        const float scale =
            block_scale * static_cast<float>(read<std::int8_t>(scales + element / 16));
        values[128 * half + element] = scale * static_cast<float>(code - 32);
      }
    }
  }
}

void decode_block(TensorType type, const std::byte* block, float* values) {
  switch (type) {
    case TensorType::f32:
      *values = read<float>(block);
      return;
    case TensorType::f16:
      *values = read_half(block);
      return;
    case TensorType::bf16:
      *values = std::bit_cast<float>(static_cast<std::uint32_t>(read<std::uint16_t>(block)) << 16);
      return;
    case TensorType::q4_0:
      decode_q4_0(block, values);
      return;
    case TensorType::q4_1:
      decode_q4_1(block, values);
      return;
    case TensorType::q8_0:
      decode_q8_0(block, values);
      return;
    case TensorType::q6_k:
      decode_q6_k(block, values);
      return;
  }
}

}  // namespace

std::optional<TensorType> supported_tensor_type(std::uint32_t identifier) {
  switch (static_cast<TensorType>(identifier)) {
    case TensorType::f32:
    case TensorType::f16:
    case TensorType::q4_0:
    case TensorType::q4_1:
    case TensorType::q8_0:
    case TensorType::q6_k:
    case TensorType::bf16:
      return static_cast<TensorType>(identifier);
  }
  return std::nullopt;
}

std::string tensor_type_name(std::uint32_t identifier) {
  // Empty entries were never used or were withdrawn from the format.
  static constexpr std::array<const char*, 31> names = {
      "F32",     "F16",    "Q4_0",    "Q4_1",  "",       "",      "Q5_0",  "Q5_1",
      "Q8_0",    "Q8_1",   "Q2_K",    "Q3_K",  "Q4_K",   "Q5_K",  "Q6_K",  "Q8_K",
      "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS",
      "I8",      "I16",    "I32",     "I64",   "F64",    "IQ1_M", "BF16"};
  if (identifier < names.size() && names[identifier][0] != '\0') {
    return names[identifier];
  }
  return "type " + std::to_string(identifier);
}

BlockSize block_size(TensorType type) {
  switch (type) {
    case TensorType::f32:
      return {1, 4};
    case TensorType::f16:
    case TensorType::bf16:
      return {1, 2};
    case TensorType::q4_0:
      return {32, 18};
    case TensorType::q4_1:
      return {32, 20};
    case TensorType::q8_0:
      return {32, 34};
    case TensorType::q6_k:
      return {256, 210};
  }
  throw std::invalid_argument("block_size: not a tensor type");
}

void dequantize(TensorType type, std::span<const std::byte> bytes, std::span<float> values) {
  const BlockSize block = block_size(type);
  const std::size_t blocks = bytes.size() / block.bytes;
  if (bytes.size() % block.bytes != 0 || values.size() != blocks * block.elements) {
    throw std::invalid_argument("dequantize: the sizes are not those of whole blocks");
  }
  for (std::size_t i = 0; i < blocks; ++i) {
    decode_block(type, bytes.data() + i * block.bytes, values.data() + i * block.elements);
  }
}

}  // namespace terse::examples
