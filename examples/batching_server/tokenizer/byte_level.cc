// Printable Latin-1 bytes stand for themselves; the other 68 follow from U+0100 on, in order.
#include "tokenizer/byte_level.h"

#include <array>
#include <cstdint>

#include "tokenizer/utf8.h"

namespace serving {
namespace {

constexpr std::size_t kLastCharacter = 0x143;  // 0xFF + 68

struct Alphabet {
  std::array<std::uint16_t, 256> character_of{};
  std::array<std::int16_t, kLastCharacter + 1> byte_of{};
};

constexpr Alphabet make_alphabet() {
  Alphabet a;
  a.byte_of.fill(-1);
  std::uint16_t next = 0x100;
  for (std::uint16_t byte = 0; byte < 256; ++byte) {
    const bool is_printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    const std::uint16_t character = is_printable ? byte : next++;
    a.character_of[byte] = character;
    a.byte_of[character] = static_cast<std::int16_t>(byte);
  }
  return a;
}
constexpr Alphabet kAlphabet = make_alphabet();

}  // namespace

std::string to_byte_level(std::string_view bytes) {
  std::string text;
  for (char c : bytes) {
    const std::uint32_t character = kAlphabet.character_of[static_cast<unsigned char>(c)];
    if (character < 0x80) {
      text += static_cast<char>(character);
    } else {  // All lie below U+0800: two bytes of UTF-8.
      text += static_cast<char>(0xC0U | (character >> 6));
      text += static_cast<char>(0x80U | (character & 0x3FU));
    }
  }
  return text;
}

std::string bytes_of_byte_level(std::string_view text) {
  std::string bytes;
  while (!text.empty()) {
    const std::size_t length = utf8_length(text);
    std::uint32_t character = static_cast<unsigned char>(text[0]);
    if (length == 2) character = ((character & 0x1FU) << 6) | (static_cast<unsigned char>(text[1]) & 0x3FU);
    if ((length == 1 || length == 2) && character <= kLastCharacter && kAlphabet.byte_of[character] >= 0) {
      bytes += static_cast<char>(kAlphabet.byte_of[character]);
    }
    text.remove_prefix(length == 0 ? 1 : length);
  }
  return bytes;
}

}  // namespace serving
