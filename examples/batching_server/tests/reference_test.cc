// The public model gives the reference outputs exactly, and in 16 bits logits within stated bounds.
#include <gmock/gmock.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <numeric>

#include "model/json_file.h"
#include "tests/engine_fixture.h"
#include "tokenizer/tokenizer.h"

namespace serving {
namespace {

using pagedkv::DType;
using testing::Harness;
using testing::HarnessOptions;

std::string model_folder() { return std::string(PAGEDKV_DATA_DIR) + "/model/"; }

struct Reference {
  std::vector<Token> prompt, output;
};
std::vector<Reference> references() {
  std::vector<Reference> all;
  for (const char* name : {"bos_only_200", "once_upon_a_time_200", "lily_and_tom_120"}) {
    const Json json = read_json_file(model_folder() + "reference/" + name + ".json", 1 << 20);
    all.push_back({json["prompt_ids"].get<std::vector<Token>>(), json["generated_ids"].get<std::vector<Token>>()});
  }
  return all;
}

Decoder load(WeightType weights) { return {*open_checkpoint(model_folder() + "stories260K.bin"), weights}; }

Request greedy(const Reference& reference) {
  return {.prompt = reference.prompt,
          .max_tokens = static_cast<std::uint32_t>(reference.output.size()),
          .sampling = {.temperature = 0}};
}

void expect_references(Decoder& decoder, const HarnessOptions& options, std::uint32_t draft_tokens = 0) {
  Harness harness(decoder, options);
  for (int round = 0; round < 2; ++round) {  // The second time, prefixes are cached if they may be.
    std::vector<std::shared_ptr<Harness::Heard>> heard;
    for (const Reference& reference : references()) {
      Request request = greedy(reference);
      request.draft_tokens = draft_tokens;
      heard.push_back(harness.submit(std::move(request)));
    }
    harness.run_until_idle();
    for (std::size_t i = 0; i < heard.size(); ++i) EXPECT_EQ(heard[i]->tokens[0], references()[i].output) << i;
  }
  harness.expect_no_page_held();
}

TEST(Reference, GreedyOutputIsExactAlone) {
  Decoder decoder = load(WeightType::kF32);
  for (const Reference& reference : references()) {
    Harness harness(decoder, {});
    EXPECT_EQ(harness.generate(greedy(reference)), reference.output);
  }
}

TEST(Reference, GreedyOutputIsExactInABatchInChunksAndWithEveryPageSize) {
  Decoder decoder = load(WeightType::kF32);
  for (std::uint32_t page_size : {1U, 5U, 16U, 64U, 256U}) expect_references(decoder, {.page_size = page_size});
  expect_references(decoder, {.engine = {.scheduler = {.token_budget = 5, .prefill_chunk = 2}}});
  expect_references(decoder, {.engine = {.prefix_cache = false}});
}

TEST(Reference, GreedyOutputIsExactAfterPreemption) {
  Decoder decoder = load(WeightType::kF32);
  // Each needs up to 26 pages. Two of the texts are the same, so without sharing there is less room.
  HarnessOptions tight{.page_size = 8, .pages = 30};
  expect_references(decoder, tight);
  tight.engine.prefix_cache = false;
  expect_references(decoder, tight);
  Harness harness(decoder, tight);
  for (const Reference& reference : references()) harness.submit(greedy(reference));
  harness.run_until_idle();
  EXPECT_GT(harness.engine().stats().scheduler.preemptions, 0U);
}

TEST(Reference, GreedyOutputIsExactWithDrafts) {
  Decoder decoder = load(WeightType::kF32);
  expect_references(decoder, {}, 5);
}

// The expected logits [positions][vocab] after "Once upon a time" and its continuation, f32 in NumPy's format.
std::vector<float> expected_logits(std::size_t positions, std::size_t vocab) {
  std::ifstream file(model_folder() + "reference/once_upon_a_time_200.logits_f32.npy", std::ios::binary);
  std::string bytes((std::istreambuf_iterator<char>(file)), {});
  const std::size_t data = positions * vocab * sizeof(float);
  EXPECT_GT(bytes.size(), data);
  std::vector<float> logits(positions * vocab);
  std::memcpy(logits.data(), bytes.data() + (bytes.size() - data), data);
  return logits;
}

// The largest difference of any logit when the whole text is fed in chunks of 50.
float largest_logit_error(WeightType weights, DType kv_dtype) {
  Decoder decoder = load(weights);
  const Json json = read_json_file(model_folder() + "reference/once_upon_a_time_200.json", 1 << 20);
  auto tokens = json["all_ids"].get<std::vector<Token>>();
  tokens.pop_back();  // The last one is never fed.
  const std::size_t vocab = decoder.config().vocab_size;
  const auto expected = expected_logits(tokens.size(), vocab);

  Harness harness(decoder, {.kv_dtype = kv_dtype});
  auto sequence = harness.cache().open().value();
  float largest = 0;
  for (std::size_t first = 0; first < tokens.size(); first += 50) {
    const auto chunk = std::span(tokens).subspan(first, std::min<std::size_t>(50, tokens.size() - first));
    std::vector<std::uint32_t> positions(chunk.size()), rows(chunk.size());
    std::iota(positions.begin(), positions.end(), static_cast<std::uint32_t>(first));
    std::iota(rows.begin(), rows.end(), 0U);
    auto step = harness.cache().begin_step({{&sequence, static_cast<std::uint32_t>(chunk.size())}}).value();
    std::vector<float> logits;
    EXPECT_TRUE(decoder.forward(step, chunk, positions, rows, logits).has_value());
    EXPECT_TRUE(step.commit().has_value());
    for (std::size_t i = 0; i < chunk.size() * vocab; ++i) {
      largest = std::max(largest, std::abs(logits[i] - expected[first * vocab + i]));
    }
  }
  std::printf("weights %s, K and V %s: largest error of a logit %.2g\n", weights == WeightType::kF32 ? "f32" : "bf16",
              to_string(kv_dtype), static_cast<double>(largest));
  return largest;
}

// Logits lie between about -15 and 20. The bounds are those of docs/SERVING.md.
TEST(Reference, LogitsStayWithinTheStatedBounds) {
  EXPECT_LT(largest_logit_error(WeightType::kF32, DType::f32), 1e-4F);
  EXPECT_LT(largest_logit_error(WeightType::kF32, DType::f16), 0.05F);
  EXPECT_LT(largest_logit_error(WeightType::kF32, DType::bf16), 0.3F);
  EXPECT_LT(largest_logit_error(WeightType::kBf16, DType::f32), 0.5F);
  EXPECT_LT(largest_logit_error(WeightType::kBf16, DType::bf16), 0.5F);
}

}  // namespace
}  // namespace serving
