// UTF-8: splitting a text into characters, and holding back the bytes of a character that is not complete yet.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace serving {

/// Bytes of the well-formed character at the start of `text`; 0 if there is none (ill-formed or cut off).
std::size_t utf8_length(std::string_view text) noexcept;

/// Characters of a well-formed text.
std::size_t count_characters(std::string_view text) noexcept;

/// Turns a stream of pieces of bytes into a stream of well-formed UTF-8.
///
/// A token may be a part of a character: its bytes wait for the rest. Bytes that can never become one turn into U+FFFD,
/// as a browser shows them.
class Utf8Stream {
 public:
  /// Adds bytes; returns all characters that are complete now.
  std::string push(std::string_view bytes);
  /// The end: what is left over is ill-formed.
  std::string finish();

 private:
  std::string held_;
};

}  // namespace serving
