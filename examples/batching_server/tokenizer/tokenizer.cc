// What all tokenizers share, and the one that needs no file.
#include "tokenizer/tokenizer.h"

#include "tokenizer/utf8.h"

namespace serving {
namespace {

// 0 is unknown, 1 begins, 2 ends a sequence; byte b is b + 3, as in the byte fall-back of llama2.c.
class ByteTokenizer final : public Tokenizer {
 public:
  [[nodiscard]] std::vector<Token> encode(std::string_view text, SpecialText) const override {
    std::vector<Token> tokens;
    tokens.reserve(text.size());
    for (char c : text) tokens.push_back(static_cast<unsigned char>(c) + kFirstByte);
    return tokens;
  }
  [[nodiscard]] std::string piece(std::optional<Token>, Token token) const override {
    if (token < kFirstByte || token >= kFirstByte + 256) return {};
    return {static_cast<char>(token - kFirstByte)};
  }
  [[nodiscard]] std::uint32_t vocab_size() const noexcept override { return kFirstByte + 256; }
  [[nodiscard]] std::optional<Token> bos() const noexcept override { return 1; }
  [[nodiscard]] std::vector<Token> stop_tokens() const override { return {2}; }
  [[nodiscard]] std::optional<Token> special(std::string_view) const override { return std::nullopt; }

 private:
  static constexpr Token kFirstByte = 3;
};

}  // namespace

std::vector<Token> Tokenizer::encode_prompt(std::string_view text) const {
  std::vector<Token> tokens = encode(text, SpecialText::kIsPlain);
  if (const auto first = bos()) tokens.insert(tokens.begin(), *first);
  return tokens;
}

std::string Tokenizer::decode(const std::vector<Token>& tokens) const {
  Utf8Stream stream;
  std::string text;
  std::optional<Token> previous;
  for (Token token : tokens) {
    text += stream.push(piece(previous, token));
    previous = token;
  }
  return text + stream.finish();
}

std::unique_ptr<Tokenizer> byte_tokenizer() { return std::make_unique<ByteTokenizer>(); }

std::unique_ptr<Tokenizer> open_tokenizer(const std::string& path, std::uint32_t vocab_size) {
  return path.ends_with(".json") ? open_hf_tokenizer(path) : open_llama2c_tokenizer(path, vocab_size);
}

}  // namespace serving
