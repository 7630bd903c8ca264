// Reads llama2.c's tokenizer.bin: the longest entry, then (score, length, bytes) of each token.
#include <cmath>
#include <cstdint>
#include <fstream>
#include <unordered_map>

#include "model/config.h"
#include "tokenizer/bpe_merge.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/utf8.h"

namespace serving {
namespace {

constexpr std::int32_t kMaxPieceBytes = 4096;
constexpr Token kBos = 1, kEos = 2, kFirstByte = 3;

class Llama2cTokenizer final : public Tokenizer {
 public:
  Llama2cTokenizer(const std::string& path, std::uint32_t vocab_size) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw LoadError(path + ": cannot be opened");
    if (vocab_size < kFirstByte + 256) throw LoadError(path + ": the vocabulary has no room for the 256 bytes");
    const auto read = [&](void* to, std::size_t bytes) {
      file.read(static_cast<char*>(to), static_cast<std::streamsize>(bytes));
      if (!file) throw LoadError(path + ": ended inside an entry (truncated, or of another vocabulary)");
    };
    std::int32_t longest = 0;
    read(&longest, sizeof longest);
    if (longest <= 0 || longest > kMaxPieceBytes) throw LoadError(path + ": the longest entry is zero or absurd");
    for (std::uint32_t id = 0; id < vocab_size; ++id) {
      float score = 0;
      std::int32_t length = 0;
      read(&score, sizeof score);
      read(&length, sizeof length);
      if (length < 0 || length > kMaxPieceBytes) throw LoadError(path + ": an entry's length is absurd");
      if (std::isnan(score)) throw LoadError(path + ": an entry's score is not a number");
      std::string piece(static_cast<std::size_t>(length), '\0');
      read(piece.data(), piece.size());
      ids_.emplace(piece, static_cast<Token>(id));  // The first of equal entries wins.
      pieces_.push_back(std::move(piece));
      scores_.push_back(score);
    }
    if (file.peek() != std::ifstream::traits_type::eof())
      throw LoadError(path + ": longer than the model's vocabulary");
  }

  [[nodiscard]] std::vector<Token> encode(std::string_view text, SpecialText) const override {
    std::vector<Token> tokens;
    if (text.empty()) return tokens;
    if (const auto space = ids_.find(" "); space != ids_.end()) tokens.push_back(space->second);  // As in training.
    while (!text.empty()) {
      const std::size_t length = std::max<std::size_t>(utf8_length(text), 1);
      if (const auto it = ids_.find(std::string(text.substr(0, length))); it != ids_.end()) {
        tokens.push_back(it->second);
      } else {
        for (char byte : text.substr(0, length)) tokens.push_back(static_cast<unsigned char>(byte) + kFirstByte);
      }
      text.remove_prefix(length);
    }
    bpe_merge(tokens, [this](Token left, Token right) -> std::optional<Merge> {
      const auto it = ids_.find(at(left) + at(right));
      if (it == ids_.end()) return std::nullopt;
      return Merge{-static_cast<double>(scores_[static_cast<std::size_t>(it->second)]), it->second};
    });
    return tokens;
  }

  [[nodiscard]] std::string piece(std::optional<Token> previous, Token token) const override {
    if (token <= kEos || static_cast<std::size_t>(token) >= pieces_.size()) return {};
    const std::string& raw = at(token);
    unsigned byte = 0;  // Entries such as "<0x0A>" stand for one raw byte.
    if (raw.size() == 6 && std::sscanf(raw.c_str(), "<0x%02X>", &byte) == 1) return {static_cast<char>(byte)};
    return previous == kBos && raw.starts_with(' ') ? raw.substr(1) : raw;
  }

  [[nodiscard]] std::uint32_t vocab_size() const noexcept override {
    return static_cast<std::uint32_t>(pieces_.size());
  }
  [[nodiscard]] std::optional<Token> bos() const noexcept override { return kBos; }
  [[nodiscard]] std::vector<Token> stop_tokens() const override { return {kBos, kEos}; }
  [[nodiscard]] std::optional<Token> special(std::string_view) const override { return std::nullopt; }

 private:
  [[nodiscard]] const std::string& at(Token token) const { return pieces_[static_cast<std::size_t>(token)]; }

  std::vector<std::string> pieces_;
  std::vector<float> scores_;
  std::unordered_map<std::string, Token> ids_;
};

}  // namespace

std::unique_ptr<Tokenizer> open_llama2c_tokenizer(const std::string& path, std::uint32_t vocab_size) {
  return std::make_unique<Llama2cTokenizer>(path, vocab_size);
}

}  // namespace serving
