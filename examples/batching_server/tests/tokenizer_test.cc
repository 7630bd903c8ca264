// Tokenizers: known encodings, round trips, hostile files; and the stream that only lets whole characters through.
#include "tokenizer/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstring>

#include "model/config.h"
#include "tests/test_files.h"
#include "tokenizer/utf8.h"

namespace serving {
namespace {

using ::testing::ElementsAre;
using testing::TempFolder;

constexpr const char* kHardText = "hello  w\xC3\xB6rld\n\nit's 12345 \xE6\x97\xA5\xE6\x9C\xAC \xF0\x9F\x98\x80 tail ";

using Pieces = std::vector<std::pair<std::string, float>>;

std::string llama2c_tokenizer_bytes(const Pieces& pieces) {
  std::string out;
  const std::int32_t longest = 8;
  testing::append_bytes(out, &longest, sizeof longest);
  for (const auto& [piece, score] : pieces) {
    const auto length = static_cast<std::int32_t>(piece.size());
    testing::append_bytes(out, &score, sizeof score);
    testing::append_bytes(out, &length, sizeof length);
    out += piece;
  }
  return out;
}

Pieces small_vocabulary() {
  Pieces pieces = {{"<unk>", 0.0F}, {"\n<s>\n", 0.0F}, {"\n</s>\n", 0.0F}};
  for (unsigned byte = 0; byte < 256; ++byte) {
    std::array<char, 8> name{};
    std::snprintf(name.data(), name.size(), "<0x%02X>", byte);
    pieces.emplace_back(name.data(), 0.0F);
  }
  for (const char* piece : {" ", "a", "b", "c"}) pieces.emplace_back(piece, -10.0F);
  pieces.emplace_back("ab", -3.0F);   // 263
  pieces.emplace_back("bc", -2.0F);   // 264
  pieces.emplace_back(" a", -4.0F);   // 265
  pieces.emplace_back("abc", -5.0F);  // 266
  return pieces;
}
constexpr std::uint32_t kSmallVocabulary = 267;

TEST(Llama2cTokenizer, BestScoreMergesFirst) {
  const TempFolder folder;
  const auto tokenizer =
      open_tokenizer(folder.write("t.bin", llama2c_tokenizer_bytes(small_vocabulary())), kSmallVocabulary);
  EXPECT_THAT(tokenizer->encode("abc", SpecialText::kIsPlain), ElementsAre(265, 264));  // " a" "bc", not " " "abc"
  EXPECT_THAT(tokenizer->encode_prompt(""), ElementsAre(1));
  EXPECT_EQ(tokenizer->decode(tokenizer->encode_prompt(kHardText)), kHardText);
}

TEST(Llama2cTokenizer, LongPromptsTakeNoQuadraticTime) {
  const TempFolder folder;
  const auto tokenizer =
      open_tokenizer(folder.write("t.bin", llama2c_tokenizer_bytes(small_vocabulary())), kSmallVocabulary);
  std::string text;  // 400,000 merges; looking at all pairs after each would be 10^11 looks.
  for (int i = 0; i < 200'000; ++i) text += "abc";
  EXPECT_EQ(tokenizer->encode(text, SpecialText::kIsPlain).size(), 200'001U);  // " a" "bc" "abc" "abc" ...
}

TEST(Llama2cTokenizer, RefusesEveryTruncation) {
  const TempFolder folder;
  const std::string bytes = llama2c_tokenizer_bytes(small_vocabulary());
  for (std::size_t length = 0; length < bytes.size(); length += 7) {
    const auto path = folder.write("t.bin", std::string_view(bytes).substr(0, length));
    EXPECT_THROW(open_tokenizer(path, kSmallVocabulary), LoadError) << length;
  }
  EXPECT_THROW(open_tokenizer(folder.write("t.bin", bytes + "x"), kSmallVocabulary), LoadError);
  EXPECT_THROW(open_tokenizer(folder.write("t.bin", bytes), kSmallVocabulary + 1), LoadError);
  EXPECT_THROW(open_tokenizer(folder.file("missing"), kSmallVocabulary), LoadError);
}

TEST(Llama2cTokenizer, RefusesHostileLengths) {
  const TempFolder folder;
  const auto bytes = llama2c_tokenizer_bytes(small_vocabulary());
  for (std::int32_t length : {-1, INT32_MIN, INT32_MAX, 1 << 30}) {
    for (std::size_t offset : {std::size_t{0}, std::size_t{8}}) {  // The longest entry; the first entry.
      std::string hostile = bytes;
      std::memcpy(hostile.data() + offset, &length, sizeof length);
      EXPECT_THROW(open_tokenizer(folder.write("t.bin", hostile), kSmallVocabulary), LoadError);
    }
  }
}

std::unique_ptr<Tokenizer> open_json(const nlohmann::json& json) {
  const TempFolder folder;
  return open_tokenizer(folder.write("tokenizer.json", json.dump()), 0);
}

TEST(HfTokenizer, ByteLevelMergesByRankWithinWords) {
  const auto tokenizer = open_json(testing::byte_level_tokenizer_json());
  EXPECT_THAT(tokenizer->encode("hello world", SpecialText::kIsPlain), ElementsAre(259, 260, 261, 'l', 'd'));
  EXPECT_EQ(tokenizer->bos(), 262);
  EXPECT_EQ(tokenizer->decode(tokenizer->encode_prompt(kHardText)), kHardText);
}

TEST(HfTokenizer, SpecialTokensOfAPromptArePlainTextUnlessAskedFor) {
  const auto tokenizer = open_json(testing::byte_level_tokenizer_json());
  const std::string text = "h<|eot_id|>l";
  EXPECT_THAT(tokenizer->encode(text, SpecialText::kIsParsed), ElementsAre('h', 266, 'l'));
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(text, SpecialText::kIsPlain)), text);
  EXPECT_EQ(tokenizer->special("<|eot_id|>"), 266);
  EXPECT_THAT(tokenizer->stop_tokens(), ElementsAre(263, 266));
}

TEST(HfTokenizer, SentencePieceStyleFallsBackToBytes) {
  const auto tokenizer = open_json(testing::sentencepiece_tokenizer_json());
  EXPECT_EQ(tokenizer->encode("abc", SpecialText::kIsPlain).size(), 1U);  // Mark + a, b + c, and both joined.
  EXPECT_EQ(tokenizer->encode("\n", SpecialText::kIsPlain).back(), '\n' + 3);
  EXPECT_EQ(tokenizer->decode(tokenizer->encode_prompt(kHardText)), kHardText);
  EXPECT_EQ(tokenizer->bos(), 1);
}

TEST(HfTokenizer, RefusesWhatItCannotDoFaithfully) {
  auto json = testing::byte_level_tokenizer_json();
  json["normalizer"] = {{"type", "NFC"}};
  EXPECT_THROW(open_json(json), LoadError);
  json = testing::byte_level_tokenizer_json();
  json["pre_tokenizer"] = {{"type", "BertPreTokenizer"}};
  EXPECT_THROW(open_json(json), LoadError);
  json = testing::byte_level_tokenizer_json();
  json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "(unclosed";
  EXPECT_THROW(open_json(json), LoadError);
  json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "\\C";  // a part of a character
  EXPECT_THROW(open_json(json), LoadError);
  json = testing::byte_level_tokenizer_json();
  json["model"]["type"] = "Unigram";
  json["model"].erase("merges");
  EXPECT_THROW(open_json(json), LoadError);
}

TEST(HfTokenizer, RefusesHostileEntries) {
  for (const nlohmann::json& id : {nlohmann::json(-1), nlohmann::json(std::uint64_t{1} << 60), nlohmann::json("x")}) {
    auto json = testing::byte_level_tokenizer_json();
    json["model"]["vocab"]["zz"] = id;
    EXPECT_THROW(open_json(json), LoadError);
  }
  for (const nlohmann::json& merge : {nlohmann::json("nospace"), nlohmann::json::array({"h"}), nlohmann::json(7),
                                      nlohmann::json::array({"q", "unknown"})}) {
    auto json = testing::byte_level_tokenizer_json();
    json["model"]["merges"].push_back(merge);
    EXPECT_THROW(open_json(json), LoadError);
  }
  const TempFolder folder;
  const std::string text = testing::byte_level_tokenizer_json().dump();
  for (std::size_t length = 0; length < text.size(); length += 101) {
    EXPECT_THROW(open_tokenizer(folder.write("tokenizer.json", text.substr(0, length)), 0), LoadError);
  }
  EXPECT_THROW(open_tokenizer(folder.write("tokenizer.json", std::string(100'000, '[')), 0), LoadError);
}

TEST(Utf8Stream, HoldsBytesBackUntilACharacterIsWhole) {
  Utf8Stream stream;
  EXPECT_EQ(stream.push("a\xF0\x9F"), "a");
  EXPECT_EQ(stream.push("\x98"), "");
  EXPECT_EQ(stream.push("\x80z"), "\xF0\x9F\x98\x80z");
  EXPECT_EQ(stream.finish(), "");
}

TEST(Utf8Stream, ReplacesWhatCanNeverBecomeACharacter) {
  Utf8Stream stream;
  EXPECT_EQ(stream.push("\xC0\x80x"), "\xEF\xBF\xBD\xEF\xBF\xBDx");                // Overlong.
  EXPECT_EQ(stream.push("\xED\xA0\x80"), "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");  // A surrogate.
  EXPECT_EQ(stream.push("\xE2\x96"), "");
  EXPECT_EQ(stream.finish(), "\xEF\xBF\xBD");
}

}  // namespace
}  // namespace serving
