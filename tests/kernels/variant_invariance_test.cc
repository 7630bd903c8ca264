// Results of every variant are bitwise the same for any number of threads, any batch, any placement and size of pages.
#include <gtest/gtest.h>

#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels/expect_oracle.h"
#include "kernels/variations.h"

namespace pagedkv::testing {
namespace {

void set_mask(ProblemShape& shape, MaskKind kind, bool per_head) {
  shape.mask = kind;
  shape.mask_per_head = per_head;
}

/// Variants that hide keys which causality shows.
constexpr Variation kHidden[] = {
    {"bool_mask", [](ProblemShape& s) { set_mask(s, MaskKind::kBool, false); }},
    {"bits_mask", [](ProblemShape& s) { set_mask(s, MaskKind::kBits, true); }},
    {"additive_mask", [](ProblemShape& s) { set_mask(s, MaskKind::kAdditive, true); }},
    {"window", [](ProblemShape& s) { s.config.variant.window_left = 70; }},
    {"long_window", [](ProblemShape& s) { s.config.variant.window_left = 1500; }},
    {"window_and_sink_tokens", [](ProblemShape& s) { s.config.variant = {.window_left = 600, .sink_tokens = 5}; }},
    {"all_at_once",
     [](ProblemShape& s) {
       s.config.variant = {.window_left = 1100, .sink_tokens = 5, .logits_soft_cap = 20};
       s.sinks = s.alibi = true;
       set_mask(s, MaskKind::kAdditive, false);
     }},
};

class VariantInvariance : public ::testing::TestWithParam<std::tuple<StoredFormat, Variation>> {
 protected:
  static ProblemShape make(std::vector<SequenceShape> sequences) {
    ProblemShape shape;
    shape.sequences = std::move(sequences);
    std::get<Variation>(GetParam()).set(shape);
    std::get<StoredFormat>(GetParam()).set(shape.config);
    return shape;
  }
  static ProblemShape on_pages(ProblemShape shape, std::uint32_t page_size, unsigned page_order) {
    shape.config.page_size = page_size;
    shape.page_order = page_order;
    return shape;
  }
};

TEST_P(VariantInvariance, ToThreadsBatchAndPages) {
  const std::vector<const char*> targets = targets_of(make({}).config);
  if (targets.empty()) return;
  for (const SequenceShape first : {SequenceShape{2500, 1}, {200, 150}, {1100, 5}}) {
    const ProblemShape shape = make({first});
    const Problem alone(shape), crowded(make({first, {100, 1}, {2100, 1}, {70, 64}, {7, 7}}));
    const Problem elsewhere(on_pages(shape, 16, 5)), in_sevens(on_pages(shape, 7, 6)),
        in_large(on_pages(shape, 256, 7));
    for (const char* target : targets) {
      SCOPED_TRACE(::testing::Message() << target << ", " << first.q_len << " rows over " << first.kv_len);
      const Outputs want = *alone.run(target, 1), of_all = *crowded.run(target, 1);
      EXPECT_TRUE(of_all.begins_with(want));
      for (const int threads : {2, 3, 7}) {
        EXPECT_TRUE(*alone.run(target, threads) == want) << threads;
        EXPECT_TRUE(*crowded.run(target, threads) == of_all) << threads;
      }
      for (const Problem* const same : {&elsewhere, &in_sevens, &in_large}) {
        EXPECT_TRUE(*same->run(target) == want) << same->config().page_size;
      }
    }
  }
}

std::string name_of(const ::testing::TestParamInfo<VariantInvariance::ParamType>& of) {
  return to_string(std::get<StoredFormat>(of.param)) + "_" + std::get<Variation>(of.param).name;
}
INSTANTIATE_TEST_SUITE_P(Formats, VariantInvariance,
                         ::testing::Combine(::testing::ValuesIn(kStoredFormats), ::testing::ValuesIn(kVariations)),
                         name_of);
INSTANTIATE_TEST_SUITE_P(FormatsOfHidden, VariantInvariance,
                         ::testing::Combine(::testing::ValuesIn(kStoredFormats), ::testing::ValuesIn(kHidden)),
                         name_of);

}  // namespace
}  // namespace pagedkv::testing
