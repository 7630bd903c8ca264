// Results are bitwise the same for any number of threads, any batch, any placement and size of pages.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels/expect_oracle.h"

namespace pagedkv::testing {
namespace {

ProblemShape batch_of(std::vector<SequenceShape> sequences) {
  ProblemShape shape;
  shape.config = {.num_q_heads = 8, .num_kv_heads = 2, .head_dim = 64};
  shape.sequences = std::move(sequences);
  return shape;
}

/// Whether `crowded` begins with the rows of `alone`, bit for bit.
bool begins_with(const Outputs& crowded, const Outputs& alone) {
  return std::equal(alone.out_bytes.begin(), alone.out_bytes.end(), crowded.out_bytes.begin()) &&
         std::equal(alone.lse_bits.begin(), alone.lse_bits.end(), crowded.lse_bits.begin());
}

class Invariance : public ::testing::TestWithParam<StoredFormat> {
 protected:
  static ProblemShape make(std::vector<SequenceShape> sequences) {
    ProblemShape shape = batch_of(std::move(sequences));
    GetParam().set(shape.config);
    return shape;
  }
};

TEST_P(Invariance, ToThreads) {
  const Problem problem(make({{5000, 1}, {100, 1}, {300, 200}, {1200, 3}, {17, 17}}));
  for (const char* target : runnable_targets()) {
    const auto one = problem.run(target, 1);
    ASSERT_TRUE(one.has_value());
    for (const int threads : {2, 3, 7}) EXPECT_TRUE(*problem.run(target, threads) == *one) << target << " " << threads;
  }
}

TEST_P(Invariance, ToPlacementAndSizeOfPages) {
  ProblemShape shape = make({{2500, 1}, {100, 1}, {300, 200}, {77, 5}});
  for (const std::uint32_t head_dim : {64U, 33U, 80U}) {
    shape.config.head_dim = head_dim;
    for (const char* target : runnable_targets()) {
      shape.config.page_size = 16;
      shape.page_order = 0;
      const Outputs want = *Problem(shape).run(target);
      for (const std::uint32_t page_size : {1U, 7U, 16U, 64U, 256U}) {
        shape.config.page_size = page_size;
        shape.page_order = page_size + 3;
        EXPECT_TRUE(*Problem(shape).run(target) == want) << target << " " << head_dim << " " << page_size;
      }
    }
  }
}

TEST_P(Invariance, OfLongDecodesToThreadsPagesAndBatchForEveryGroup) {
  for (const std::uint32_t group : {1U, 4U, 8U, 16U}) {
    const auto with_group = [group](std::vector<SequenceShape> sequences) {
      ProblemShape shape = make(std::move(sequences));
      shape.config.num_q_heads = group;
      shape.config.num_kv_heads = 1;
      return shape;
    };
    for (const std::int32_t length : {4096, 8192, 5000}) {
      ProblemShape shape = with_group({{length, 1}});
      const Problem alone(shape), crowded(with_group({{length, 1}, {300, 1}, {2000, 4}}));
      shape.config.page_size = 1;
      const Problem in_tokens(shape);
      shape.config.page_size = 8;
      const Problem in_eights(shape);
      for (const char* target : runnable_targets()) {
        const Outputs want = *alone.run(target, 1), got = *crowded.run(target, 3);
        EXPECT_TRUE(*in_tokens.run(target) == want) << target;
        EXPECT_TRUE(*in_eights.run(target) == want) << target;
        EXPECT_TRUE(begins_with(got, want)) << target;
      }
    }
  }
}

TEST_P(Invariance, ToTheRestOfTheBatch) {
  // The first sequence draws its numbers first, so it is the same in every batch.
  for (const SequenceShape first : {SequenceShape{2500, 1}, {300, 200}, {40, 5}}) {
    const Problem alone(make({first})), crowded(make({first, {100, 1}, {3000, 1}, {64, 64}, {7, 7}}));
    for (const char* target : runnable_targets()) {
      EXPECT_TRUE(begins_with(*crowded.run(target), *alone.run(target))) << target;
    }
  }
}

// Shared parts are computed for many rows at a time, which rounds otherwise than a few rows do.
// Sequences that share pages stand together or apart.
TEST_P(Invariance, ToThreadsWithCascadeAndCascadeIsWithinTheBound) {
  for (const std::size_t groups : {1U, 3U}) {
    for (const bool alibi : {false, true}) {
      ProblemShape shape = make({{2100, 1}, {2048, 1}, {2500, 3}, {3500, 1}, {1030, 16}, {1024, 1}, {90, 1}});
      shape.share_groups = groups;
      shape.alibi = alibi;
      shape.config.cascade = true;
      const Problem cascade(shape);
      const Outputs want = *cascade.reference();
      for (const char* target : runnable_targets()) {
        const Outputs shared = *cascade.run(target);
        EXPECT_EQ(cascade.difference(shared, want, arithmetic_of(target, cascade.config())), "")
            << target << groups << alibi;
        for (const int threads : {1, 3, 7}) EXPECT_TRUE(*cascade.run(target, threads) == shared) << target << threads;
      }
    }
  }
}

TEST_P(Invariance, ToThreadsWithACascadeOfTwoLevels) {
  ProblemShape shape = make({{2100, 1}, {3200, 1}, {2300, 2}, {1500, 1}, {2100, 1}, {2050, 1}, {1200, 5}, {2100, 1}});
  shape.shared_runs = {{0, 6, 1100}, {0, 2, 2100}, {4, 5, 2048}};
  shape.config.cascade = true;
  const Problem cascade(shape);
  const Outputs want = *cascade.reference();
  for (const char* target : runnable_targets()) {
    const Outputs shared = *cascade.run(target);
    EXPECT_EQ(cascade.difference(shared, want, arithmetic_of(target, cascade.config())), "") << target;
    for (const int threads : {1, 3, 7}) EXPECT_TRUE(*cascade.run(target, threads) == shared) << target << threads;
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, Invariance, ::testing::ValuesIn(kStoredFormats),
                         [](const auto& format) { return to_string(format.param); });

/// What a layer computes besides plain attention.
struct Variation {
  const char* name;
  void (*set)(ProblemShape&);
};

void set_mask(ProblemShape& shape, MaskKind kind, bool per_head) {
  shape.mask = kind;
  shape.mask_per_head = per_head;
}

constexpr Variation kVariations[] = {
    {"bool_mask", [](ProblemShape& s) { set_mask(s, MaskKind::kBool, false); }},
    {"bits_mask", [](ProblemShape& s) { set_mask(s, MaskKind::kBits, true); }},
    {"additive_mask", [](ProblemShape& s) { set_mask(s, MaskKind::kAdditive, true); }},
    {"soft_cap", [](ProblemShape& s) { s.config.variant.logits_soft_cap = 20; }},
    {"alibi", [](ProblemShape& s) { s.alibi = true; }},
    {"sinks", [](ProblemShape& s) { s.sinks = true; }},
    {"not_causal", [](ProblemShape& s) { s.config.variant.causal = false; }},
    {"window", [](ProblemShape& s) { s.config.variant.window_left = 70; }},
    {"long_window", [](ProblemShape& s) { s.config.variant.window_left = 1500; }},
    {"window_and_sink_tokens", [](ProblemShape& s) { s.config.variant = {.window_left = 600, .sink_tokens = 5}; }},
    {"other_v_dim", [](ProblemShape& s) { s.config.head_dim = 48, s.config.v_head_dim = 37; }},
    {"latent",
     [](ProblemShape& s) {
       s.config.num_q_heads = 16, s.config.num_kv_heads = 1, s.config.head_dim = 96, s.config.v_head_dim = 64;
       s.layout = PageLayout::kLatent;
     }},
    {"bf16_queries", [](ProblemShape& s) { s.q_dtype = s.out_dtype = DType::bf16; }},
    {"f16_queries", [](ProblemShape& s) { s.q_dtype = s.out_dtype = DType::f16; }},
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
    ProblemShape shape = batch_of(std::move(sequences));
    shape.config.num_q_heads = 4, shape.config.head_dim = 32;
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
      EXPECT_TRUE(begins_with(of_all, want));
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

INSTANTIATE_TEST_SUITE_P(Formats, VariantInvariance,
                         ::testing::Combine(::testing::ValuesIn(kStoredFormats), ::testing::ValuesIn(kVariations)),
                         [](const auto& of) {
                           return to_string(std::get<StoredFormat>(of.param)) + "_" +
                                  std::get<Variation>(of.param).name;
                         });

}  // namespace
}  // namespace pagedkv::testing
