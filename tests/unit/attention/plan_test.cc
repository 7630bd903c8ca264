// Tests of AttentionPlan as an object: what it refuses, what it reports, its workspace, cancellation.
#include <gtest/gtest.h>
#include <tbb/parallel_for.h>
#include <tbb/task_group.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "pagedkv/attention.h"
#include "pagedkv/cpu.h"

namespace pagedkv {
namespace {

// Two sequences of 5 and 3 keys in pages of 4, one and two new rows.
class Plan : public ::testing::Test {
 protected:
  std::vector<std::int32_t> qo_indptr = {0, 1, 3}, kv_indptr = {0, 2, 3}, kv_indices = {2, 0, 1}, last = {1, 3};
  AttentionConfig config = {.num_q_heads = 4, .num_kv_heads = 2, .head_dim = 8, .page_size = 4, .kv_dtype = DType::f32};
  std::vector<float> pages = std::vector<float>(3 * 2 * 2 * 4 * 8, 0.5F);  // [page][head][K, V][token][dim]
  std::vector<float> q = std::vector<float>(3 * 4 * 8, 1.0F), out = std::vector<float>(3 * 4 * 8),
                     lse = std::vector<float>(12);

  AttentionBatch batch() {
    return {.qo_indptr = qo_indptr, .kv_indptr = kv_indptr, .kv_indices = kv_indices, .kv_last_page_len = last};
  }
  KvView view() const { return view_of(pages); }
  // Of pages as `pages` has them.
  static KvView view_of(const std::vector<float>& all) {
    const std::int64_t row = 32, head = 2 * 4 * row, page = 2 * head;
    return {all.data(),
            all.data() + 32,
            page,
            head,
            row,
            page,
            head,
            row,
            static_cast<std::int64_t>(all.size()) * 4 / page};
  }
  // The first multiple of 64 bytes, of memory that has 64 to spare.
  static std::byte* aligned_in(std::vector<std::byte>& memory) {
    void* start = memory.data();
    std::size_t space = memory.size();
    return static_cast<std::byte*>(std::align(64, memory.size() - 64, start, space));
  }
  Errc refused(const AttentionBatch& bad) { return AttentionPlan::create(config, bad).error().code; }
};

TEST_F(Plan, ReportsItsBatch) {
  const auto plan = AttentionPlan::create(config, batch()).value();
  EXPECT_EQ(plan.num_rows(), 3U);
  EXPECT_STREQ(plan.target(), active_target().value()->name);
  EXPECT_EQ(plan.kv_bytes(), (5U + 3U) * 2 * 16 * 4);
  EXPECT_EQ(plan.flops(), 2.0 * (5 + 2 + 3) * 4 * 16);
  EXPECT_TRUE(plan.run(view(), q, out, lse).has_value());
  for (const float value : out) EXPECT_FLOAT_EQ(value, 0.5F);
}

TEST_F(Plan, CountsValuesThatLieInTheirKeysOnce) {
  config.v_head_dim = 6;
  const auto plan = AttentionPlan::create(config, batch()).value();
  KvView pages_apart = view(), pages_within = view();
  pages_within.v = pages.data() + 2;  // the last 6 elements of a key
  EXPECT_EQ(plan.kv_bytes(), (5U + 3U) * 2 * (8 + 6) * 4);
  EXPECT_EQ(plan.kv_bytes(pages_apart), plan.kv_bytes());
  EXPECT_EQ(plan.kv_bytes(pages_within), (5U + 3U) * 2 * 8 * 4);
  pages_within.v = pages.data() + 3;  // reaches into the next key
  EXPECT_EQ(plan.kv_bytes(pages_within), plan.kv_bytes());
  pages_within = view();
  pages_within.v = pages_within.k;
  pages_within.v_token_stride += 4;
  EXPECT_EQ(plan.kv_bytes(pages_within), plan.kv_bytes());
}

TEST_F(Plan, RefusesConfigsOutOfRange) {
  const auto code = [&](auto change) {
    AttentionConfig bad = config;
    change(bad);
    return AttentionPlan::create(bad, batch()).error().code;
  };
  const std::vector<float> three(3, 1.0F), nan(4, std::nanf(""));
  EXPECT_EQ(code([](AttentionConfig& c) { c.num_q_heads = 0; }), Errc::kInvalidArgument);
  EXPECT_EQ(code([](AttentionConfig& c) { c.num_kv_heads = 0; }), Errc::kInvalidArgument);
  EXPECT_EQ(code([](AttentionConfig& c) { c.num_kv_heads = 3; }), Errc::kInvalidArgument);
  EXPECT_EQ(code([](AttentionConfig& c) { c.num_q_heads = 1U << 30; }), Errc::kInvalidArgument);
  EXPECT_EQ(code([](AttentionConfig& c) { c.head_dim = 0; }), Errc::kInvalidArgument);
  EXPECT_EQ(code([](AttentionConfig& c) { c.head_dim = 1025; }), Errc::kInvalidArgument);
  EXPECT_EQ(code([](AttentionConfig& c) { c.v_head_dim = 1025; }), Errc::kInvalidArgument);
  EXPECT_EQ(code([](AttentionConfig& c) { c.page_size = 0; }), Errc::kInvalidArgument);
  EXPECT_EQ(code([](AttentionConfig& c) { c.page_size = 257; }), Errc::kInvalidArgument);
  EXPECT_EQ(code([](AttentionConfig& c) { c.kv_dtype = static_cast<DType>(9); }), Errc::kInvalidArgument);
  EXPECT_EQ(code([](AttentionConfig& c) { c.variant.sm_scale = std::nanf(""); }), Errc::kInvalidArgument);
  EXPECT_EQ(code([](AttentionConfig& c) { c.variant.logits_soft_cap = -1; }), Errc::kInvalidArgument);
  EXPECT_EQ(code([](AttentionConfig& c) { c.variant.logits_soft_cap = 1e-39F; }), Errc::kInvalidArgument);
  EXPECT_EQ(code([](AttentionConfig& c) { c.variant.logits_soft_cap = 1.3e38F; }), Errc::kInvalidArgument);
  EXPECT_EQ(code([](AttentionConfig& c) { c.variant.logits_soft_cap = 1.2e-38F, c.variant.sm_scale = 30; }),
            Errc::kInvalidArgument);
  EXPECT_EQ(code([&](AttentionConfig& c) { c.variant.sinks = three; }), Errc::kInvalidArgument);
  EXPECT_EQ(code([&](AttentionConfig& c) { c.variant.sinks = nan; }), Errc::kInvalidArgument);
  EXPECT_EQ(code([&](AttentionConfig& c) { c.variant.alibi_slopes = nan; }), Errc::kInvalidArgument);
  EXPECT_EQ(code([](AttentionConfig& c) { c.target = "none"; }), Errc::kUnsupported);
}

TEST_F(Plan, RefusesBrokenPageTables) {
  const std::vector<std::int32_t> falling = {0, 2, 1}, late = {1, 2, 3}, shorter = {0, 2}, negative = {2, -1, 1};
  const std::vector<std::int32_t> zero_last = {0, 3}, long_last = {1, 5};
  AttentionBatch bad = batch();
  bad.qo_indptr = falling;
  EXPECT_EQ(refused(bad), Errc::kInvalidArgument);
  bad.qo_indptr = late;
  EXPECT_EQ(refused(bad), Errc::kInvalidArgument);
  bad.qo_indptr = {};
  EXPECT_EQ(refused(bad), Errc::kInvalidArgument);
  bad = batch();
  bad.kv_indptr = falling;
  EXPECT_EQ(refused(bad), Errc::kInvalidArgument);
  bad.kv_indptr = shorter;
  EXPECT_EQ(refused(bad), Errc::kInvalidArgument);
  bad = batch();
  bad.kv_indices = shorter;
  EXPECT_EQ(refused(bad), Errc::kInvalidArgument);
  bad.kv_indices = negative;
  EXPECT_EQ(refused(bad), Errc::kInvalidArgument);
  bad = batch();
  bad.kv_last_page_len = zero_last;
  EXPECT_EQ(refused(bad), Errc::kInvalidArgument);
  bad.kv_last_page_len = long_last;
  EXPECT_EQ(refused(bad), Errc::kInvalidArgument);
  bad = batch();
  bad.seq_lens = shorter;
  EXPECT_EQ(refused(bad), Errc::kInvalidArgument);
  bad = batch();
  bad.q_start = negative;
  EXPECT_EQ(refused(bad), Errc::kInvalidArgument);
}

TEST_F(Plan, RefusesBrokenPaddedTables) {
  const std::vector<std::int32_t> table = {2, 0, 1, -1}, lens = {5, 3}, too_long = {9, 3}, negative = {-1, 3};
  AttentionBatch good = {.qo_indptr = qo_indptr, .block_table = table, .block_table_stride = 2, .seq_lens = lens};
  EXPECT_TRUE(AttentionPlan::create(config, good).has_value());  // the -1 lies past the sequence's end
  AttentionBatch bad = good;
  bad.seq_lens = too_long;
  EXPECT_EQ(refused(bad), Errc::kInvalidArgument);
  bad.seq_lens = negative;
  EXPECT_EQ(refused(bad), Errc::kInvalidArgument);
  bad = good;
  bad.block_table_stride = -2;
  EXPECT_EQ(refused(bad), Errc::kInvalidArgument);
  bad.block_table_stride = INT64_MAX;
  EXPECT_EQ(refused(bad), Errc::kInvalidArgument);
  bad = good;
  bad.block_table = std::span(table).first(2);
  EXPECT_EQ(refused(bad), Errc::kInvalidArgument);
  bad = good;
  bad.kv_indices = kv_indices;  // of the other form
  EXPECT_EQ(refused(bad), Errc::kInvalidArgument);
  const std::vector<std::int32_t> reaches_the_negative = {5, 5};
  bad = good;
  bad.seq_lens = reaches_the_negative;
  EXPECT_EQ(refused(bad), Errc::kInvalidArgument);
}

TEST_F(Plan, RefusesAPaddedTableWhoseOffsetsWouldWrap) {
  constexpr std::size_t kSequences = (std::size_t{1} << 24) + 1;  // times the stride: 2^64
  const std::vector<std::int32_t> no_rows(kSequences + 1, 0), table = {0};
  std::vector<std::int32_t> lens(kSequences, 0);
  lens.back() = 1;
  const AttentionBatch bad = {
      .qo_indptr = no_rows, .block_table = table, .block_table_stride = std::int64_t{1} << 40, .seq_lens = lens};
  EXPECT_EQ(refused(bad), Errc::kInvalidArgument);
}

TEST_F(Plan, RefusesMoreRowsThanAnyBatchHasBeforeItSpendsMemoryOnThem) {
  AttentionBatch bad = batch();
  const std::vector<std::int32_t> too_many = {0, 1, (1 << 25) + 1}, all = {0, 1, INT32_MAX};  // times two kv heads
  for (const auto* rows : {&too_many, &all}) {
    bad.qo_indptr = *rows;
    EXPECT_EQ(refused(bad), Errc::kInvalidArgument);
    EXPECT_EQ(AttentionPlan::workspace_bytes(config, bad).error().code, Errc::kInvalidArgument);
  }
}

TEST_F(Plan, RefusesMoreTokensThanKernelsCount) {
  config.page_size = 256;
  const std::int32_t num_pages = 1 << 22;
  const std::vector<std::int32_t> ids(num_pages + 1), rows = {0, 1}, most = {0, num_pages}, more = {0, num_pages + 1};
  const std::vector<std::int32_t> full = {256}, one = {1}, late = {(1 << 30) + 1};
  AttentionBatch long_batch = {.qo_indptr = rows, .kv_indptr = most, .kv_indices = ids, .kv_last_page_len = full};
  EXPECT_TRUE(AttentionPlan::create(config, long_batch).has_value());
  long_batch.q_start = late;
  EXPECT_EQ(refused(long_batch), Errc::kInvalidArgument);
  long_batch.q_start = {};
  long_batch.kv_indptr = more;
  long_batch.kv_last_page_len = one;
  EXPECT_EQ(refused(long_batch), Errc::kInvalidArgument);
  const std::vector<std::int32_t> lens = {(1 << 30) + 1};
  AttentionBatch padded = {.qo_indptr = rows, .block_table = ids, .block_table_stride = num_pages + 1};
  padded.seq_lens = lens;
  EXPECT_EQ(refused(padded), Errc::kInvalidArgument);
}

TEST_F(Plan, RefusesMasksThatAreTooShort) {
  const std::vector<std::byte> bytes(5 + 2 * 3);
  const std::vector<std::int64_t> offsets = {0, 5}, far = {0, INT64_MAX}, negative = {0, -1}, heads = {0, 6};
  AttentionBatch masked = batch();
  masked.mask = {.kind = MaskKind::kBool, .bytes = bytes, .offsets = offsets};
  EXPECT_TRUE(AttentionPlan::create(config, masked).has_value());
  masked.mask.bytes = std::span(bytes).first(10);
  EXPECT_EQ(refused(masked), Errc::kInvalidArgument);
  masked.mask.bytes = bytes;
  masked.mask.head_strides = heads;
  EXPECT_EQ(refused(masked), Errc::kInvalidArgument);
  masked.mask.head_strides = {};
  masked.mask.offsets = far;
  EXPECT_EQ(refused(masked), Errc::kInvalidArgument);
  masked.mask.offsets = negative;
  EXPECT_EQ(refused(masked), Errc::kInvalidArgument);
  masked.mask.offsets = {};
  EXPECT_EQ(refused(masked), Errc::kInvalidArgument);
}

TEST_F(Plan, RefusesMaskStridesThatOverflowThoughNoKeyIsThere) {
  const std::vector<std::int64_t> offsets = {0}, strides = {std::int64_t{1} << 40};
  const std::vector<std::int32_t> rows = {0, 1 << 24}, none = {0, 0}, no_last = {0}, start = {0};
  AttentionBatch masked = {.qo_indptr = rows, .kv_indptr = none, .kv_last_page_len = no_last, .q_start = start};
  masked.mask = {.kind = MaskKind::kBool, .offsets = offsets, .row_strides = strides};
  EXPECT_EQ(refused(masked), Errc::kInvalidArgument);
}

TEST_F(Plan, RefusesMasksWithOtherStridesThanSequencesAndFloatsThatAreNotAligned) {
  alignas(float) std::array<std::byte, sizeof(float) * (5 + 2 * 3) + 1> bytes = {};
  const std::vector<std::int64_t> offsets = {0, 5}, one = {6};
  const auto entries = std::span(bytes).first(bytes.size() - 1);
  AttentionBatch masked = batch();
  masked.mask = {.kind = MaskKind::kAdditive, .bytes = entries, .offsets = offsets};
  EXPECT_TRUE(AttentionPlan::create(config, masked).has_value());
  masked.mask.head_strides = one;
  EXPECT_EQ(refused(masked), Errc::kInvalidArgument);
  masked.mask.head_strides = {};
  masked.mask.row_strides = one;
  EXPECT_EQ(refused(masked), Errc::kInvalidArgument);
  masked.mask.row_strides = {};
  masked.mask.bytes = std::span(bytes).subspan(1);
  EXPECT_EQ(refused(masked), Errc::kInvalidArgument);
}

TEST_F(Plan, RunRefusesSizesAndViewsThatDoNotFit) {
  const auto plan = AttentionPlan::create(config, batch()).value();
  std::vector<float> small(5);
  EXPECT_EQ(plan.run(view(), small, out).error(), Errc::kInvalidArgument);
  EXPECT_EQ(plan.run(view(), q, small).error(), Errc::kInvalidArgument);
  EXPECT_EQ(plan.run(view(), q, out, small).error(), Errc::kInvalidArgument);
  KvView bad = view();
  bad.num_pages = 2;  // the batch uses page 2
  EXPECT_EQ(plan.run(bad, q, out).error(), Errc::kInvalidArgument);
  bad = view();
  bad.k = nullptr;
  EXPECT_EQ(plan.run(bad, q, out).error(), Errc::kInvalidArgument);
  bad = view();
  bad.v_token_stride = 30;
  EXPECT_EQ(plan.run(bad, q, out).error(), Errc::kInvalidArgument);
  bad = view();
  bad.v = reinterpret_cast<const std::byte*>(pages.data()) + 1;
  EXPECT_EQ(plan.run(bad, q, out).error(), Errc::kInvalidArgument);
  EXPECT_EQ(plan.run(view(), ConstTensor(nullptr, q.size(), DType::f32), out).error(), Errc::kInvalidArgument);
  EXPECT_EQ(plan.run(view(), q, Tensor(nullptr, out.size(), DType::f32)).error(), Errc::kInvalidArgument);
}

TEST_F(Plan, RunRefusesPagesBeyondAnyAddress) {
  kv_indices[0] = 1 << 30;
  const auto plan = AttentionPlan::create(config, batch()).value();
  KvView bad = view();
  bad.num_pages = std::int64_t{1} << 31;
  bad.v_page_stride = -(std::int64_t{1} << 40);
  EXPECT_EQ(plan.run(bad, q, out).error(), Errc::kInvalidArgument);
}

TEST_F(Plan, RunTakesTheSinksOfALayerInPlaceOfThePlans) {
  const std::vector<float> sinks = {0.5F, -1, 3, 10}, others = {9, 9, 9, 9};
  config.variant.sinks = sinks;
  const auto with_sinks = AttentionPlan::create(config, batch()).value();
  config.variant.sinks = others;
  const auto with_others = AttentionPlan::create(config, batch()).value();
  config.variant.sinks = {};
  const auto without = AttentionPlan::create(config, batch()).value();
  std::vector<float> want = out, want_lse = lse;
  ASSERT_TRUE(with_sinks.run(view(), q, want, want_lse));
  for (const AttentionPlan* plan : {&with_others, &without}) {
    ASSERT_TRUE(plan->run(view(), q, out, lse, sinks));
    EXPECT_EQ(out, want);
    EXPECT_EQ(lse, want_lse);
    ASSERT_TRUE(plan->run(view(), q, out, lse));
    EXPECT_NE(lse, want_lse);
  }
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const std::vector<float> three(3), infinite = {0, 0, kInfinity, 0}, nan = {0, NAN, 0, 0};
  for (const auto& bad : {three, infinite, nan}) {
    EXPECT_EQ(without.run(view(), q, out, lse, bad).error(), Errc::kInvalidArgument);
  }
}

TEST_F(Plan, CountsSinkTokensAmongTheKeysThatItReads) {
  config.variant.window_left = 1;
  const auto windowed = AttentionPlan::create(config, batch()).value();
  config.variant.sink_tokens = 2;
  const auto with_sinks = AttentionPlan::create(config, batch()).value();
  // Rows see keys 3..4 of five, and 0..1 and 1..2 of three; the sinks are tokens 0 and 1.
  const std::uint64_t bytes_of_a_key = 2 * (8 + 8) * 4;
  EXPECT_EQ(windowed.kv_bytes(), (2 + 3) * bytes_of_a_key);
  EXPECT_EQ(with_sinks.kv_bytes(), (4 + 3) * bytes_of_a_key);
  EXPECT_EQ(windowed.flops(), (2 + 2 + 2) * 2.0 * 4 * (8 + 8));
  EXPECT_EQ(with_sinks.flops(), (4 + 2 + 3) * 2.0 * 4 * (8 + 8));
}

TEST_F(Plan, LivesInAWorkspaceOfExactlyTheBytesItAsksFor) {
  const std::size_t bytes = AttentionPlan::workspace_bytes(config, batch()).value();
  ASSERT_GT(bytes, 0U);
  std::vector<std::byte> memory(bytes + 64);
  std::byte* const aligned = aligned_in(memory);
  EXPECT_EQ(AttentionPlan::create(config, batch(), {aligned, bytes - 1}).error(), Errc::kInvalidArgument);
  EXPECT_EQ(AttentionPlan::create(config, batch(), {aligned + 4, bytes}).error(), Errc::kInvalidArgument);
  const auto plan = AttentionPlan::create(config, batch(), {aligned, bytes});
  ASSERT_TRUE(plan.has_value());
  EXPECT_TRUE(plan->run(view(), q, out, lse).has_value());
  EXPECT_FLOAT_EQ(out[0], 0.5F);
}

// Two sequences that grow through page and part boundaries; the rows of the second see two new tokens a step.
class GrowingPlan : public Plan {
 protected:
  GrowingPlan() {
    for (std::size_t i = 0; i < many.size(); ++i) many[i] = static_cast<float>(i * 2654435761U % 1000) * 0.002F - 1;
    for (std::size_t i = 0; i < table.size(); ++i) table[i] = static_cast<std::int32_t>(i * 7 % 600);
  }

