// Tests of cascade: which keys a batch reads once, and that results do not tell who read them.
#include <gtest/gtest.h>
#include <tbb/task_arena.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "format/convert.h"
#include "kernels/expect_oracle.h"
#include "pagedkv/attention.h"
#include "pagedkv/cpu.h"
#include "pagedkv/reference.h"
#include "support/failing_new.h"

namespace pagedkv {
namespace {

constexpr std::int32_t kPageTokens = 256, kPartPages = 4;
constexpr std::uint64_t kPart = 1024;
constexpr float kLargestElement = 2;  // of K and V
using testing::kFormats;

/// One sequence: its pages, the tokens in the last of them, its query rows.
struct Member {
  std::vector<std::int32_t> pages;
  std::int32_t last_page_len = 10, q_len = 1;
};

/// A batch of sequences in some order, over pages of random numbers.
class Cascade : public ::testing::Test {
 protected:
  AttentionConfig config = {.num_q_heads = 4,
                            .num_kv_heads = 2,
                            .head_dim = 16,
                            .page_size = kPageTokens,
                            .kv_dtype = DType::f32,
                            .cascade = true};
  std::vector<Member> members;
  std::vector<std::int32_t> qo_indptr, kv_indptr, kv_indices, last, q_start;
  std::int32_t num_pages = 0;

  std::vector<std::int32_t> new_pages(std::int32_t count) {
    std::vector<std::int32_t> pages(static_cast<std::size_t>(count));
    std::iota(pages.begin(), pages.end(), num_pages);
    num_pages += count;
    return pages;
  }

  std::vector<std::size_t> in_order() const {
    std::vector<std::size_t> order(members.size());
    std::iota(order.begin(), order.end(), 0U);
    return order;
  }
  std::vector<std::size_t> shuffled(unsigned seed) const {
    std::vector<std::size_t> order = in_order();
    std::shuffle(order.begin(), order.end(), std::mt19937(seed));
    return order;
  }

  /// A root of two parts for all; then two more for each group of `group`; then half a page of each one's own. Groups
  /// differ in their query rows.
  void make_tree(std::size_t num_groups, std::size_t group) {
    const std::vector<std::int32_t> root = new_pages(2 * kPartPages);
    for (std::size_t g = 0; g < num_groups; ++g) {
      std::vector<std::int32_t> branch = root;
      for (const std::int32_t page : new_pages(2 * kPartPages)) branch.push_back(page);
      for (std::size_t i = 0; i < group; ++i) {
        members.push_back({branch, 128, g % 2 == 1 ? 3 : 1});
        members.back().pages.push_back(new_pages(1)[0]);
      }
    }
  }

  AttentionBatch batch(const std::vector<std::size_t>& order) {
    qo_indptr = kv_indptr = {0};
    kv_indices.clear();
    last.clear();
    for (const std::size_t i : order) {
      kv_indices.insert(kv_indices.end(), members[i].pages.begin(), members[i].pages.end());
      kv_indptr.push_back(static_cast<std::int32_t>(kv_indices.size()));
      qo_indptr.push_back(qo_indptr.back() + members[i].q_len);
      last.push_back(members[i].last_page_len);
    }
    return {.qo_indptr = qo_indptr,
            .kv_indptr = kv_indptr,
            .kv_indices = kv_indices,
            .kv_last_page_len = last,
            .q_start = q_start};
  }

  /// Keys that a plan reads.
  std::uint64_t keys(const std::vector<std::size_t>& order) {
    const std::uint64_t bytes_of_a_key =
        std::uint64_t{config.num_kv_heads} * 2 * config.head_dim * size_of(config.kv_dtype);
    return AttentionPlan::create(config, batch(order)).value().kv_bytes() / bytes_of_a_key;
  }
  std::uint64_t keys() { return keys(in_order()); }

  /// [sequence][its rows][head][dim] and, behind them, [its rows][head] of lse: the bits do not depend on the order.
  using Results = std::vector<std::vector<float>>;

