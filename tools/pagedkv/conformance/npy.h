// Reads NumPy .npy files, trusting nothing in them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <vector>

namespace pagedkv::tool {

enum class NpyType : std::uint8_t { f32, f16, u16, i64, boolean };

std::size_t size_of(NpyType type) noexcept;  ///< Bytes of one element.

/// A dense array in C order, little endian.
struct NpyArray {
  NpyType type = NpyType::f32;
  std::vector<std::int64_t> shape;  ///< No negative entries; empty for a scalar.
  std::vector<std::byte> bytes;     ///< [product of shape] elements.

  [[nodiscard]] std::size_t num_elements() const noexcept { return bytes.size() / size_of(type); }
};

/// Reads a file of format version 1 to 3. Throws BadInput, naming the file, if it is missing, truncated, longer than
/// its header says, not in C order, or of a type that no case uses. Allocates no more than the file is long.
NpyArray read_npy(const std::filesystem::path& path);

}  // namespace pagedkv::tool
