// Well-formed UTF-8 by table 3-7 of the Unicode standard.
#include "tokenizer/utf8.h"

#include <algorithm>
#include <cstdint>

namespace serving {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

struct Lead {
  std::size_t length;
  std::uint8_t least, most;  // Of the second byte; all others are 80..BF.
};

Lead lead_of(std::uint8_t byte) noexcept {
  if (byte < 0x80) return {1, 0, 0};
  if (byte >= 0xC2 && byte <= 0xDF) return {2, 0x80, 0xBF};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};
  if (byte == 0xED) return {3, 0x80, 0x9F};
  if (byte >= 0xE1 && byte <= 0xEF) return {3, 0x80, 0xBF};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte >= 0xF1 && byte <= 0xF3) return {4, 0x80, 0xBF};
  if (byte == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

// How many bytes at the start of `text` (not empty) are the beginning of one well-formed character, and whether it is
// whole.
struct Prefix {
  std::size_t bytes;
  bool is_whole;
};
Prefix prefix_of(std::string_view text) noexcept {
  const Lead lead = lead_of(static_cast<std::uint8_t>(text[0]));
  if (lead.length == 0) return {0, false};
  std::size_t bytes = 1;
  while (bytes < lead.length && bytes < text.size()) {
    const auto byte = static_cast<std::uint8_t>(text[bytes]);
    const bool fits = bytes == 1 ? byte >= lead.least && byte <= lead.most : byte >= 0x80 && byte <= 0xBF;
    if (!fits) return {bytes, false};
    ++bytes;
  }
  return {bytes, bytes == lead.length};
}

}  // namespace

std::size_t utf8_length(std::string_view text) noexcept {
  if (text.empty()) return 0;
  const Prefix prefix = prefix_of(text);
  return prefix.is_whole ? prefix.bytes : 0;
}

std::size_t count_characters(std::string_view text) noexcept {
  const auto begins_one = [](char c) { return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U; };
  return static_cast<std::size_t>(std::ranges::count_if(text, begins_one));
}

std::string Utf8Stream::push(std::string_view bytes) {
  held_ += bytes;
  std::string out;
  std::size_t at = 0;
  while (at < held_.size()) {
    const Prefix prefix = prefix_of(std::string_view(held_).substr(at));
    if (prefix.is_whole) {
      out.append(held_, at, prefix.bytes);
      at += prefix.bytes;
    } else if (at + prefix.bytes == held_.size() && prefix.bytes > 0) {
      break;  // The rest may still come.
    } else {
      out += kReplacement;
      at += prefix.bytes > 0 ? prefix.bytes : 1;
    }
  }
  held_.erase(0, at);
  return out;
}

std::string Utf8Stream::finish() {
  const bool is_cut = !held_.empty();
  held_.clear();
  return is_cut ? std::string(kReplacement) : std::string();
}

}  // namespace serving
