// Looks for stop strings across the borders of tokens.
#include "http/text_assembler.h"

#include <algorithm>

namespace serving {

TextAssembler::TextAssembler(const Tokenizer& tokenizer, std::optional<Token> previous,
                             std::span<const std::string> stops)
    : tokenizer_(tokenizer), previous_(previous), stops_(stops) {}

std::string TextAssembler::push(Token token) {
  if (is_stopped_) return {};
  const std::string text = stream_.push(tokenizer_.piece(previous_, token));
  num_characters_ += count_characters(text);
  held_ += text;
  previous_ = token;
  return release(false);
}

std::string TextAssembler::finish() {
  if (is_stopped_) return {};
  held_ += stream_.finish();
  return release(true);
}

std::string TextAssembler::release(bool is_end) {
  std::size_t cut = std::string::npos;
  for (const std::string& stop : stops_) cut = std::min(cut, held_.find(stop));
  if (cut != std::string::npos) {
    is_stopped_ = true;
    std::string text = held_.substr(0, cut);
    held_.clear();
    return text;
  }
  // The longest end of the text that a stop string could begin with stays.
  std::size_t kept = 0;
  for (const std::string& stop : stops_) {
    for (std::size_t length = std::min(stop.size() - 1, held_.size()); !is_end && length > kept; --length) {
      if (std::string_view(held_).ends_with(std::string_view(stop).substr(0, length))) kept = length;
    }
  }
  std::string text = held_.substr(0, held_.size() - kept);
  held_.erase(0, held_.size() - kept);
  return text;
}

}  // namespace serving
