// Safetensors files: a length, a JSON header that names tensors and their byte ranges, then the bytes.
#pragma once

#include <cstdint>
#include <fstream>
#include <map>
#include <string>
#include <vector>

namespace serving {

/// One file, opened and its header checked: every range lies inside the file, fits its shape and is no
/// other's.
///
/// Source: the format page of huggingface/safetensors.
class SafetensorsFile {
 public:
  /// Throws LoadError (see model/config.h): truncated, oversized or malformed header, ranges outside the file or
  /// overlapping.
  explicit SafetensorsFile(std::string path);

  [[nodiscard]] bool contains(const std::string& name) const { return tensors_.contains(name); }
  /// The elements as f32, converted from F32, F16 or BF16. Throws LoadError unless it has that many.
  std::vector<float> read(const std::string& name, std::uint64_t num_elements);

 private:
  enum class Element : std::uint8_t { kF32, kF16, kBf16, kOther };
  struct Entry {
    Element element = Element::kOther;
    std::uint64_t num_elements = 0;
    std::uint64_t begin = 0;  // Byte offset in the file.
  };

  std::string path_;
  std::ifstream file_;
  std::map<std::string, Entry> tensors_;
};

}  // namespace serving
