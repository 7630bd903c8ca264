// The public 512-token vocabulary encodes the reference prompts as llama2.c does.
#include <gtest/gtest.h>

#include "model/json_file.h"
#include "tokenizer/tokenizer.h"

namespace serving {
namespace {

TEST(PublicTokenizer, EncodesAndDecodesTheReferencePrompts) {
  const std::string model = std::string(PAGEDKV_DATA_DIR) + "/model/";
  const auto tokenizer = open_tokenizer(model + "tok512.bin", 512);
  for (const char* name : {"bos_only_200", "once_upon_a_time_200", "lily_and_tom_120"}) {
    const Json reference = read_json_file(model + "reference/" + name + ".json", 1 << 20);
    EXPECT_EQ(tokenizer->encode_prompt(reference["prompt"].get<std::string>()),
              reference["prompt_ids"].get<std::vector<Token>>());
    EXPECT_EQ(tokenizer->decode(reference["all_ids"].get<std::vector<Token>>()), reference["text"].get<std::string>());
  }
}

}  // namespace
}  // namespace serving
