// Tokenizer: text to token ids and back, whichever file it came from.
#pragma once

#include <pagedkv/types.h>

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace serving {

using pagedkv::Token;

/// Whether the names of special tokens in a text stand for those tokens. What a user typed never may.
enum class SpecialText : std::uint8_t { kIsPlain, kIsParsed };

/// Threads: const calls from any number at once.
class Tokenizer {
 public:
  Tokenizer() = default;
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;
  virtual ~Tokenizer() = default;

  /// Ids of a text, without the token that begins a sequence. Text must be UTF-8; other bytes are encoded as they may.
  /// Cost: O(n log n).
  [[nodiscard]] virtual std::vector<Token> encode(std::string_view text, SpecialText special) const = 0;
  /// The bytes that `token` adds to a text that ends with `previous`; maybe a part of a character. Empty for special
  /// tokens and ids outside the vocabulary.
  [[nodiscard]] virtual std::string piece(std::optional<Token> previous, Token token) const = 0;

  [[nodiscard]] virtual std::uint32_t vocab_size() const noexcept = 0;
  [[nodiscard]] virtual std::optional<Token> bos() const noexcept = 0;  ///< Begins a sequence.
  [[nodiscard]] virtual std::vector<Token> stop_tokens() const = 0;     ///< Any of them ends one.
  /// Id of a special token by its text, such as "<|im_start|>".
  [[nodiscard]] virtual std::optional<Token> special(std::string_view text) const = 0;

  /// The ids of a prompt: bos, then the text.
  [[nodiscard]] std::vector<Token> encode_prompt(std::string_view text) const;
  /// The text that `tokens` stand for.
  [[nodiscard]] std::string decode(const std::vector<Token>& tokens) const;
};

/// The tokenizer.bin of llama2.c, which does not hold the number of its entries: the model's `vocab_size` says it.
/// Throws LoadError (model/config.h).
std::unique_ptr<Tokenizer> open_llama2c_tokenizer(const std::string& path, std::uint32_t vocab_size);
/// A Hugging Face tokenizer.json of type BPE: byte-level (Llama 3) or with byte fall-back (Llama 2).
std::unique_ptr<Tokenizer> open_hf_tokenizer(const std::string& path);
/// One token a byte: what the random model speaks.
std::unique_ptr<Tokenizer> byte_tokenizer();

/// A file that ends in .json opens as Hugging Face's, another as llama2.c's.
std::unique_ptr<Tokenizer> open_tokenizer(const std::string& path, std::uint32_t vocab_size);

}  // namespace serving
