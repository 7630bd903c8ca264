// TextAssembler: one choice's tokens as text that is safe to send, cut at the first stop string.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "tokenizer/tokenizer.h"
#include "tokenizer/utf8.h"

namespace serving {

/// Holds back bytes of a character that is not whole, and text that may turn out to begin a stop string.
class TextAssembler {
 public:
  TextAssembler(const Tokenizer& tokenizer, std::optional<Token> previous, std::span<const std::string> stops);

  /// The text that can be sent now. After a stop string nothing comes any more.
  std::string push(Token token);
  /// What was held back and is text after all.
  std::string finish();
  /// Whole characters that the tokens so far stand for, those held back included.
  [[nodiscard]] std::size_t num_characters() const noexcept { return num_characters_; }
  [[nodiscard]] bool is_stopped() const noexcept { return is_stopped_; }

 private:
  std::string release(bool is_end);

  const Tokenizer& tokenizer_;
  std::optional<Token> previous_;
  std::span<const std::string> stops_;
  Utf8Stream stream_;
  std::string held_;
  std::size_t num_characters_ = 0;
  bool is_stopped_ = false;
};

}  // namespace serving
