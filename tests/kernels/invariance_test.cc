// Results are bitwise the same for any number of threads, any batch, any placement and size of pages.
#include <gtest/gtest.h>

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
        EXPECT_TRUE(got.begins_with(want)) << target;
      }
    }
  }
}

TEST_P(Invariance, ToTheRestOfTheBatch) {
  // The first sequence draws its numbers first, so it is the same in every batch.
  for (const SequenceShape first : {SequenceShape{2500, 1}, {300, 200}, {40, 5}}) {
    const Problem alone(make({first})), crowded(make({first, {100, 1}, {3000, 1}, {64, 64}, {7, 7}}));
    for (const char* target : runnable_targets()) {
      EXPECT_TRUE(crowded.run(target)->begins_with(*alone.run(target))) << target;
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

}  // namespace
}  // namespace pagedkv::testing
