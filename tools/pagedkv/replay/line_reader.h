// Lines of a text file, plain or .xz, in memory that does not grow with the file.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace pagedkv::tool {

/// Reads one line after another. Ends of lines may be LF or CR LF, and the last line may lack its own.
class LineReader {
 public:
  /// Throws BadInput if the file cannot be opened. A file is .xz if it begins like one, whatever its name.
  explicit LineReader(std::string path);
  ~LineReader();
  LineReader(const LineReader&) = delete;
  LineReader& operator=(const LineReader&) = delete;

  /// The next line, valid until the next call, or false at the end. Throws BadInput on damaged or cut compressed data
  /// and on lines beyond 16 MiB.
  bool next(std::string_view& line);

  /// Throws BadInput "FILE:LINE: what" for the line that `next` gave last.
  [[noreturn]] void fail(const std::string& what) const;

 private:
  struct Input;
  bool fill();

  std::string path_;
  std::unique_ptr<Input> input_;
  std::string buffer_;  ///< Decompressed, not yet given out from begin_ on.
  std::size_t begin_ = 0;
  std::uint64_t line_number_ = 0;
};

}  // namespace pagedkv::tool
