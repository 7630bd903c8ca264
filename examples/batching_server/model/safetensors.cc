// Checks a safetensors header before believing any of it, then reads tensors by name.
#include "model/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <filesystem>

#include "model/bf16.h"
#include "model/json_file.h"

namespace serving {
namespace {

constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;  // The limit of the reference implementation.

float from_f16(std::uint16_t half) {
  const std::uint32_t sign = (half & 0x8000U) << 16;
  const std::uint32_t exponent = (half >> 10) & 0x1FU;
  const std::uint32_t mantissa = half & 0x3FFU;
  if (exponent == 0x1F) return std::bit_cast<float>(sign | 0x7F800000U | (mantissa << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24F;  // Zero and subnormals.
  return sign != 0 ? -magnitude : magnitude;
}

// The product of a JSON array of sizes, or false if it is not one or overflows.
bool product_of(const Json& shape, std::uint64_t& product) {
  if (!shape.is_array()) return false;
  product = 1;
  for (const Json& size : shape) {
    if (!size.is_number_unsigned() || __builtin_mul_overflow(product, size.get<std::uint64_t>(), &product))
      return false;
  }
  return true;
}

bool overlap(std::vector<std::array<std::uint64_t, 2>>& ranges) {
  std::ranges::sort(ranges);
  const auto begins_too_early = [](const auto& range, const auto& next) { return next[0] < range[1]; };
  return std::ranges::adjacent_find(ranges, begins_too_early) != ranges.end();
}

}  // namespace

SafetensorsFile::SafetensorsFile(std::string path) : path_(std::move(path)), file_(path_, std::ios::binary) {
  std::error_code error;
  const std::uint64_t file_bytes = std::filesystem::file_size(path_, error);
  if (error || !file_) throw LoadError(path_ + ": cannot be opened");
  std::uint64_t header_bytes = 0;
  file_.read(reinterpret_cast<char*>(&header_bytes), sizeof header_bytes);
  if (!file_) throw LoadError(path_ + ": shorter than a safetensors header");
  if (header_bytes > kMaxHeaderBytes || header_bytes > file_bytes - sizeof header_bytes) {
    throw LoadError(path_ + ": the header's length lies beyond the file");
  }
  std::string header(header_bytes, '\0');
  file_.read(header.data(), static_cast<std::streamsize>(header_bytes));
  if (!file_) throw LoadError(path_ + ": ended inside the header");
  const std::uint64_t data_begin = sizeof header_bytes + header_bytes;
  const std::uint64_t data_bytes = file_bytes - data_begin;

  const Json json = parse_json(header, path_);
  if (!json.is_object()) throw LoadError(path_ + ": the header is not an object");
  std::vector<std::array<std::uint64_t, 2>> ranges;
  for (const auto& [name, value] : json.items()) {
    if (name == "__metadata__") continue;
    const std::string origin = path_ + ": tensor '" + name.substr(0, 200) + "'";
    const auto dtype = value.is_object() ? value.find("dtype") : value.end();
    const auto shape = value.is_object() ? value.find("shape") : value.end();
    const auto range = value.is_object() ? value.find("data_offsets") : value.end();
    if (!value.is_object() || dtype == value.end() || !dtype->is_string() || shape == value.end() ||
        range == value.end() || !range->is_array() || range->size() != 2 || !(*range)[0].is_number_unsigned() ||
        !(*range)[1].is_number_unsigned()) {
      throw LoadError(origin + " is not described by dtype, shape and data_offsets");
    }
    Entry entry;
    entry.element = *dtype == "F32"    ? Element::kF32
                    : *dtype == "F16"  ? Element::kF16
                    : *dtype == "BF16" ? Element::kBf16
                                       : Element::kOther;
    const auto begin = (*range)[0].get<std::uint64_t>();
    const auto end = (*range)[1].get<std::uint64_t>();
    if (!product_of(*shape, entry.num_elements)) throw LoadError(origin + " has a malformed shape");
    if (begin > end || end > data_bytes) throw LoadError(origin + " lies outside the file");
    const std::uint64_t element_bytes = entry.element == Element::kF32 ? 4 : 2;
    if (entry.element != Element::kOther &&
        (entry.num_elements > data_bytes || entry.num_elements * element_bytes != end - begin)) {
      throw LoadError(origin + " has a range that does not fit its shape");
    }
    entry.begin = data_begin + begin;
    tensors_.emplace(name, entry);
    ranges.push_back({begin, end});
  }
  // As in the reference implementation: or a small file could stand for any amount of memory.
  if (overlap(ranges)) throw LoadError(path_ + ": tensors share bytes");
}

std::vector<float> SafetensorsFile::read(const std::string& name, std::uint64_t num_elements) {
  const auto it = tensors_.find(name);
  if (it == tensors_.end()) throw LoadError(path_ + ": no tensor '" + name + "'");
  const Entry& entry = it->second;
  if (entry.element == Element::kOther) throw LoadError(path_ + ": tensor '" + name + "' is not F32, F16 or BF16");
  if (entry.num_elements != num_elements) {
    throw LoadError(path_ + ": tensor '" + name + "' has another size than the configuration says");
  }
  std::vector<float> values(num_elements);
  file_.clear();
  file_.seekg(static_cast<std::streamoff>(entry.begin));
  if (entry.element == Element::kF32) {
    file_.read(reinterpret_cast<char*>(values.data()), static_cast<std::streamsize>(num_elements * sizeof(float)));
  } else {
    std::vector<std::uint16_t> halves(num_elements);
    file_.read(reinterpret_cast<char*>(halves.data()), static_cast<std::streamsize>(num_elements * 2));
    for (std::uint64_t i = 0; i < num_elements; ++i) {
      values[i] = entry.element == Element::kF16 ? from_f16(halves[i]) : from_bf16(halves[i]);
    }
  }
  if (!file_) throw LoadError(path_ + ": ended inside tensor '" + name + "'");
  return values;
}

}  // namespace serving
