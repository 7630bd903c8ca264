// What fuzz targets share: bytes read as choices and numbers, checks that end the program, and files to parse.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace pagedkv::fuzz {

/// Ends the program, as a sanitizer would, if `holds` is false.
inline void check(bool holds, const char* claim) {
  if (holds) return;
  std::fprintf(stderr, "does not hold: %s\n", claim);
  std::abort();
}

/// Reads the fuzzer's bytes from the front; past their end everything is 0. So a change of one byte changes one choice.
class Input {
 public:
  Input(const std::uint8_t* data, std::size_t size) : rest_(reinterpret_cast<const char*>(data), size) {}

  [[nodiscard]] bool empty() const noexcept { return rest_.empty(); }
  template <class T>
  T number() noexcept {
    T value{};
    const std::size_t taken = std::min(sizeof value, rest_.size());
    if (taken != 0) std::memcpy(&value, rest_.data(), taken);
    rest_.remove_prefix(taken);
    return value;
  }
  /// 0 .. count - 1; count is at most 65,536.
  std::size_t below(std::size_t count) noexcept {
    const std::size_t drawn = count <= 256 ? number<std::uint8_t>() : number<std::uint16_t>();
    return drawn % count;
  }
  std::uint32_t between(std::uint32_t least, std::uint32_t most) noexcept {
    return least + static_cast<std::uint32_t>(below(std::size_t{most} - least + 1));
  }
  /// True for one byte in `one_in`.
  bool rarely(std::size_t one_in) noexcept { return below(one_in) == one_in - 1; }
  /// A number that a careless or hostile caller might pass: around powers of two, the ends of types, or anything.
  std::int64_t odd_number() noexcept {
    switch (below(4)) {
      case 0: return static_cast<std::int64_t>((std::uint64_t{1} << below(64)) - 1 + below(3));
      case 1: return -static_cast<std::int64_t>(below(4)) - 1;
      case 2: return static_cast<std::int64_t>(below(300));
      default: return number<std::int64_t>();
    }
  }
  std::string_view take(std::size_t count) noexcept {
    const std::string_view taken = rest_.substr(0, count);
    rest_.remove_prefix(taken.size());
    return taken;
  }
  std::string_view rest() noexcept { return take(rest_.size()); }

 private:
  std::string_view rest_;
};

/// A folder in memory if there is one, removed at the end of the program: parsers take files.
class ScratchFolder {
 public:
  ScratchFolder() {
    const bool in_memory = std::filesystem::is_directory("/dev/shm");
    path_ = (in_memory ? std::string("/dev/shm") : std::filesystem::temp_directory_path().string()) + "/pagedkv-XXXXXX";
    check(mkdtemp(path_.data()) != nullptr, "a folder for scratch files can be made");
  }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  ~ScratchFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  [[nodiscard]] const std::string& path() const noexcept { return path_; }
  /// Replaces a file and returns its path.
  std::string write(const char* name, std::string_view bytes) const {
    std::string file = path_ + "/" + name;
    std::ofstream(file, std::ios::binary | std::ios::trunc) << bytes;
    return file;
  }

 private:
  std::string path_;
};

}  // namespace pagedkv::fuzz
