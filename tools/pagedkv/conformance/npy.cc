// The .npy format: magic, version, header length, a Python dictionary as text, then the elements.
#include "conformance/npy.h"

#include <array>
#include <charconv>
#include <cstring>
#include <fstream>
#include <string>
#include <string_view>
#include <utility>

#include "tool.h"

namespace pagedkv::tool {
namespace {

constexpr std::uint64_t kMaxFileBytes = std::uint64_t{1} << 30;  ///< Far beyond any conformance case.
constexpr std::string_view kMagic = "\x93NUMPY";

struct Header {
  std::string descr;
  bool fortran_order = false;
  std::vector<std::int64_t> shape;
};

/// Scans the header's dictionary: quoted keys, and values that are a string, a truth value or a tuple of integers.
class HeaderScanner {
 public:
  explicit HeaderScanner(std::string_view text) : rest_(text) {}

  /// False if the text is not such a dictionary or lacks one of the three keys.
  bool scan(Header& header) {
    unsigned keys_seen = 0;
    if (!take('{')) return false;
    while (!take('}')) {
      std::string key;
      if (!take_string(key) || !take(':')) return false;
      if (key == "descr" && take_string(header.descr)) {
        keys_seen |= 1U;
      } else if (key == "fortran_order" && take_bool(header.fortran_order)) {
        keys_seen |= 2U;
      } else if (key == "shape" && take_shape(header.shape)) {
        keys_seen |= 4U;
      } else {
        return false;
      }
      if (!take(',') && peek() != '}') return false;
    }
    return keys_seen == 7U;
  }

 private:
  char peek() {
    while (!rest_.empty() && (rest_[0] == ' ' || rest_[0] == '\n')) rest_.remove_prefix(1);
    return rest_.empty() ? '\0' : rest_[0];
  }
  bool take(char c) {
    if (peek() != c) return false;
    rest_.remove_prefix(1);
    return true;
  }
  bool take_string(std::string& value) {
    const char quote = peek();
    if (quote != '\'' && quote != '"') return false;
    const std::size_t end = rest_.find(quote, 1);
    if (end == std::string_view::npos) return false;
    value = rest_.substr(1, end - 1);
    rest_.remove_prefix(end + 1);
    return true;
  }
  bool take_bool(bool& value) {
    peek();
    for (const auto& [word, meaning] :
         {std::pair{std::string_view("True"), true}, {std::string_view("False"), false}}) {
      if (!rest_.starts_with(word)) continue;
      rest_.remove_prefix(word.size());
      value = meaning;
      return true;
    }
    return false;
  }
  bool take_shape(std::vector<std::int64_t>& shape) {
    if (!take('(')) return false;
    shape.clear();
    while (!take(')')) {
      std::int64_t extent = 0;
      peek();
      const auto [end, error] = std::from_chars(rest_.data(), rest_.data() + rest_.size(), extent);
      if (error != std::errc() || extent < 0 || shape.size() == 8) return false;
      rest_.remove_prefix(static_cast<std::size_t>(end - rest_.data()));
      shape.push_back(extent);
      if (!take(',') && peek() != ')') return false;
    }
    return true;
  }

  std::string_view rest_;
};

std::vector<std::byte> read_all(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) throw BadInput(path.string() + ": cannot be opened");
  const std::streamoff size = file.tellg();
  if (size < 0 || static_cast<std::uint64_t>(size) > kMaxFileBytes) {
    throw BadInput(path.string() + ": not a regular file of at most 1 GiB");
  }
  std::vector<std::byte> bytes(static_cast<std::size_t>(size));
  file.seekg(0);
  file.read(reinterpret_cast<char*>(bytes.data()), size);
  if (!file) throw BadInput(path.string() + ": cannot be read");
  return bytes;
}

NpyType type_of(const std::string& descr, const std::filesystem::path& path) {
  constexpr std::array<std::pair<std::string_view, NpyType>, 5> kTypes = {{{"<f4", NpyType::f32},
                                                                           {"<f2", NpyType::f16},
                                                                           {"<u2", NpyType::u16},
                                                                           {"<i8", NpyType::i64},
                                                                           {"|b1", NpyType::boolean}}};
  for (const auto& [name, type] : kTypes) {
    if (name == descr) return type;
  }
  throw BadInput(path.string() + ": element type '" + descr + "' is not one of <f4 <f2 <u2 <i8 |b1");
}

}  // namespace

std::size_t size_of(NpyType type) noexcept {
  switch (type) {
    case NpyType::f32: return 4;
    case NpyType::f16:
    case NpyType::u16: return 2;
    case NpyType::i64: return 8;
    case NpyType::boolean: break;
  }
  return 1;
}

NpyArray read_npy(const std::filesystem::path& path) {
  std::vector<std::byte> file = read_all(path);
  const auto byte_at = [&](std::size_t i) { return std::to_integer<std::size_t>(file[i]); };
  if (file.size() < 10 || std::memcmp(file.data(), kMagic.data(), kMagic.size()) != 0) {
    throw BadInput(path.string() + ": not a .npy file");
  }
  const std::size_t version = byte_at(6);
  if (version < 1 || version > 3) throw BadInput(path.string() + ": unknown .npy version");
  const std::size_t header_begin = version == 1 ? 10 : 12;
  if (file.size() < header_begin) throw BadInput(path.string() + ": truncated in its header");
  std::size_t header_bytes = byte_at(8) | byte_at(9) << 8;
  if (version > 1) header_bytes |= byte_at(10) << 16 | byte_at(11) << 24;
  if (header_bytes > file.size() - header_begin) throw BadInput(path.string() + ": truncated in its header");

  Header header;
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + header_begin, header_bytes);
  if (!HeaderScanner(text).scan(header)) throw BadInput(path.string() + ": malformed .npy header");
  if (header.fortran_order && header.shape.size() > 1) throw BadInput(path.string() + ": not in C order");
  const NpyType type = type_of(header.descr, path);
  std::uint64_t expected_bytes = size_of(type);
  for (const std::int64_t extent : header.shape) {
    if (__builtin_mul_overflow(expected_bytes, static_cast<std::uint64_t>(extent), &expected_bytes)) {
      throw BadInput(path.string() + ": the size of its shape overflows");
    }
  }
  const std::size_t data_begin = header_begin + header_bytes;
  if (expected_bytes != file.size() - data_begin) {
    throw BadInput(path.string() + ": holds " + std::to_string(file.size() - data_begin) +
                   " bytes of elements, its shape needs " + std::to_string(expected_bytes));
  }
  file.erase(file.begin(), file.begin() + static_cast<std::ptrdiff_t>(data_begin));
  return {type, std::move(header.shape), std::move(file)};
}

}  // namespace pagedkv::tool
