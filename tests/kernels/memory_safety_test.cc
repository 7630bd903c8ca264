// Kernels at the edges of memory, of numbers and of index types: neighbours are protected OS pages, tails NaN.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include "kernels/expect_oracle.h"
#include "pagedkv/kv_cache.h"
#include "pagedkv/page_pool.h"

namespace pagedkv::testing {
namespace {

// Compares with the oracle, with either end of every array guarded.
void expect_oracle_at_both_edges(const ProblemShape& shape) {
  for (const GuardedEdge edge : {GuardedEdge::kEnd, GuardedEdge::kBegin}) {
    const ScopedEdge scoped(edge);
    expect_oracle(shape);
  }
}

// One sequence a problem, so that its last page is the last in memory whenever pages lie in order.
void expect_oracle_at_page_edges(ProblemShape shape) {
  shape.page_order = 0;
  const auto page_size = static_cast<std::int32_t>(shape.config.page_size);
  for (const std::int32_t length : {0, 1, page_size - 1, page_size, page_size + 1, 3 * page_size, 5 * page_size - 1}) {
    for (const std::int32_t rows : {1, 7}) {
      SCOPED_TRACE(::testing::Message() << length << " keys, " << rows << " rows");
      shape.sequences = {{length, rows, length < rows ? 0 : -1}};
      expect_oracle_at_both_edges(shape);
    }
  }
}

TEST(MemorySafety, EveryLayoutStaysInsideItsArrays) {
  for (const PageLayout layout : {PageLayout::kOurs, PageLayout::kTokenMajor, PageLayout::kApart}) {
    for (const bool padded : {false, true}) {
      ProblemShape shape;
      shape.layout = layout;
      shape.padded_table = padded;
      expect_oracle_at_page_edges(shape);
    }
  }
}

TEST(MemorySafety, OddHeadDimsStayInsideTheirArrays) {
  for (const auto& [k, v] :
       {std::pair{1U, 1U}, {7U, 3U}, {31U, 33U}, {33U, 63U}, {40U, 40U}, {65U, 16U}, {80U, 112U}, {130U, 1U}}) {
    SCOPED_TRACE(::testing::Message() << k << "/" << v);
    ProblemShape shape;
    shape.config.num_q_heads = 3;
    shape.config.num_kv_heads = 1;  // one task, whose scratch ends where the workspace ends
    shape.config.head_dim = k;
    shape.config.v_head_dim = v;
    for (const std::uint32_t page_size : {5U, 16U}) {
      shape.config.page_size = page_size;
      expect_oracle_at_page_edges(shape);
    }
  }
}

// One task of as many columns as there are, whose scratch ends where the workspace ends.
TEST(MemorySafety, LongPrefillStaysInsideItsWorkspaceForEveryFormatOfQueries) {
  for (const StoredFormat& pages : kStoredFormats) {
    if (pages.dtype == DType::f32) continue;
    for (const DType queries : kFormats) {
      for (const std::uint32_t dim : {64U, 80U, 128U, 192U}) {
        ProblemShape shape;
        shape.config = {.num_q_heads = 64, .num_kv_heads = 1, .head_dim = dim};
        pages.set(shape.config);
        shape.q_dtype = queries;
        for (const std::int32_t rows : {8, 16}) {  // as many as a task takes: of the generic kernels, and of AMX
          shape.sequences = {{70, rows, -1}};
          const Problem problem(shape);
          for (const std::string_view target : targets_of(shape.config)) {
            if (target == "scalar" || target == "sse4") continue;  // whose kernels are those of avx2
            EXPECT_TRUE(problem.run(target.data(), 1).has_value()) << target;
          }
        }
      }
    }
  }
}

TEST(MemorySafety, LatentPagesStayInsideTheirArrays) {
  ProblemShape shape;
  shape.config = {.num_q_heads = 16, .num_kv_heads = 1, .head_dim = 72, .v_head_dim = 64};
  shape.layout = PageLayout::kLatent;
  expect_oracle_at_page_edges(shape);
}

TEST(MemorySafety, EveryVariantStaysInsideItsArrays) {
  ProblemShape plain;
  plain.config.page_size = 16;
  std::vector<ProblemShape> shapes(5, plain);
  shapes[0].config.variant.window_left = 3;
  shapes[1].sinks = true;
  shapes[2].config.variant.logits_soft_cap = 30;
  shapes[3].alibi = true;
  shapes[4].config.variant.causal = false;
  for (const ProblemShape& shape : shapes) expect_oracle_at_page_edges(shape);
}

TEST(MemorySafety, EveryMaskStaysInsideItsArrays) {
  for (const MaskKind kind : {MaskKind::kBool, MaskKind::kAdditive, MaskKind::kBits}) {
    for (const bool per_head : {false, true}) {
      ProblemShape shape;
      shape.mask = kind;
      shape.mask_per_head = per_head;
      expect_oracle_at_page_edges(shape);
    }
  }
}

TEST(MemorySafety, GroupsOfEverySizeStayInsideTheirArrays) {
  for (const std::uint32_t group : {1U, 3U, 8U, 16U, 17U}) {
    SCOPED_TRACE(group);
    ProblemShape shape;
    shape.config.num_kv_heads = 1;
    shape.config.num_q_heads = group;
    shape.q_dtype = shape.out_dtype = DType::bf16;
    shape.config.head_dim = 64;
    expect_oracle_at_page_edges(shape);
  }
}

TEST(MemorySafety, SequenceOf131072TokensIsExact) {
  ProblemShape shape;
  shape.config = {.num_q_heads = 2, .num_kv_heads = 1, .head_dim = 16};
  shape.sequences = {{131'072, 1}, {1, 1}};
  expect_oracle_at_both_edges(shape);
}

TEST(MemorySafety, SubnormalNumbersAreAsSmallAsTheyAre) {
  const auto scaled = [](float q, float k, float v) {
    for (const std::uint32_t num_q_heads : {4U, 32U}) {
      ProblemShape shape;
      shape.config.num_q_heads = num_q_heads;
      shape.sequences = {{100, 1}, {40, 9}};
      shape.q_scale = q, shape.k_scale = k, shape.v_scale = v;
      expect_oracle_at_both_edges(shape);
    }
  };
  scaled(1, 1, 1e-39F);  // subnormal in f32 and bf16, nothing in f16
  scaled(1, 1, 1e-6F);   // subnormal in f16
  scaled(1, 1e-39F, 1);
  scaled(1e-39F, 1, 1);
  scaled(1e-30F, 1e-30F, 1);  // products that vanish
}

// Pages whose keys are powers of two times one vector, so that logits are exact and every gap is as large as its logit.
class LargeLogits {
 public:
  // Logit j is the sum of 32 equal products q * k * 2^-j, negative if `negative`.
  LargeLogits(DType format, float q, float k, bool negative) : format_(format) {
    k_.resize(kKeys * kDim * size_of(format));
    v_.resize(k_.size());
    for (std::size_t j = 0; j < kKeys; ++j) {
      const float key = std::ldexp(negative ? -k : k, -static_cast<int>(j));
      for (std::size_t d = 0; d < kDim; ++d) {
        format::store_element(k_.data(), j * kDim + d, format, key);
        format::store_element(v_.data(), j * kDim + d, format, static_cast<float>(j + 1));
      }
    }
    q_.assign(kDim, q);
    view_ = {.k = k_.data(), .v = v_.data(), .num_pages = 1};
    const auto row = static_cast<std::int64_t>(kDim * size_of(format));
    view_.k_token_stride = view_.v_token_stride = row;
    view_.k_head_stride = view_.v_head_stride = view_.k_page_stride = view_.v_page_stride = row * kKeys;
  }

  void expect_finite_and_near_oracle() const {
    const std::vector<std::int32_t> indptr = {0, 1}, page = {0}, last = {kKeys};
    const AttentionBatch batch = {
        .qo_indptr = indptr, .kv_indptr = indptr, .kv_indices = page, .kv_last_page_len = last};
    AttentionConfig config = {.num_q_heads = 1, .num_kv_heads = 1, .head_dim = kDim, .kv_dtype = format_};
    config.variant.sm_scale = 1;
    std::vector<double> want(kDim), want_lse(1);
    ASSERT_TRUE(reference_attention(config, batch, view_, q_, want, want_lse).has_value());
    for (const char* target : runnable_targets()) {
      SCOPED_TRACE(std::string(target) + " " + to_string(format_) + ", lse " + std::to_string(want_lse[0]));
      config.target = target;
      auto plan = AttentionPlan::create(config, batch);
      ASSERT_TRUE(plan.has_value()) << plan.error().what;
      std::vector<float> out(kDim, -1), lse(1, -1);
      ASSERT_TRUE(plan->run(view_, q_, out, lse).has_value());
      for (std::size_t d = 0; d < kDim; ++d) EXPECT_NEAR(static_cast<double>(out[d]), want[d], 1e-2 * want[d]);
      EXPECT_NEAR(static_cast<double>(lse[0]) / want_lse[0], 1, 1e-2);
    }
  }

 private:
  static constexpr std::int32_t kKeys = 8;
  static constexpr std::uint32_t kDim = 32;
  DType format_;
  GuardedVector<std::byte> k_, v_;
  std::vector<float> q_;
  KvView view_;
};

TEST(MemorySafety, LogitsNearTheLargestFloatGiveOneKeyAllWeight) {
  // 32 products of q and k: 1.3e38, a third of the largest float. With f16, k itself is the largest number.
  for (const bool negative : {false, true}) {
    LargeLogits(DType::f32, 2e18F, 2e18F, negative).expect_finite_and_near_oracle();
    LargeLogits(DType::bf16, 2e18F, negative ? 1e8F : 2e18F, negative).expect_finite_and_near_oracle();
    LargeLogits(DType::bf16, 0x1p-6F, negative ? 0x1p95F : 0x1p127F, negative).expect_finite_and_near_oracle();
    LargeLogits(DType::f16, 0x1p+100F, 65504, negative).expect_finite_and_near_oracle();
    LargeLogits(DType::f16, 1, 65504, negative).expect_finite_and_near_oracle();
  }
}

// Address space for `bytes` of pages, of which only those that are asked for can be touched.
class AddressSpace {
 public:
  explicit AddressSpace(std::size_t bytes) : bytes_(bytes) {
    begin_ =
        static_cast<std::byte*>(mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  }
  AddressSpace(const AddressSpace&) = delete;
  AddressSpace& operator=(const AddressSpace&) = delete;
  ~AddressSpace() {
    if (is_there()) munmap(begin_, bytes_);
  }
  [[nodiscard]] bool is_there() const { return begin_ != MAP_FAILED; }
  [[nodiscard]] std::byte* begin() const { return begin_; }
  // The OS pages that hold [offset, offset + bytes); all around them stays protected.
  [[nodiscard]] bool open(std::size_t offset, std::size_t bytes) {
    constexpr std::size_t kOsPage = 4096;
    const std::size_t first = offset / kOsPage * kOsPage;
    return mprotect(begin_ + first, offset + bytes - first, PROT_READ | PROT_WRITE) == 0;
  }

 private:
  std::size_t bytes_;
  std::byte* begin_;
};

// 2^31 pages of 4 tokens: 2^33 slots. In f32 with 2 heads of 8 + 8 elements, 512 bytes a page, 2^40 bytes.
constexpr std::int64_t kHugePages = std::int64_t{1} << 31;
constexpr std::int32_t kTopPages[] = {INT32_MAX, 0, INT32_MAX - 1, 1 << 30, 3};

struct HugeView {
  AttentionConfig config = {.num_q_heads = 4, .num_kv_heads = 2, .head_dim = 8, .page_size = 4};
  std::int64_t page_bytes = 0;
  KvWriteView pages;

  HugeView(DType format, std::byte* memory) {
    config.kv_dtype = format;
    const auto row = static_cast<std::int64_t>(8 * size_of(format));
    page_bytes = 2 * 2 * 4 * row;  // [head][K, V][token][dim]
    pages = {.k = memory,
             .v = memory + 4 * row,
             .k_page_stride = page_bytes,
             .k_head_stride = 8 * row,
             .k_token_stride = row,
             .v_page_stride = page_bytes,
             .v_head_stride = 8 * row,
             .v_token_stride = row,
             .num_pages = kHugePages};
  }
};

// Writes rows to slots beyond 2^32, in pages far apart, and attends over them; an index that wraps hits a protected
// page.
void write_and_attend_at_the_top(DType format) {
  AddressSpace space(static_cast<std::size_t>(kHugePages) * 512);
  ASSERT_TRUE(space.is_there()) << "1 TiB of address space";
  const HugeView huge(format, space.begin());
  std::vector<std::int64_t> slots;
  for (const std::int64_t page : kTopPages) {
    ASSERT_TRUE(
        space.open(static_cast<std::size_t>(page * huge.page_bytes), static_cast<std::size_t>(huge.page_bytes)));
    for (std::int64_t token = 0; token < 4; ++token) slots.push_back(page * 4 + token);
  }
  slots.pop_back();  // the last page is not full
  const std::size_t tokens = slots.size();
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  std::vector<float> k(tokens * 2 * 8), v(k.size()), q(4 * 8);
  for (std::vector<float>* values : {&k, &v, &q}) {
    for (float& value : *values) value = normal(random);
  }
  const std::vector<std::int32_t> qo = {0, 1}, kv = {0, 5}, last = {3};
  const AttentionBatch batch = {.qo_indptr = qo, .kv_indptr = kv, .kv_indices = kTopPages, .kv_last_page_len = last};
  for (const char* target : runnable_targets()) {
    SCOPED_TRACE(target);
    AttentionConfig config = huge.config;
    config.target = target;
    const auto written = write_kv(config, huge.pages, slots, k, v);
    ASSERT_TRUE(written.has_value()) << written.error().what;
    std::vector<double> want(4 * 8), want_lse(4);
    ASSERT_TRUE(reference_attention(config, batch, huge.pages, q, want, want_lse).has_value());
    auto plan = AttentionPlan::create(config, batch);
    ASSERT_TRUE(plan.has_value()) << plan.error().what;
    std::vector<float> out(4 * 8), lse(4);
    ASSERT_TRUE(plan->run(huge.pages, q, out, lse).has_value());
    for (std::size_t i = 0; i < out.size(); ++i) EXPECT_NEAR(static_cast<double>(out[i]), want[i], 0.05);
    for (std::size_t i = 0; i < lse.size(); ++i) EXPECT_NEAR(static_cast<double>(lse[i]), want_lse[i], 0.05);
  }
}

TEST(MemorySafety, PageIdsAtTheTopOfTheirRangeAndSlotsBeyond32BitsAreReached) {
  for (const DType format : kFormats) {
    SCOPED_TRACE(to_string(format));
    write_and_attend_at_the_top(format);
  }
}

TEST(MemorySafety, SlotOnePastTheLastOfHugeCapacityIsRefused) {
  AddressSpace space(static_cast<std::size_t>(kHugePages) * 512);
  ASSERT_TRUE(space.is_there());
  const HugeView huge(DType::f32, space.begin());
  const std::vector<float> row(2 * 8, 1.0F);
  for (const std::int64_t slot : {kHugePages * 4, kHugePages * 4 + 1, INT64_MAX}) {
    const std::vector<std::int64_t> slots = {slot};
    const auto written = write_kv(huge.config, huge.pages, slots, row, row);
    ASSERT_FALSE(written.has_value()) << slot;
    EXPECT_EQ(written.error().code, Errc::kInvalidArgument);
  }
}

TEST(MemorySafety, PoolOfAllPageIdsGivesEachItsPlaceBeyond32Bits) {
  constexpr std::uint64_t kPages = INT32_MAX, kPageBytes = 4096;  // 8 TiB of address space
  auto pool = PagePool::create({.page_bytes = kPageBytes, .capacity_pages = kPages, .huge_pages = HugePages::kNever});
  ASSERT_TRUE(pool.has_value()) << pool.error().what;
  EXPECT_EQ(pool->stats().capacity_pages * pool->stats().page_bytes, kPages * kPageBytes);
  constexpr PageId kTop{INT32_MAX - 1};
  EXPECT_EQ(pool->page_data(kTop) - pool->base(), static_cast<std::ptrdiff_t>((kPages - 1) * kPageBytes));
  EXPECT_EQ(pool->page_data(PageId{INT32_MAX}), nullptr);
  PageId pages[3];
  ASSERT_TRUE(pool->allocate(pages).has_value());
  for (const PageId page : pages) std::memset(pool->page_data(page), 7, kPageBytes);
  EXPECT_EQ(pool->retain({&kTop, 1}).error().code, Errc::kInvalidArgument);
  EXPECT_TRUE(pool->release(pages).has_value());
  EXPECT_EQ(pool->stats().free_pages, kPages);
}

TEST(MemorySafety, CacheOfMoreThan32BitsOfSlotsServesASequence) {
  // 2^26 pages of 256 tokens: 2^34 slots, 8 KiB a page, 512 GiB.
  auto cache = KvCache::create(
      {.shape = {.num_layers = 1, .num_q_heads = 1, .num_kv_heads = 1, .head_dim = 4, .dtype = DType::f32},
       .page_size = 256,
       .capacity_pages = std::uint64_t{1} << 26,
       .huge_pages = HugePages::kNever});
  ASSERT_TRUE(cache.has_value()) << cache.error().what;
  Sequence sequence = cache->open().value();
  constexpr std::uint32_t kTokens = 600;
  auto step = cache->begin_step({{&sequence, kTokens}});
  ASSERT_TRUE(step.has_value()) << step.error().what;
  const std::vector<float> rows(kTokens * 4, 0.5F);
  std::vector<float> out(rows.size());
  ASSERT_TRUE(step->write(0, rows, rows).has_value());
  ASSERT_TRUE(step->attend(0, rows, out).has_value());
  for (const float value : out) EXPECT_NEAR(value, 0.5F, 1e-5F);
  ASSERT_TRUE(step->commit().has_value());
  auto too_many = cache->begin_step({{&sequence, UINT32_MAX}});
  EXPECT_FALSE(too_many.has_value());
}

}  // namespace
}  // namespace pagedkv::testing
