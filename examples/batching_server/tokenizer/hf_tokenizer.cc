// Reads Hugging Face tokenizer.json files of type BPE and does what they describe, as far as Llama models use it.
#include <array>
#include <cstdio>
#include <unordered_map>

#include "model/json_file.h"
#include "tokenizer/bpe_merge.h"
#include "tokenizer/byte_level.h"
#include "tokenizer/pattern.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/utf8.h"

namespace serving {
namespace {

constexpr std::uint64_t kMaxFileBytes = 256 << 20;
constexpr std::size_t kMaxEntries = 1 << 21;
// What GPT-2's byte-level pre-tokenizer cuts by when it is told no expression.
constexpr const char* kGpt2Words = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr std::string_view kSpaceMark = "\xE2\x96\x81";  // U+2581, a space in SentencePiece vocabularies.
// Names under which published models end a text or a turn.
constexpr std::array kStopNames = {"</s>",       "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>",
                                   "<|im_end|>", "<|endoftext|>",   "<|end|>",    "<eos>"};

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  if (from.empty()) return;
  std::string out;
  std::size_t at = 0;
  for (std::size_t hit; (hit = text.find(from, at)) != std::string::npos; at = hit + from.size()) {
    out.append(text, at, hit - at);
    out += to;
  }
  text = out.append(text, at);
}

const Json& member(const Json& object, const char* key) {
  static const Json kNull;
  const auto it = object.is_object() ? object.find(key) : object.end();
  return it == object.end() ? kNull : *it;
}

// The steps of a "Sequence", or the single step, or nothing.
std::vector<Json> steps_of(const Json& stage, const char* list_name) {
  if (!stage.is_object()) return {};
  if (member(stage, "type") != "Sequence") return {stage};
  const Json& list = member(stage, list_name);
  return list.is_array() ? list.get<std::vector<Json>>() : std::vector<Json>{};
}

class HfTokenizer final : public Tokenizer {
 public:
  explicit HfTokenizer(const std::string& path) : path_(path) {
    const Json json = read_json_file(path, kMaxFileBytes);
    if (!json.is_object()) throw LoadError(path + ": not an object");
    read_model(member(json, "model"));
    read_added_tokens(member(json, "added_tokens"));
    for (const Json& step : steps_of(member(json, "normalizer"), "normalizers")) read_normalizer(step);
    for (const Json& step : steps_of(member(json, "pre_tokenizer"), "pretokenizers")) read_pre_tokenizer(step);
    for (const Json& step : steps_of(member(json, "decoder"), "decoders")) {
      const std::string type = type_of(step);
      if (type == "Strip" || type == "Metaspace") strips_first_space_ = true;
    }
    for (const Json& step : steps_of(member(json, "post_processor"), "processors")) read_post_processor(step);
  }

  [[nodiscard]] std::vector<Token> encode(std::string_view text, SpecialText special) const override {
    std::vector<Token> tokens;
    std::size_t plain_begin = 0;
    if (special == SpecialText::kIsParsed) {
      for (std::size_t at = 0; at < text.size();) {
        const auto hit = special_at(text.substr(at));
        if (!hit) {
          ++at;
          continue;
        }
        encode_plain(text.substr(plain_begin, at - plain_begin), tokens);
        tokens.push_back(hit->second);
        at += hit->first;
        plain_begin = at;
      }
    }
    encode_plain(text.substr(plain_begin), tokens);
    return tokens;
  }

  [[nodiscard]] std::string piece(std::optional<Token> previous, Token token) const override {
    if (token < 0 || static_cast<std::size_t>(token) >= pieces_.size() || is_special(token)) return {};
    const std::string& raw = pieces_[static_cast<std::size_t>(token)];
    if (is_byte_level_) return bytes_of_byte_level(raw);
    unsigned byte = 0;
    if (raw.size() == 6 && std::sscanf(raw.c_str(), "<0x%02X>", &byte) == 1) return {static_cast<char>(byte)};
    std::string text = raw;
    replace_all(text, kSpaceMark, " ");
    const bool is_first = !previous || previous == bos_;
    return is_first && strips_first_space_ && text.starts_with(' ') ? text.substr(1) : text;
  }

  [[nodiscard]] std::uint32_t vocab_size() const noexcept override {
    return static_cast<std::uint32_t>(pieces_.size());
  }
  [[nodiscard]] std::optional<Token> bos() const noexcept override { return bos_; }
  [[nodiscard]] std::vector<Token> stop_tokens() const override {
    std::vector<Token> stops;
    for (const char* name : kStopNames) {
      if (const auto it = special_.find(name); it != special_.end()) stops.push_back(it->second);
    }
    return stops;
  }
  [[nodiscard]] std::optional<Token> special(std::string_view text) const override {
    const auto it = special_.find(std::string(text));
    return it == special_.end() ? std::nullopt : std::optional(it->second);
  }

