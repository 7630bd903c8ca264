// GPT-2's byte-level alphabet: each byte as one printable character, so that a vocabulary can be a JSON object.
#pragma once

#include <string>
#include <string_view>

namespace serving {

/// Each byte as its character, in UTF-8.
std::string to_byte_level(std::string_view bytes);
/// The bytes for which a text of such characters stands; other characters are left out.
std::string bytes_of_byte_level(std::string_view text);

}  // namespace serving