  Results run(const std::vector<std::size_t>& order, int threads) {
    return run(AttentionPlan::create(config, batch(order)).value(), order, threads);
  }

  Results run(const AttentionPlan& plan, const std::vector<std::size_t>& order, int threads) {
    make_pages();
    const std::size_t width = std::size_t{config.num_q_heads} * config.head_dim;
    std::vector<float> q = queries(order), out(plan.num_rows() * width), lse(plan.num_rows() * config.num_q_heads);
    tbb::task_arena arena(threads);
    const Result<void> done = arena.execute([&] { return plan.run(view(), q, out, lse); });
    EXPECT_TRUE(done.has_value());
    Results results(members.size());
    auto from = out.begin();
    auto lse_from = lse.begin();
    for (const std::size_t i : order) {
      const auto rows = static_cast<std::ptrdiff_t>(members[i].q_len);
      const std::ptrdiff_t numbers = rows * static_cast<std::ptrdiff_t>(width), heads = rows * config.num_q_heads;
      results[i].assign(from, from + numbers);
      results[i].insert(results[i].end(), lse_from, lse_from + heads);
      from += numbers;
      lse_from += heads;
    }
    return results;
  }

  /// Whether results are as close to the oracle as the arithmetic of config.target allows.
  void expect_oracle(const Results& got) {
    const AttentionBatch all = batch(in_order());
    const std::vector<float> q = queries(in_order());  // [row][head][dim]
    std::vector<double> out(q.size()), lse(q.size() / config.head_dim);
    ASSERT_TRUE(reference_attention(config, all, view(), q, out, lse).has_value());
    const testing::Arithmetic arithmetic = testing::arithmetic_of(config.target, config);
    const testing::Magnitudes sizes = magnitudes(q);
    const double bound = testing::output_bound(arithmetic, sizes, DType::f32);
    const double bound_of_lse = testing::lse_bound(arithmetic, sizes);
    auto want = out.begin();
    auto want_lse = lse.begin();
    for (std::size_t i = 0; i < got.size(); ++i) {
      const std::size_t heads = static_cast<std::size_t>(members[i].q_len) * config.num_q_heads;
      for (std::size_t n = 0; n < heads * config.head_dim; ++n) ASSERT_NEAR(double{got[i][n]}, *want++, bound) << i;
      for (std::size_t n = got[i].size() - heads; n < got[i].size(); ++n) {
        ASSERT_NEAR(double{got[i][n]}, *want_lse++, bound_of_lse) << i;
      }
    }
  }

  /// The same; and over f32 pages as plans without cascade, which sum in nearly the same order.
  void expect_right(const Results& got) {
    expect_oracle(got);
    if (config.kv_dtype != DType::f32) return;
    config.cascade = false;
    EXPECT_LT(largest_difference(got, run(in_order(), 2)), 1e-5);
    config.cascade = true;
  }

 private:
  std::vector<std::byte> pages_;  // [page][head][K, V][token][dim]
  DType made_as_ = DType::f32;    // the format of pages_

  void make_pages() {
    const std::size_t numbers =
        static_cast<std::size_t>(num_pages) * config.num_kv_heads * 2 * kPageTokens * config.head_dim;
    if (config.kv_dtype == made_as_ && pages_.size() == numbers * size_of(made_as_)) return;
    made_as_ = config.kv_dtype;
    pages_.resize(numbers * size_of(made_as_));
    std::mt19937 random(3);
    for (std::size_t n = 0; n < numbers; ++n) {
      const float value = static_cast<float>(random() % 256) / 64 - kLargestElement;  // exact in every format
      format::store_element(pages_.data(), n, made_as_, value);
    }
  }

  std::vector<float> queries(const std::vector<std::size_t>& order) const {
    std::vector<float> q;  // [row][head][dim]
    for (const std::size_t i : order) {
      std::mt19937 random(static_cast<unsigned>(i) + 7);
      std::normal_distribution<float> normal;
      const std::size_t row = std::size_t{config.num_q_heads} * config.head_dim;
      for (std::size_t n = static_cast<std::size_t>(members[i].q_len) * row; n > 0; --n) q.push_back(normal(random));
    }
    return q;
  }

