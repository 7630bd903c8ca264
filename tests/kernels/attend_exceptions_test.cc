// What is no number: an infinity or a NaN in keys, values, queries or masks reaches the rows that see it, and no other,
// on every target and in every format.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/expect_oracle.h"

namespace pagedkv::testing {
namespace {

TEST(AttendExceptions, InfinityInAKeyThatARowDoesNotSeeLeavesItAlone) {
  ProblemShape shape;
  shape.config.kv_dtype = DType::f32;
  shape.config.num_q_heads = 2;
  shape.sequences = {{8, 8}};
  const Problem problem(shape);
  // The last token's V becomes infinite; only the last row may notice.
  auto* const v = const_cast<std::byte*>(static_cast<const std::byte*>(problem.view().v));
  const AttentionBatch batch = problem.batch();
  const std::int64_t last = batch.kv_indices[0] * problem.view().v_page_stride + 7 * problem.view().v_token_stride;
  const float infinity = std::numeric_limits<float>::infinity();
  for (std::int64_t h = 0; h < 2; ++h)
    std::memcpy(v + last + h * problem.view().v_head_stride, &infinity, sizeof(float));
  for (const char* target : runnable_targets()) {
    const auto got = problem.run(target);
    ASSERT_TRUE(got.has_value());
    const std::size_t row_bytes = got->out_bytes.size() / 8;
    EXPECT_TRUE(std::isinf(got->out[7 * 2 * 32])) << target;
    for (std::size_t i = 0; i < 7 * row_bytes / sizeof(float); ++i)
      ASSERT_TRUE(std::isfinite(got->out[i])) << target << " " << i;
  }
}

enum class Poisoned { kKeys, kValues, kKeysWithInfinities };

// NaN in K of two tokens, infinities in K, or an infinity and a NaN in V of them, reach exactly the rows that see those
// tokens, whatever hides them from others. Tokens 61 and 66 are seen by some rows of the sequences alone.
void expect_exceptions_stay_where_seen(ProblemShape shape, Poisoned poisoned) {
  const bool has_infinite_keys = poisoned == Poisoned::kKeysWithInfinities;
  // Where queries are sums of terms, an infinity of K may give a NaN instead of a logit of +-infinity.
  if (has_infinite_keys) shape.q_dtype = DType::bf16;
  for (const StoredFormat& format : kStoredFormats) {
    format.set(shape.config);
    const Problem problem(shape);
    const KvView view = problem.view();
    const AttentionBatch batch = problem.batch();
    const auto poison = [&](std::int32_t token, std::size_t dim, float value) {
      for (std::size_t i = 0; i < shape.sequences.size(); ++i) {
        const auto page_size = static_cast<std::int32_t>(shape.config.page_size);
        const std::int64_t page = batch.kv_indices[static_cast<std::size_t>(batch.kv_indptr[i] + token / page_size)];
        for (std::int64_t head = 0; head < shape.config.num_kv_heads; ++head) {
          const std::int64_t slot = token % page_size;
          const void* const row = poisoned != Poisoned::kValues
                                      ? static_cast<const std::byte*>(view.k) + page * view.k_page_stride +
                                            head * view.k_head_stride + slot * view.k_token_stride
                                      : static_cast<const std::byte*>(view.v) + page * view.v_page_stride +
                                            head * view.v_head_stride + slot * view.v_token_stride;
          format::store_element(const_cast<void*>(row), dim, format.dtype, value);
        }
      }
    };
    constexpr std::uint32_t kPayloads[] = {0x7FC00000, 0x7FC00001, 0xFFFFFFFF, 0x7FC001FF};  // all of them NaN
    const float infinity = std::numeric_limits<float>::infinity(),
                nan = std::bit_cast<float>(kPayloads[shape.config.num_q_heads % std::size(kPayloads)]);
    poison(61, 3, poisoned == Poisoned::kKeys ? nan : -infinity);
    poison(66, 20, has_infinite_keys ? infinity : nan);
    const AttentionConfig& config = shape.config;
    const std::size_t v_dim = config.v_head_dim != 0 ? config.v_head_dim : config.head_dim;
    poison(66, (poisoned == Poisoned::kValues ? v_dim : config.head_dim) - 1, has_infinite_keys ? infinity : nan);
    on_every_target(problem, [&](const char* target, Outputs finite, Outputs got) {
      const auto blank = [](std::vector<double>& wanted, std::vector<double>& found) {
        std::size_t count = 0;
        for (std::size_t i = 0; i < wanted.size(); ++i) {
          if (std::isfinite(wanted[i])) continue;
          EXPECT_FALSE(std::isfinite(found[i])) << "element " << i;
          wanted[i] = found[i] = 0, ++count;
        }
        return count;
      };
      const std::size_t num_exceptions = blank(finite.out, got.out) + blank(finite.lse, got.lse);
      EXPECT_TRUE(num_exceptions > 0 || has_infinite_keys);  // a soft cap makes infinite logits finite
      ASSERT_EQ(problem.difference(got, finite, arithmetic_of(target, problem.config())), "");
    });
  }
}

const std::vector<SequenceShape> kPrefillSequences = {{90, 40}, {70, 70}};
const std::vector<SequenceShape> kDecodeSequences = {{68, 3}, {67, 2}, {90, 4, 60}, {200, 1, 63}};

void expect_exceptions_stay_where_seen_of_any_kind(const ProblemShape& shape) {
  for (const Poisoned poisoned : {Poisoned::kKeys, Poisoned::kValues, Poisoned::kKeysWithInfinities}) {
    SCOPED_TRACE(::testing::Message() << "group " << shape.config.num_q_heads / shape.config.num_kv_heads << ", "
                                      << shape.sequences.size() << " sequences, poisoned "
                                      << static_cast<int>(poisoned));
    expect_exceptions_stay_where_seen(shape, poisoned);
  }
}

void expect_exceptions_stay_where_seen(const ProblemShape& base) {
  for (const std::uint32_t num_q_heads : {1U, 2U, 3U, 5U}) {  // of one kv head: 1 to 20 columns in decode
    for (const auto& sequences : {kPrefillSequences, kDecodeSequences}) {
      ProblemShape shape = base;
      shape.config.num_q_heads = num_q_heads;
      shape.config.num_kv_heads = 1;
      shape.sequences = sequences;
      expect_exceptions_stay_where_seen_of_any_kind(shape);
    }
  }
}

TEST(AttendExceptions, InfinityAndNanReachOnlyRowsThatSeeTheirKeys) {
  for (const std::uint32_t head_dim : {32U, 40U}) {  // whole tiles wide or not
    ProblemShape shape;
    shape.config.head_dim = head_dim;
    expect_exceptions_stay_where_seen(shape);
  }
}

// In the queries of the first row and head, or in the mask of the first row, in f32.
void expect_nan_makes_its_row_nan(const ProblemShape& shape, bool in_mask, std::uint32_t payload) {
  const Problem problem(shape);
  const void* const at = in_mask ? problem.batch().mask.bytes.data() : problem.queries().data;
  const std::size_t first = in_mask ? static_cast<std::size_t>(problem.batch().mask.offsets[0]) : 0;
  std::memcpy(static_cast<std::byte*>(const_cast<void*>(at)) + first * sizeof(float), &payload, sizeof(payload));
  for (const char* target : targets_of(problem.config())) {
    SCOPED_TRACE(::testing::Message() << target << ", payload " << std::hex << payload << ", mask " << in_mask);
    const Result<Outputs> got = problem.run(target);
    ASSERT_TRUE(got.has_value());
    EXPECT_TRUE(std::isnan(got->lse[0]));
    EXPECT_TRUE(std::all_of(got->out.begin(), got->out.begin() + 64, [](double x) { return std::isnan(x); }));
    EXPECT_TRUE(std::isfinite(got->lse.back()));
  }
}

TEST(AttendExceptions, ANanOfAnyPayloadInQueriesAndMasksMakesItsRowNan) {
  for (const DType format : {DType::f32, DType::f16, DType::bf16}) {
    for (const std::int32_t rows : {2, 4, 20}) {
      for (const std::uint32_t payload :
           {0x7FC00000U, 0x7FC00001U, 0xFFFFFFFFU, 0x7FFFFFFFU, 0x7F800001U, 0xFF800001U}) {
        ProblemShape shape;
        shape.config = {.num_q_heads = 4, .num_kv_heads = 1, .head_dim = 64, .kv_dtype = format};
        shape.sequences = {{64, rows}};
        shape.q_dtype = DType::f32;
        expect_nan_makes_its_row_nan(shape, false, payload);
        shape.mask = MaskKind::kAdditive;
        expect_nan_makes_its_row_nan(shape, true, payload);
      }
    }
  }
}

TEST(AttendExceptions, InfinityAndNanReachOnlyRowsThatSeeTheirKeysThroughAWindow) {
  ProblemShape shape;
  shape.config.variant.window_left = 3;
  expect_exceptions_stay_where_seen(shape);
}

TEST(AttendExceptions, InfinityAndNanReachOnlyRowsThatSeeTheirKeysUnderSoftCapAndAlibi) {
  ProblemShape shape;
  shape.config.variant.logits_soft_cap = 20;
  shape.alibi = true;
  expect_exceptions_stay_where_seen(shape);
}

TEST(AttendExceptions, InfinityAndNanReachOnlyRowsThatSeeTheirKeysUnderMasks) {
  for (const MaskKind kind : {MaskKind::kBool, MaskKind::kAdditive, MaskKind::kBits}) {
    for (const bool per_head : {false, true}) {
      SCOPED_TRACE(::testing::Message() << "mask kind " << static_cast<int>(kind));
      ProblemShape shape;
      shape.mask = kind;
      shape.mask_per_head = per_head;
      expect_exceptions_stay_where_seen(shape);
      shape.config.variant.causal = per_head;
      shape.config.v_head_dim = 37;
      expect_exceptions_stay_where_seen(shape);
    }
  }
}

TEST(AttendExceptions, InfinityAndNanReachOnlyRowsThatSeeTheirKeysUnderMasksOfSharedParts) {
  for (const MaskKind kind : {MaskKind::kBool, MaskKind::kAdditive, MaskKind::kBits}) {
    for (const std::uint32_t group : {1U, 3U, 8U}) {  // of 5 rows: 5 to 40 columns
      SCOPED_TRACE(::testing::Message() << "mask kind " << static_cast<int>(kind));
      ProblemShape shape;
      shape.config.num_q_heads = group;
      shape.config.num_kv_heads = 1;
      shape.config.cascade = true;
      shape.sequences = {{1100, 1}, {1200, 3}, {1030, 1}};
      shape.shared_runs = {{0, 2, 1024}};
      shape.mask = kind;
      shape.mask_per_head = group == 3;
      expect_exceptions_stay_where_seen_of_any_kind(shape);
    }
  }
}

}  // namespace
}  // namespace pagedkv::testing
