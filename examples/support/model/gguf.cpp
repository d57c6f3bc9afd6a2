#include "gguf.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "input_error.hpp"
#include "quoted.hpp"

namespace terse::examples {
namespace {

constexpr std::size_t max_dimensions = 4;
/// The limits of the format: a longer name or key comes from a damaged length.
constexpr std::size_t max_name_bytes = 64;
constexpr std::size_t max_key_bytes = 65535;

enum class ValueType : std::uint32_t {
  u8 = 0,
  i8 = 1,
  u16 = 2,
  i16 = 3,
  u32 = 4,
  i32 = 5,
  f32 = 6,
  boolean = 7,
  string = 8,
  array = 9,
  u64 = 10,
  i64 = 11,
  f64 = 12,
};

/// Bytes of a scalar; 0 for strings, arrays and unknown types.
std::size_t scalar_bytes(std::uint32_t type) {
  switch (static_cast<ValueType>(type)) {
    case ValueType::u8:
    case ValueType::i8:
    case ValueType::boolean:
      return 1;
    case ValueType::u16:
    case ValueType::i16:
      return 2;
    case ValueType::u32:
    case ValueType::i32:
    case ValueType::f32:
      return 4;
    case ValueType::u64:
    case ValueType::i64:
    case ValueType::f64:
      return 8;
    default:
      return 0;
  }
}

template <typename T>
T load(const std::byte* source) {
  T value;
  std::memcpy(&value, source, sizeof(T));
  return value;
}

GgufValue load_scalar(std::uint32_t type, const std::byte* source) {
  switch (static_cast<ValueType>(type)) {
    case ValueType::u8:
      return std::uint64_t{load<std::uint8_t>(source)};
    case ValueType::i8:
      return std::int64_t{load<std::int8_t>(source)};
    case ValueType::u16:
      return std::uint64_t{load<std::uint16_t>(source)};
    case ValueType::i16:
      return std::int64_t{load<std::int16_t>(source)};
    case ValueType::u32:
      return std::uint64_t{load<std::uint32_t>(source)};
    case ValueType::i32:
      return std::int64_t{load<std::int32_t>(source)};
    case ValueType::f32:
      return double{load<float>(source)};
    case ValueType::boolean:
      return load<std::uint8_t>(source) != 0;
    case ValueType::u64:
      return load<std::uint64_t>(source);
    case ValueType::i64:
      return load<std::int64_t>(source);
    default:
      return load<double>(source);
  }
}

std::optional<int> to_int(const GgufValue& value) {
  return std::visit(
      [](const auto& held) -> std::optional<int> {
        using Held = std::decay_t<decltype(held)>;
        if constexpr (std::is_same_v<Held, std::uint64_t> || std::is_same_v<Held, std::int64_t>) {
          if (std::in_range<int>(held)) {
            return static_cast<int>(held);
          }
        }
        return std::nullopt;
      },
      value);
}

/// Reads forward through the file; every read is checked against what is left.
class Cursor {
 public:
  explicit Cursor(std::span<const std::byte> bytes) : bytes_(bytes) {}

  [[nodiscard]] std::size_t position() const { return position_; }
  [[nodiscard]] std::size_t left() const { return bytes_.size() - position_; }

  [[nodiscard]] std::span<const std::byte> take(std::uint64_t count, const char* what) {
    if (count > left()) {
      throw InputError(std::string("the file ends within ") + what);
    }
    const auto taken = bytes_.subspan(position_, static_cast<std::size_t>(count));
    position_ += taken.size();
    return taken;
  }

  template <typename T>
  [[nodiscard]] T number(const char* what) {
    return load<T>(take(sizeof(T), what).data());
  }

  [[nodiscard]] std::string_view string(const char* what) {
    const auto text = take(number<std::uint64_t>(what), what);
    return {reinterpret_cast<const char*>(text.data()), text.size()};
  }

  /// A string of at most `limit` bytes.
  [[nodiscard]] std::string short_string(std::size_t limit, const char* what) {
    const std::string_view text = string(what);
    if (text.size() > limit) {
      throw InputError(std::string(what) + ", " + quoted(text) + ", has " +
                       std::to_string(text.size()) + " bytes; the format allows " +
                       std::to_string(limit));
    }
    return std::string(text);
  }

  /// A count of things that each take at least `least_bytes`: refused where they cannot all follow.
  [[nodiscard]] std::size_t count(std::uint64_t value, std::size_t least_bytes, const char* what) {
    if (value > left() / least_bytes) {
      throw InputError(std::string("the number of ") + what + " (" + std::to_string(value) +
                       ") is more than the file can hold");
    }
    return static_cast<std::size_t>(value);
  }