 private:
  std::string type_of(const Json& step) const {
    const Json& type = member(step, "type");
    if (!type.is_string()) throw LoadError(path_ + ": a step has no type");
    return type.get<std::string>();
  }

  void set_piece(const std::string& text, const Json& id_json) {
    if (!id_json.is_number_unsigned() || id_json.get<std::uint64_t>() >= kMaxEntries) {
      throw LoadError(path_ + ": an entry's id is not a number, negative or absurd");
    }
    const auto id = id_json.get<std::size_t>();
    if (pieces_.size() <= id) pieces_.resize(id + 1);
    pieces_[id] = text;
    ids_[text] = static_cast<Token>(id);
  }

  void read_model(const Json& model) {
    if (member(model, "type") != "BPE" && !member(model, "merges").is_array()) {
      throw LoadError(path_ + ": the model is not of type BPE");
    }
    const Json& vocab = member(model, "vocab");
    const Json& merges = member(model, "merges");
    if (!vocab.is_object() || !merges.is_array()) throw LoadError(path_ + ": the model has no vocab or no merges");
    for (const auto& [text, id] : vocab.items()) set_piece(text, id);
    falls_back_to_bytes_ = member_or(model, "byte_fallback", false, path_);
    ignores_merges_ = member_or(model, "ignore_merges", false, path_);
    if (const Json& unknown = member(model, "unk_token"); unknown.is_string())
      unknown_ = id_of(unknown.get<std::string>());
    std::size_t rank = 0;
    for (const Json& merge : merges) {
      std::string left, right;  // "left right" in older files, ["left", "right"] in newer ones.
      if (merge.is_string()) {
        const auto text = merge.get<std::string>();
        const std::size_t space = text.find(' ');
        if (space == std::string::npos) throw LoadError(path_ + ": a merge is not a pair");
        left = text.substr(0, space);
        right = text.substr(space + 1);
      } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
        left = merge[0].get<std::string>();
        right = merge[1].get<std::string>();
      } else {
        throw LoadError(path_ + ": a merge is not a pair");
      }
      const auto left_id = id_of(left), right_id = id_of(right), joined = id_of(left + right);
      if (!left_id || !right_id || !joined) throw LoadError(path_ + ": a merge names pieces outside the vocabulary");
      merges_.emplace(pair_key(*left_id, *right_id), Merge{static_cast<double>(rank++), *joined});
    }
  }

  void read_added_tokens(const Json& added) {
    if (added.is_null()) return;
    if (!added.is_array()) throw LoadError(path_ + ": added_tokens is not a list");
    for (const Json& token : added) {
      const auto text = member_or<std::string>(token, "content", "", path_);
      if (text.empty()) throw LoadError(path_ + ": an added token has no content");
      set_piece(text, member(token, "id"));
      if (member_or(token, "special", false, path_)) {
        special_[text] = ids_[text];
        special_ids_.push_back(ids_[text]);
      }
    }
    std::ranges::sort(special_ids_);
  }

  void read_normalizer(const Json& step) {
    const std::string type = type_of(step);
    if (type == "Prepend") {
      prepended_ = member_or<std::string>(step, "prepend", "", path_);
      prepends_always_ = true;
    } else if (type == "Replace" && member(member(step, "pattern"), "String") == " ") {
      space_becomes_ = member_or<std::string>(step, "content", " ", path_);
    } else {
      throw LoadError(path_ + ": normalizer '" + type + "' is not supported");
    }
  }

  void read_pre_tokenizer(const Json& step) {
    const std::string type = type_of(step);
    if (type == "ByteLevel") {
      is_byte_level_ = true;
      if (member_or(step, "add_prefix_space", false, path_)) prepended_ = " ";
      if (member_or(step, "use_regex", true, path_)) patterns_.emplace_back(kGpt2Words, path_);
    } else if (type == "Split") {
      const Json& expression = member(member(step, "pattern"), "Regex");
      if (!expression.is_string() || member_or<std::string>(step, "behavior", "", path_) != "Isolated" ||
          member_or(step, "invert", false, path_)) {
        throw LoadError(path_ + ": a Split that is not an isolating expression is not supported");
      }
      patterns_.emplace_back(expression.get<std::string>(), path_);
    } else if (type == "Metaspace") {
      space_becomes_ = member_or<std::string>(step, "replacement", std::string(kSpaceMark), path_);
      const auto scheme = member_or<std::string>(step, "prepend_scheme", "always", path_);
      if (scheme != "never") prepended_ = space_becomes_;
      if (member_or(step, "split", true, path_))
        patterns_.emplace_back(space_becomes_ + "?[^" + space_becomes_ + "]*", path_);
    } else {
      throw LoadError(path_ + ": pre-tokenizer '" + type + "' is not supported");
    }
  }

