// PCRE2 in UTF mode with Unicode properties, as the published expressions expect.
#include "tokenizer/pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "model/config.h"

namespace serving {

Pattern::Pattern(const std::string& expression, const std::string& origin) {
  int error = 0;
  PCRE2_SIZE offset = 0;
  // \C would match a part of a character, and the next match begin in its middle.
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(expression.data()), expression.size(),
                                   PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &offset, nullptr);
  if (code == nullptr) throw LoadError(origin + ": the pre-tokenizer's expression does not compile");
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // If there is no JIT here, matching interprets.
  code_ = std::shared_ptr<const void>(
      code, [](const void* p) { pcre2_code_free(const_cast<pcre2_code*>(static_cast<const pcre2_code*>(p))); });
}

std::vector<std::string_view> Pattern::split(std::string_view text) const {
  const auto* code = static_cast<const pcre2_code*>(code_.get());
  const std::unique_ptr<pcre2_match_data, void (*)(pcre2_match_data*)> match(
      pcre2_match_data_create_from_pattern(code, nullptr), pcre2_match_data_free);
  std::vector<std::string_view> parts;
  std::size_t done = 0, at = 0;
  std::uint32_t checks = 0;  // The whole text is checked to be UTF-8 once, not once a match.
  while (at < text.size()) {
    const int found =
        pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), at, checks, match.get(), nullptr);
    if (found < 0) break;
    checks = PCRE2_NO_UTF_CHECK;
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(match.get());
    if (range[1] <= at && range[1] == range[0]) {  // An empty match moves nothing; look one character further.
      do ++at;
      while (at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0U) == 0x80U);
      continue;
    }
    if (range[0] > done) parts.push_back(text.substr(done, range[0] - done));
    if (range[1] > range[0]) parts.push_back(text.substr(range[0], range[1] - range[0]));
    done = at = range[1];
  }
  if (done < text.size()) parts.push_back(text.substr(done));
  return parts;
}

}  // namespace serving