 private:
  std::span<const std::byte> bytes_;
  std::size_t position_ = 0;
};

GgufValue read_value(Cursor& cursor, const std::string& key) {
  const auto type = cursor.number<std::uint32_t>("a value's type");
  if (type == static_cast<std::uint32_t>(ValueType::string)) {
    return cursor.string("a text value");
  }
  if (type != static_cast<std::uint32_t>(ValueType::array)) {
    const std::size_t bytes = scalar_bytes(type);
    if (bytes == 0) {
      throw InputError("the value of " + quoted(key) + " has unknown type " + std::to_string(type));
    }
    return load_scalar(type, cursor.take(bytes, "a value").data());
  }
  const auto element_type = cursor.number<std::uint32_t>("an array's type");
  const auto declared = cursor.number<std::uint64_t>("an array's length");
  if (element_type == static_cast<std::uint32_t>(ValueType::string)) {
    std::vector<std::string_view> strings(cursor.count(declared, 8, "texts in an array"));
    for (std::string_view& text : strings) {
      text = cursor.string("a text in an array");
    }
    return strings;
  }
  const std::size_t bytes = scalar_bytes(element_type);
  if (bytes == 0) {
    throw InputError("the array " + quoted(key) + " has element type " +
                     std::to_string(element_type) + ", which is not supported");
  }
  const std::size_t count = cursor.count(declared, bytes, "values in an array");
  return GgufScalarArray{element_type, count, cursor.take(count * bytes, "an array")};
}

struct TensorEntry {
  GgufTensor tensor;
  std::uint64_t offset_bytes;
};

TensorEntry read_tensor_entry(Cursor& cursor) {
  TensorEntry entry;
  GgufTensor& tensor = entry.tensor;
  tensor.name = cursor.short_string(max_name_bytes, "a tensor's name");
  const std::string subject = "tensor " + quoted(tensor.name);
  const auto dimensions = cursor.number<std::uint32_t>("a tensor's description");
  if (dimensions == 0 || dimensions > max_dimensions) {
    throw InputError(subject + " has " + std::to_string(dimensions) + " dimensions");
  }
  std::uint64_t elements = 1;
  for (std::uint32_t i = 0; i < dimensions; ++i) {
    const auto extent = cursor.number<std::uint64_t>("a tensor's description");
    // A byte holds at most two elements of any format, so larger products cannot be in a file.
    constexpr std::uint64_t limit = std::numeric_limits<std::uint64_t>::max() / 16;
    if (extent == 0 || extent > limit / elements) {
      throw InputError(subject + " has an extent of " + std::to_string(extent));
    }
    elements *= extent;
    tensor.shape.push_back(static_cast<std::size_t>(extent));
  }
  std::reverse(tensor.shape.begin(), tensor.shape.end());
  tensor.elements = static_cast<std::size_t>(elements);
  const auto type = cursor.number<std::uint32_t>("a tensor's description");
  const auto supported = supported_tensor_type(type);
  if (!supported) {
    throw InputError(subject + " has format " + tensor_type_name(type) +
                     "; supported are F32, F16, BF16, Q8_0, Q4_0, Q4_1 and Q6_K");
  }
  tensor.type = *supported;
  if (tensor.shape.back() % block_size(tensor.type).elements != 0) {
    throw InputError(subject + " has rows of " + std::to_string(tensor.shape.back()) +
                     " elements, not a multiple of the block of " + tensor_type_name(type));
  }
  entry.offset_bytes = cursor.number<std::uint64_t>("a tensor's description");
  return entry;
}

}  // namespace

GgufFile GgufFile::open(const std::string& path) {
  GgufFile file;
  file.path_ = path;
  file.file_ = MappedFile(path);
  file.parse();
  return file;
}

GgufFile GgufFile::from_bytes(std::vector<std::byte> bytes, const std::string& name) {
  GgufFile file;
  file.path_ = name;
  file.file_ = MappedFile(std::move(bytes));
  file.parse();
  return file;
}

void GgufFile::parse() try {
  const std::span<const std::byte> bytes = file_.bytes();
  Cursor cursor(bytes);
  const auto magic = cursor.take(4, "the magic number");
  if (std::memcmp(magic.data(), "GGUF", 4) != 0) {
    throw InputError("is not a GGUF file");
  }
  const auto version = cursor.number<std::uint32_t>("the version");
  if (version != 2 && version != 3) {
    throw InputError((version & 0xffffu) == 0 ? "is a big-endian GGUF file, which is not supported"
                                              : "has GGUF version " + std::to_string(version) +
                                                    "; supported are 2 and 3");
  }
  const auto declared_tensors = cursor.number<std::uint64_t>("the header");
  const auto declared_values = cursor.number<std::uint64_t>("the header");

  // The smallest value is a key of no characters, a type and one byte.
  const std::size_t value_count = cursor.count(declared_values, 13, "metadata values");
  for (std::size_t i = 0; i < value_count; ++i) {
    const std::string key = cursor.short_string(max_key_bytes, "a metadata key");
    GgufValue value = read_value(cursor, key);
    if (!values_.emplace(key, std::move(value)).second) {
      throw InputError("metadata key " + quoted(key) + " occurs twice");
    }
  }

  // The smallest entry is a name of no characters, a dimension count, one extent, a type, an
  // offset.
  const std::size_t tensor_count = cursor.count(declared_tensors, 32, "tensors");
  std::vector<TensorEntry> entries;
  for (std::size_t i = 0; i < tensor_count; ++i) {
    entries.push_back(read_tensor_entry(cursor));
  }

  std::size_t alignment = 32;
  if (const GgufValue* value = find("general.alignment")) {
    const std::optional<int> declared = to_int(*value);
    if (!declared || *declared < 8 || *declared > (1 << 20) ||
        !std::has_single_bit(static_cast<unsigned>(*declared))) {
      throw InputError("general.alignment is not a power of two from 8 to 2^20");
    }
    alignment = static_cast<std::size_t>(*declared);
  }
  // A file without tensors may end before the padding does.
  const std::size_t data_begin =
      std::min(bytes.size(), (cursor.position() + alignment - 1) / alignment * alignment);
  const std::span<const std::byte> data = bytes.subspan(data_begin);
  for (TensorEntry& entry : entries) {
    GgufTensor& tensor = entry.tensor;
    const BlockSize block = block_size(tensor.type);
    const std::size_t blocks = tensor.elements / block.elements;
    if (entry.offset_bytes % alignment != 0) {
      throw InputError("tensor " + quoted(tensor.name) + " is not aligned");
    }
    if (entry.offset_bytes > data.size() ||
        blocks > (data.size() - entry.offset_bytes) / block.bytes) {
      throw InputError("tensor " + quoted(tensor.name) + " reaches past the end of the file");
    }
    tensor.bytes = data.subspan(static_cast<std::size_t>(entry.offset_bytes), blocks * block.bytes);
    std::string name = tensor.name;
    if (!tensors_.emplace(name, std::move(tensor)).second) {
      throw InputError("tensor " + quoted(name) + " occurs twice");
    }
  }
} catch (const InputError& error) {
  refuse(error.what());
}

void GgufFile::refuse(const std::string& what) const { throw InputError(path_ + ": " + what); }

const GgufTensor* GgufFile::find_tensor(std::string_view name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

const GgufTensor& GgufFile::tensor(std::string_view name) const {
  const GgufTensor* found = find_tensor(name);
  if (found == nullptr) {
    refuse("has no tensor " + quoted(name));
  }
  return *found;
}

const GgufValue* GgufFile::find(std::string_view key) const {
  const auto found = values_.find(key);
  return found == values_.end() ? nullptr : &found->second;
}

template <typename T>
const T& GgufFile::held(std::string_view key, const char* kind) const {
  const GgufValue* value = find(key);
  const T* result = value != nullptr ? std::get_if<T>(value) : nullptr;
  if (result == nullptr) {
    refuse("metadata " + quoted(key) + " is missing or not " + kind);
  }
  return *result;
}

int GgufFile::integer(std::string_view key, std::optional<int> fallback) const {
  const GgufValue* value = find(key);
  const std::optional<int> result = value != nullptr ? to_int(*value) : fallback;
  if (!result) {
    refuse("metadata " + quoted(key) + " is missing or not a small integer");
  }
  return *result;
}

float GgufFile::real(std::string_view key, std::optional<float> fallback) const {
  if (fallback && !has(key)) {
    return *fallback;
  }
  const float value = static_cast<float>(held<double>(key, "a real number"));
  if (!std::isfinite(value)) {
    refuse("metadata " + quoted(key) + " is not finite");
  }
  return value;
}

bool GgufFile::boolean(std::string_view key, std::optional<bool> fallback) const {
  return fallback && !has(key) ? *fallback : held<bool>(key, "a truth value");
}

std::string GgufFile::text(std::string_view key, std::optional<std::string> fallback) const {
  return fallback && !has(key) ? *std::move(fallback)
                               : std::string(held<std::string_view>(key, "a text"));
}

const std::vector<std::string_view>& GgufFile::strings(std::string_view key) const {
  return held<std::vector<std::string_view>>(key, "an array of texts");
}

std::vector<float> GgufFile::reals(std::string_view key) const {
  const GgufScalarArray& array = held<GgufScalarArray>(key, "an array of numbers");
  if (array.element_type != static_cast<std::uint32_t>(ValueType::f32)) {
    refuse("metadata " + quoted(key) + " is not an array of fp32 numbers");
  }
  std::vector<float> result(array.count);
  for (std::size_t i = 0; i < array.count; ++i) {
    result[i] = load<float>(array.bytes.data() + 4 * i);
  }
  return result;
}

std::vector<int> GgufFile::integers(std::string_view key) const {
  const GgufScalarArray& array = held<GgufScalarArray>(key, "an array of numbers");
  std::vector<int> result(array.count);
  const std::size_t bytes = scalar_bytes(array.element_type);
  for (std::size_t i = 0; i < array.count; ++i) {
    const auto element = to_int(load_scalar(array.element_type, array.bytes.data() + bytes * i));
    if (!element) {
      refuse("metadata " + quoted(key) + " is not an array of small integers");
    }
    result[i] = *element;
  }
  return result;
}

}  // namespace terse::examples