  // The token that begins a sequence is the first thing that the template of a single text names.
  void read_post_processor(const Json& step) {
    if (type_of(step) != "TemplateProcessing") return;
    const Json& single = member(step, "single");
    if (!single.is_array() || single.empty()) return;
    const Json& name = member(member(single[0], "SpecialToken"), "id");
    if (!name.is_string()) return;
    bos_ = id_of(name.get<std::string>());
    if (!bos_) throw LoadError(path_ + ": the template names a token outside the vocabulary");
  }

  [[nodiscard]] std::optional<Token> id_of(const std::string& text) const {
    const auto it = ids_.find(text);
    return it == ids_.end() ? std::nullopt : std::optional(it->second);
  }
  [[nodiscard]] bool is_special(Token token) const { return std::ranges::binary_search(special_ids_, token); }

  // The longest special token that `text` begins with, and its length.
  [[nodiscard]] std::optional<std::pair<std::size_t, Token>> special_at(std::string_view text) const {
    std::optional<std::pair<std::size_t, Token>> best;
    for (const auto& [name, id] : special_) {
      if (text.starts_with(name) && (!best || name.size() > best->first)) best.emplace(name.size(), id);
    }
    return best;
  }

  void encode_plain(std::string_view text, std::vector<Token>& tokens) const {
    if (text.empty()) return;
    std::string normal(text);
    if (!space_becomes_.empty()) replace_all(normal, " ", space_becomes_);
    if (prepends_always_ || !normal.starts_with(prepended_)) normal.insert(0, prepended_);
    std::vector<std::string_view> words = {normal};
    for (const Pattern& pattern : patterns_) {
      std::vector<std::string_view> finer;
      for (std::string_view word : words) {
        const auto parts = pattern.split(word);
        finer.insert(finer.end(), parts.begin(), parts.end());
      }
      words = std::move(finer);
    }
    for (std::string_view word : words) encode_word(is_byte_level_ ? to_byte_level(word) : std::string(word), tokens);
  }

  void encode_word(const std::string& word, std::vector<Token>& tokens) const {
    if (const auto whole = ignores_merges_ ? id_of(word) : std::nullopt) {
      tokens.push_back(*whole);
      return;
    }
    std::vector<Token> symbols;
    for (std::string_view rest = word; !rest.empty();) {
      const std::size_t length = std::max<std::size_t>(utf8_length(rest), 1);
      add_symbol(rest.substr(0, length), symbols);
      rest.remove_prefix(length);
    }
    bpe_merge(symbols, [this](Token left, Token right) -> std::optional<Merge> {
      const auto it = merges_.find(pair_key(left, right));
      return it == merges_.end() ? std::nullopt : std::optional(it->second);
    });
    tokens.insert(tokens.end(), symbols.begin(), symbols.end());
  }

  // A character's id; else its bytes' ids; else the unknown token, or nothing.
  void add_symbol(std::string_view character, std::vector<Token>& symbols) const {
    if (const auto id = id_of(std::string(character))) {
      symbols.push_back(*id);
      return;
    }
    if (falls_back_to_bytes_) {
      for (char c : character) {
        std::array<char, 8> name{};
        std::snprintf(name.data(), name.size(), "<0x%02X>", static_cast<unsigned>(static_cast<unsigned char>(c)));
        if (const auto id = id_of(name.data())) symbols.push_back(*id);
      }
      return;
    }
    if (unknown_) symbols.push_back(*unknown_);
  }

  static std::uint64_t pair_key(Token left, Token right) {
    return (std::uint64_t{static_cast<std::uint32_t>(left)} << 32) | static_cast<std::uint32_t>(right);
  }

  std::string path_;
  std::vector<std::string> pieces_;  // By id; "" where the vocabulary has a hole.
  std::unordered_map<std::string, Token> ids_, special_;
  std::vector<Token> special_ids_;  // Sorted.
  std::unordered_map<std::uint64_t, Merge> merges_;
  std::vector<Pattern> patterns_;
  std::string prepended_, space_becomes_;
  bool prepends_always_ = false;  // Even to a text that begins so already.
  bool is_byte_level_ = false, falls_back_to_bytes_ = false, ignores_merges_ = false, strips_first_space_ = false;
  std::optional<Token> bos_, unknown_;
};

}  // namespace

std::unique_ptr<Tokenizer> open_hf_tokenizer(const std::string& path) { return std::make_unique<HfTokenizer>(path); }

}  // namespace serving