  AttentionBatch now() {
    return {.qo_indptr = qo_indptr, .block_table = table, .block_table_stride = 300, .seq_lens = lens};
  }

  /// `next` gives the batch of each step.
  template <class Next>
  void expect_as_new_plans(const Next& next) {
    const KvView pool = view_of(many);
    AttentionPlan plan = AttentionPlan::create(config, next()).value();
    for (int step = 0; step < 60; ++step) {
      lens[0] += 1;
      lens[1] += step == 20 ? 200 : 2;  // more pages at once than the plan keeps room for
      const AttentionBatch batch = next();
      ASSERT_TRUE(plan.extend(batch).has_value());
      const AttentionPlan fresh = AttentionPlan::create(config, batch).value();
      std::vector<float> want(out.size()), want_lse(lse.size());
      ASSERT_TRUE(plan.run(pool, q, out, lse).has_value());
      ASSERT_TRUE(fresh.run(pool, q, want, want_lse).has_value());
      ASSERT_EQ(out, want) << step;
      ASSERT_EQ(lse, want_lse) << step;
      EXPECT_EQ(plan.kv_bytes(), fresh.kv_bytes());
    }
  }

  std::vector<float> many = std::vector<float>(600 * 2 * 2 * 4 * 8);  // [page][head][K, V][token][dim]
  std::vector<std::int32_t> table = std::vector<std::int32_t>(600), lens = {1000, 30};
};

TEST_F(GrowingPlan, ExtendedStepByStepGivesWhatNewPlansGive) {
  expect_as_new_plans([&] { return now(); });
}

TEST_F(GrowingPlan, ExtendedByOtherMasksGivesWhatNewPlansGive) {
  std::vector<std::byte> mask;  // [sequence][head][row][key] of one step; that of the step before is gone by then
  std::vector<std::int64_t> offsets, head_strides;
  std::mt19937 random(5);
  expect_as_new_plans([&] {
    std::fill(mask.begin(), mask.end(), std::byte{0});
    const std::int64_t heads = config.num_q_heads, rows = qo_indptr[2] - qo_indptr[1];
    const auto first = static_cast<std::int64_t>(random() % 9);
    offsets = {first, first + heads * lens[0]};
    head_strides = {lens[0], rows * lens[1]};
    mask = std::vector<std::byte>(static_cast<std::size_t>(offsets[1] + heads * rows * lens[1]));
    std::generate(mask.begin(), mask.end(), [&] { return std::byte{random() % 3 != 0}; });
    AttentionBatch batch = now();
    batch.mask = {.kind = MaskKind::kBool, .bytes = mask, .offsets = offsets, .head_strides = head_strides};
    return batch;
  });
}

TEST_F(Plan, ExtendRefusesOtherBatchesAndStaysAsItWas) {
  AttentionPlan plan = AttentionPlan::create(config, batch()).value();
  const std::vector<std::int32_t> other_rows = {0, 2, 3}, one = {0, 1}, fewer = {0, 1, 2}, full = {4, 3};
  AttentionBatch bad = batch();
  bad.qo_indptr = other_rows;
  EXPECT_EQ(plan.extend(bad).error(), Errc::kInvalidArgument);
  bad = batch();
  bad.kv_indptr = fewer;
  bad.kv_last_page_len = full;
  EXPECT_EQ(plan.extend(bad).error(), Errc::kInvalidArgument);
  bad = batch();
  bad.kv_indptr = one;
  EXPECT_EQ(plan.extend(bad).error(), Errc::kInvalidArgument);
  EXPECT_EQ(plan.kv_bytes(), (5U + 3U) * 2 * 16 * 4);
  EXPECT_TRUE(plan.run(view(), q, out, lse).has_value());
}

TEST_F(Plan, KnowsNoMorePagesAfterAnExtendThatFailed) {
  // 256 pages and a workspace that is just enough: one page more is a second part, whose state has no room.
  const std::vector<float> many(257 * 2 * 2 * 4 * 8, 0.5F);  // [page][head][K, V][token][dim]
  const KvView all = view_of(many);
  KvView before = all;
  before.num_pages = 256;
  std::vector<std::int32_t> table(257), one_row = {0, 1}, lens = {1024};
  std::iota(table.begin(), table.end(), 0);
  const auto now = [&]() -> AttentionBatch {
    return {.qo_indptr = one_row, .block_table = table, .block_table_stride = 257, .seq_lens = lens};
  };
  const std::size_t bytes = AttentionPlan::workspace_bytes(config, now()).value();
  std::vector<std::byte> memory(bytes + 64);
  std::byte* const aligned = aligned_in(memory);
  AttentionPlan plan = AttentionPlan::create(config, now(), {aligned, bytes}).value();
  const std::span<float> row_out(out.data(), 32);
  const std::span<const float> row_q(q.data(), 32);
  lens[0] = 1025;
  EXPECT_EQ(plan.extend(now()).error(), Errc::kInvalidArgument);
  EXPECT_EQ(plan.run(all, row_q, row_out).error(), Errc::kOk);
  EXPECT_EQ(plan.run(before, row_q, row_out).error(), Errc::kOk);
  lens[0] = 1024;
  EXPECT_EQ(plan.extend(now()).error(), Errc::kOk);
  EXPECT_EQ(plan.run(before, row_q, row_out).error(), Errc::kOk);
}

TEST_F(Plan, OfAnEmptyBatchRuns) {
  const std::vector<std::int32_t> zero = {0};
  const auto plan = AttentionPlan::create(config, {.qo_indptr = zero, .kv_indptr = zero});
  ASSERT_TRUE(plan.has_value());
  EXPECT_TRUE(plan->run({}, ConstTensor(), Tensor()).has_value());
}

TEST_F(Plan, MovedFromPlanIsClosed) {
  auto plan = AttentionPlan::create(config, batch()).value();
  const AttentionPlan taken = std::move(plan);
  EXPECT_EQ(plan.run(view(), q, out).error(), Errc::kClosed);  // NOLINT(bugprone-use-after-move)
  EXPECT_TRUE(taken.run(view(), q, out).has_value());
}

TEST_F(Plan, RunInACancelledGroupSaysSo) {
  const auto plan = AttentionPlan::create(config, batch()).value();
  tbb::task_group_context context;
  Result<void> result;
  tbb::parallel_for(
      0, 1,
      [&](int) {
        context.cancel_group_execution();
        result = plan.run(view(), q, out);
      },
      context);
  EXPECT_EQ(result.error(), Errc::kCancelled);
  EXPECT_TRUE(plan.run(view(), q, out).has_value());  // the plan is none the worse
}

}  // namespace
}  // namespace pagedkv