  testing::Magnitudes magnitudes(const std::vector<float>& q) const {
    const double dim = config.head_dim;
    testing::Magnitudes sizes = {.k_norm = double{kLargestElement} * std::sqrt(dim),
                                 .k_max = double{kLargestElement},
                                 .v_max = double{kLargestElement},
                                 .sm_scale = 1 / std::sqrt(dim),
                                 .dim = dim};
    for (auto row = q.begin(); row != q.end(); row += config.head_dim) {
      const double squares = std::inner_product(row, row + config.head_dim, row, 0.0);
      sizes.q_norm = std::max(sizes.q_norm, std::sqrt(squares));
    }
    for (const float x : q) sizes.q_max = std::max(sizes.q_max, std::fabs(double{x}));
    for (const Member& m : members) {
      sizes.keys = std::max(sizes.keys, static_cast<double>(m.pages.size()) * kPageTokens);
    }
    return sizes;
  }

  static double largest_difference(const Results& a, const Results& b) {
    double largest = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
      for (std::size_t n = 0; n < a[i].size(); ++n) largest = std::max(largest, std::fabs(double{a[i][n]} - b[i][n]));
    }
    return largest;
  }

  KvView view() const {
    const auto row = static_cast<std::int64_t>(config.head_dim * size_of(config.kv_dtype));
    const std::int64_t half = kPageTokens * row, head = 2 * half, page = config.num_kv_heads * head;
    return {pages_.data(), pages_.data() + half, page, head, row, page, head, row, num_pages};
  }
};

TEST_F(Cascade, ReadsSharedPagesOnceWhereverTheirSequencesStand) {
  // Pages of six sequences, four a part: 0, 3 and 4 share a part, 0 and 3 another; 1 and 5 one; 2 has its own.
  members = {
      {{0, 1, 2, 3, 4, 5, 6, 7, 20}},     {{8, 9, 10, 11, 21}}, {{12, 13, 14, 15, 22}}, {{0, 1, 2, 3, 4, 5, 6, 7, 23}},
      {{0, 1, 2, 3, 16, 17, 18, 19, 24}}, {{8, 9, 10, 11, 25}}};
  EXPECT_EQ(keys(), (1 + 1 + 1 + 1 + 1) * kPart + 6 * 10);
  const std::array<float, 4> slopes = {0.5F, 0.25F, 0.125F, 0.1F};
  config.variant.alibi_slopes = slopes;
  EXPECT_EQ(keys(), 5 * kPart + 6 * 10);
  config.cascade = false;
  EXPECT_EQ(keys(), 9 * kPart + 6 * 10);
  config.cascade = true;
  config.variant.window_left = 5000;
  EXPECT_EQ(keys(), 5 * kPart + 6 * 10) << "a window that hides nothing";
}

TEST_F(Cascade, ReadsATreeOfPrefixesLevelByLevel) {
  make_tree(4, 8);
  const std::uint64_t root = 2 * kPart, groups = 4 * 2 * kPart, own = 32 * 128;
  EXPECT_EQ(keys(), root + groups + own);
  EXPECT_EQ(keys(shuffled(1)), root + groups + own);
  config.cascade = false;
  EXPECT_EQ(keys(), 32 * (4 * kPart + 128));
}

TEST_F(Cascade, SharesWholePartsOfTwoSequencesAtLeast) {
  const std::vector<std::int32_t> root = new_pages(kPartPages + 2);  // a part and a half
  for (int i = 0; i < 3; ++i) {
    members.push_back({root});
    for (const std::int32_t page : new_pages(kPartPages)) members.back().pages.push_back(page);
  }
  const std::uint64_t own = 512 + 3 * 256 + 10;  // the half part is each one's own
  EXPECT_EQ(keys(), kPart + 3 * own);
  members[1].pages.resize(kPartPages + 1);  // it ends in the half part
  EXPECT_EQ(keys(), kPart + 2 * own + 10);
  members[1].pages.resize(kPartPages);  // and here in the first one, which it does not fill
  EXPECT_EQ(keys(), kPart + 2 * own + (3 * 256 + 10));
  members.resize(1);
  EXPECT_EQ(keys(), kPart + own);
}

TEST_F(Cascade, OfATreeGivesTheSameBitsInAnyOrderAndOnAnyNumberOfThreads) {
  make_tree(3, 4);
  members.push_back({new_pages(3)});                       // shares nothing
  members.push_back({{0, 1, 2, 3}, kPageTokens});          // ends with the first part of the root, which is whole
  members.push_back({{0, 1, 2, 3, 4, 5, 6, 7, 8}, 1, 2});  // ends on the first page of a branch
  for (const DType dtype : kFormats) {
    config.kv_dtype = dtype;
    for (const char* target : testing::runnable_targets()) {
      SCOPED_TRACE(std::string(target) + " " + to_string(dtype));
      config.target = target;
      const Results want = run(in_order(), 1);
      expect_right(want);
      EXPECT_EQ(run(in_order(), 2), want);
      for (const unsigned seed : {1U, 2U}) EXPECT_EQ(run(shuffled(seed), 2), want) << seed;
    }
  }
}

TEST_F(Cascade, SharesWhatNoWindowHides) {
  // Four sequences share four parts; their own pages bring them to 4106, 4106, 5130 and 4106 tokens.
  const std::vector<std::int32_t> root = new_pages(4 * kPartPages);
  for (int i = 0; i < 4; ++i) {
    members.push_back({root});
    for (const std::int32_t page : new_pages(i == 2 ? kPartPages + 1 : 1)) members.back().pages.push_back(page);
  }
  config.variant.window_left = 3999;        // they see from 106, 106, 1130 and 106 on
  const std::uint64_t first = kPart - 106;  // the third one sees the second part from its middle on
  EXPECT_EQ(keys(), 3 * first + kPart + 2 * kPart + (2 * kPart - 1130) + 3 * 10 + (kPart + 10));
  EXPECT_EQ(keys(shuffled(4)), keys());
  config.variant.sink_tokens = 4;
  EXPECT_EQ(keys(), 3 * first + kPart + 2 * kPart + (2 * kPart - 1130) + 3 * 10 + (kPart + 10) + 4 * 4);
  config.variant.sink_tokens = 106;  // now the window hides nothing from three of them
  EXPECT_EQ(keys(), 2 * kPart + 2 * kPart + (2 * kPart - 1130) + 106 + 3 * 10 + (kPart + 10));
  config.variant.window_left = 100;
  EXPECT_EQ(keys(), 4 * (101 + 106)) << "and here leaves nothing to share";
}

TEST_F(Cascade, BesideWindowsAndSinksGivesTheSameBitsInAnyOrderAndWhatPlansWithoutItGive) {
  make_tree(3, 3);
  members[1].pages.resize(members[1].pages.size() - 1);  // ends with a part
  members[1].last_page_len = kPageTokens;
  for (const std::int32_t page : new_pages(5)) members[5].pages.push_back(page);
  config.target = active_target().value()->name;  // AttendCascade goes through all
  const std::array<float, 4> learned = {1, 0.5F, 2, -1};
  for (const DType dtype : kFormats) {
    config.kv_dtype = dtype;
    for (const std::int32_t window : {5000, 3500, 3072, 3071, 2100, 30}) {
      for (const std::uint32_t sinks : {0U, 4U, 1500U}) {
        config.variant.window_left = window;
        config.variant.sink_tokens = sinks;
        config.variant.sinks = sinks == 1500 ? std::span<const float>() : learned;
        SCOPED_TRACE(::testing::Message() << to_string(dtype) << ' ' << window << ' ' << sinks);
        const Results want = run(in_order(), 1);
        expect_right(want);
        EXPECT_EQ(run(shuffled(3), 2), want);
      }
    }
  }
}

TEST_F(Cascade, OfRowsFarBehindTheirKeysGivesNothing) {
  make_tree(1, 3);
  q_start = {4223, 9000, 4223};  // the window of the second one begins behind the last key
  config.variant.window_left = 3000;
  const Results results = run(in_order(), 2);
  EXPECT_EQ(results[1], [&] {
    std::vector<float> nothing(results[1].size());
    std::fill(nothing.end() - config.num_q_heads, nothing.end(), -std::numeric_limits<float>::infinity());
    return nothing;
  }());
  EXPECT_EQ(keys(), 2 * (2 * kPart - (4223 - 3000)) + 2 * kPart + 2 * 128);
}

TEST_F(Cascade, ExtendedPlanOfATreeGivesWhatNewPlansGive) {
  make_tree(2, 3);
  members[1].pages = members[0].pages;  // these two go on together, until they have one more part in common
  const std::vector<std::size_t> order = shuffled(5);
  AttentionPlan plan = AttentionPlan::create(config, batch(order)).value();
  const std::uint64_t tree = (2 + 2 * 2) * kPart;
  EXPECT_EQ(keys(order), tree + 6 * 128);
  for (int step = 1; step <= 4; ++step) {
    const std::int32_t page = new_pages(1)[0];
    members[0].pages.push_back(page);
    members[1].pages.push_back(page);
    for (std::size_t i = 2; i < members.size(); ++i) members[i].last_page_len += 30;
    ASSERT_TRUE(plan.extend(batch(order)).has_value());
    const AttentionPlan fresh = AttentionPlan::create(config, batch(order)).value();
    EXPECT_EQ(plan.kv_bytes(), fresh.kv_bytes());
    EXPECT_EQ(run(plan, order, 2), run(fresh, order, 1));
  }
  EXPECT_EQ(keys(order), tree + kPart + 2 * 128 + 4 * (128 + 4 * 30));
}

TEST_F(Cascade, PlanOfATreeIsAsItWasAfterAnExtendThatRanOutOfMemory) {
  make_tree(2, 3);
  const std::vector<std::size_t> order = in_order();
  const AttentionPlan original = AttentionPlan::create(config, batch(order)).value();
  const Results expected = run(original, order, 1);
  std::int64_t num_allocations = 1;
  int num_failures = 0;
  for (std::int64_t fail_at = -1; fail_at < num_allocations; ++fail_at) {  // the first round counts them
    for (Member& member : members) member.last_page_len = 128;
    AttentionPlan plan = AttentionPlan::create(config, batch(order)).value();
    for (Member& member : members) member.last_page_len = 129;
    const AttentionBatch longer = batch(order);
    Error error;
    {
      const testing::FailingNew failing(fail_at);
      error = plan.extend(longer).error();
      if (fail_at == -1) num_allocations = failing.count();
    }
    if (error == Errc::kOk) continue;  // sorting does without its buffer
    ++num_failures;
    ASSERT_EQ(error, Errc::kOutOfMemory) << "allocation " << fail_at;
    EXPECT_EQ(plan.kv_bytes(), original.kv_bytes());
    EXPECT_EQ(run(plan, order, 1), expected);
    ASSERT_TRUE(plan.extend(longer).has_value());
    const AttentionPlan fresh = AttentionPlan::create(config, longer).value();
    EXPECT_EQ(run(plan, order, 2), run(fresh, order, 1)) << "allocation " << fail_at;
  }
  EXPECT_GT(num_failures, 5);
}

TEST_F(Cascade, ManyRowsOnOnePrefixDoNotTellTheOrderOfTheBatch) {
  const std::vector<std::int32_t> root = new_pages(kPartPages);
  for (int i = 0; i < 131; ++i) {
    members.push_back({root});
    members.back().pages.push_back(new_pages(1)[0]);
  }
  for (const DType dtype : kFormats) {
    config.kv_dtype = dtype;
    for (const char* target : testing::runnable_targets()) {
      config.target = target;
      EXPECT_EQ(run(shuffled(1), 2), run(in_order(), 1)) << target << ' ' << to_string(dtype);
    }
  }
}

}  // namespace
}  // namespace pagedkv
