// The dense cache, behaviour by behaviour, against dense tensors.
#include "pagedkv/dense_cache.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "support/resident_bytes.h"

namespace pagedkv {
namespace {

constexpr std::uint32_t kBatch = 2, kLayers = 3, kHeads = 2, kDim = 4;

DenseCacheOptions small(std::uint32_t max_seq_len = 64) {
  return {.batch_size = kBatch,
          .num_layers = kLayers,
          .num_heads = kHeads,
          .head_dim = kDim,
          .max_seq_len = max_seq_len,
          .page_size = 4};
}

float value(std::size_t b, std::size_t h, std::size_t t, std::size_t d) {
  return std::sin(static_cast<float>(((b * 7 + h) * 31 + t) * 13 + d));
}

/// [kBatch][kHeads][count][kDim] of tokens first .. first + count - 1; `part` tells k, v and q apart.
std::vector<float> tensor(std::size_t first, std::size_t count, std::size_t part = 0) {
  std::vector<float> all;
  for (std::size_t b = 0; b < kBatch; ++b) {
    for (std::size_t h = 0; h < kHeads; ++h) {
      for (std::size_t t = first; t < first + count; ++t) {
        for (std::size_t d = 0; d < kDim; ++d) all.push_back(value(b + 10 * part, h, t, d));
      }
    }
  }
  return all;
}

/// What [batch][len][heads * dim] attention over tokens 0 .. first + count - 1 must be, for the last `count` of them.
std::vector<float> attention_of(std::size_t first, std::size_t count, bool causal) {
  std::vector<float> out;
  for (std::size_t b = 0; b < kBatch; ++b) {
    for (std::size_t i = first; i < first + count; ++i) {
      for (std::size_t h = 0; h < kHeads; ++h) {
        const std::size_t num_keys = causal ? i + 1 : first + count;
        std::vector<double> weights(num_keys);
        double sum = 0;
        for (std::size_t t = 0; t < num_keys; ++t) {
          double score = 0;
          for (std::size_t d = 0; d < kDim; ++d) {
            score += static_cast<double>(value(b + 20, h, i, d)) * static_cast<double>(value(b, h, t, d));
          }
          sum += weights[t] = std::exp(score / std::sqrt(static_cast<double>(kDim)));
        }
        for (std::size_t d = 0; d < kDim; ++d) {
          double x = 0;
          for (std::size_t t = 0; t < num_keys; ++t)
            x += weights[t] / sum * static_cast<double>(value(b + 10, h, t, d));
          out.push_back(static_cast<float>(x));
        }
      }
    }
  }
  return out;
}

std::vector<float> copy_of_k(const DenseCache& cache, std::uint32_t layer) {
  const auto length = static_cast<std::size_t>(cache.seq_length(layer).value());
  std::vector<float> k(kBatch * kHeads * length * kDim), v(k.size());
  EXPECT_TRUE(cache.copy(layer, k, v));
  return k;
}

TEST(DenseCache, DefaultsAreTwoThousandTokensOfF32) {
  const DenseCacheOptions options;
  EXPECT_EQ(options.max_seq_len, 2048u);
  EXPECT_EQ(options.dtype, DType::f32);
  EXPECT_FALSE(options.new_tokens_see_later_ones);
}

TEST(DenseCache, UpdateAppendsAndGivesAllThatTheLayerHolds) {
  DenseCache cache = DenseCache::create(small()).value();
  ASSERT_TRUE(cache.update(0, tensor(0, 5), tensor(0, 5, 1)));
  const DenseKv held = cache.update(0, tensor(5, 2), tensor(5, 2, 1)).value();
  EXPECT_EQ(held.batch_size, kBatch);
  EXPECT_EQ(held.num_heads, kHeads);
  EXPECT_EQ(held.seq_len, 7u);
  EXPECT_EQ(held.head_dim, kDim);
  for (std::uint32_t b = 0; b < kBatch; ++b) {
    for (std::uint32_t h = 0; h < kHeads; ++h) {
      for (std::uint64_t t = 0; t < 7; ++t) {
        EXPECT_EQ(static_cast<const float*>(held.k_row(b, h, t))[3], value(b, h, t, 3));
        EXPECT_EQ(static_cast<const float*>(held.v_row(b, h, t))[1], value(b + 10, h, t, 1));
      }
    }
  }
  EXPECT_EQ(copy_of_k(cache, 0), tensor(0, 7));
}

TEST(DenseCache, GetGivesWhatIsHeldAndNothingAtFirst) {
  DenseCache cache = DenseCache::create(small()).value();
  EXPECT_EQ(cache.get(2).value().seq_len, 0u);
  ASSERT_TRUE(cache.update(2, tensor(0, 3), tensor(0, 3, 1)));
  EXPECT_EQ(cache.get(2).value().seq_len, 3u);
}

TEST(DenseCache, EveryLayerHasALengthOfItsOwn) {
  DenseCache cache = DenseCache::create(small()).value();
  ASSERT_TRUE(cache.update(0, tensor(0, 5), tensor(0, 5, 1)));
  ASSERT_TRUE(cache.update(1, tensor(0, 2), tensor(0, 2, 1)));
  EXPECT_EQ(cache.seq_length(0).value(), 5u);
  EXPECT_EQ(cache.seq_length(1).value(), 2u);
  EXPECT_EQ(cache.seq_length(2).value(), 0u);
  EXPECT_EQ(copy_of_k(cache, 1), tensor(0, 2)) << "the update of layer 0 did not move where layer 1 is written";
}

TEST(DenseCache, NewTokensAttendCausally) {
  DenseCache cache = DenseCache::create(small()).value();
  for (const auto& [first, count] : {std::pair<std::size_t, std::size_t>{0, 6}, {6, 1}, {7, 3}}) {
    std::vector<float> out(kBatch * count * kHeads * kDim);
    ASSERT_TRUE(cache.cached_attention(1, tensor(first, count, 2), tensor(first, count), tensor(first, count, 1), out));
    const std::vector<float> want = attention_of(first, count, true);
    for (std::size_t i = 0; i < out.size(); ++i) EXPECT_NEAR(out[i], want[i], 1e-5) << first << " " << i;
  }
  EXPECT_EQ(cache.seq_length(1).value(), 10u);
  EXPECT_EQ(cache.seq_length(0).value(), 0u);
}

TEST(DenseCache, AFlagLetsNewTokensSeeEachOther) {
  DenseCacheOptions options = small();
  options.new_tokens_see_later_ones = true;
  DenseCache cache = DenseCache::create(options).value();
  ASSERT_TRUE(cache.update(0, tensor(0, 2), tensor(0, 2, 1)));
  std::vector<float> out(kBatch * 4 * kHeads * kDim);
  ASSERT_TRUE(cache.cached_attention(0, tensor(2, 4, 2), tensor(2, 4), tensor(2, 4, 1), out));
  const std::vector<float> want = attention_of(2, 4, false);
  for (std::size_t i = 0; i < out.size(); ++i) EXPECT_NEAR(out[i], want[i], 1e-5);
}

TEST(DenseCache, MoreThanMaxSeqLenTokensAreRefusedAndNothingChanges) {
  DenseCache cache = DenseCache::create(small(6)).value();
  ASSERT_TRUE(cache.update(0, tensor(0, 5), tensor(0, 5, 1)));
  EXPECT_EQ(cache.update(0, tensor(5, 2), tensor(5, 2, 1)).error(), Errc::kInvalidArgument);
  std::vector<float> out(kBatch * 2 * kHeads * kDim, -7.0f);
  EXPECT_EQ(cache.cached_attention(0, tensor(5, 2, 2), tensor(5, 2), tensor(5, 2, 1), out).error(),
            Errc::kInvalidArgument);
  EXPECT_EQ(out, std::vector<float>(out.size(), -7.0f));
  EXPECT_EQ(cache.seq_length(0).value(), 5u);
  EXPECT_EQ(copy_of_k(cache, 0), tensor(0, 5));
  EXPECT_TRUE(cache.update(0, tensor(5, 1), tensor(5, 1, 1)));
}

TEST(DenseCache, ResetEmptiesAndKeepsTheMemory) {
  DenseCache cache = DenseCache::create(small()).value();
  for (std::uint32_t layer = 0; layer < kLayers; ++layer) {
    ASSERT_TRUE(cache.update(layer, tensor(0, 9), tensor(0, 9, 1)));
  }
  const PoolStats before = cache.pool_stats();
  cache.reset();
  EXPECT_EQ(cache.seq_length(0).value(), 0u);
  EXPECT_EQ(cache.get(1).value().seq_len, 0u);
  EXPECT_EQ(cache.pool_stats().committed_bytes, before.committed_bytes);
  ASSERT_TRUE(cache.update(0, tensor(3, 9), tensor(3, 9, 1)));
  EXPECT_EQ(cache.pool_stats().allocations, before.allocations) << "the same pages serve again";
  EXPECT_EQ(copy_of_k(cache, 0), tensor(3, 9));
}

TEST(DenseCache, CommitsNoMemoryBeyondTheTokensHeld) {
  DenseCache cache = DenseCache::create(small(1 << 20)).value();
  EXPECT_EQ(cache.pool_stats().committed_bytes, 0u);
  ASSERT_TRUE(cache.update(0, tensor(0, 5), tensor(0, 5, 1)));
  EXPECT_EQ(cache.pool_stats().used_pages, kBatch * 2u) << "5 tokens in pages of 4, for each row of the batch";
}

TEST(DenseCache, NoMoreMemoryIsResidentThanTheTokensHeldTake) {
  DenseCache cache =
      DenseCache::create({.batch_size = 1, .num_layers = 1, .num_heads = 4, .head_dim = 64, .max_seq_len = 1 << 18})
          .value();
  const std::vector<float> rows(4 * 100 * 64, 1.0f);
  const DenseKv held = cache.update(0, rows, rows).value();
  const auto page_bytes = static_cast<std::uint64_t>(held.pages.k_page_stride);
  EXPECT_EQ(cache.pool_stats().committed_bytes, 7 * page_bytes) << "100 tokens in pages of 16";
  const auto num_pages = static_cast<std::uint64_t>(held.pages.num_pages);
  EXPECT_EQ(num_pages, (1u << 18) / 16u);
  EXPECT_LE(testing::resident_bytes(held.pages.k, num_pages * page_bytes), 7 * page_bytes);
}

TEST(DenseCache, GrowingNeverMovesWhatIsHeld) {
  DenseCache cache = DenseCache::create(small()).value();
  const void* first = cache.update(0, tensor(0, 1), tensor(0, 1, 1)).value().k_row(1, 1, 0);
  for (std::size_t t = 1; t < 64; ++t) {
    EXPECT_EQ(cache.update(0, tensor(t, 1), tensor(t, 1, 1)).value().k_row(1, 1, 0), first);
  }
  EXPECT_EQ(copy_of_k(cache, 0), tensor(0, 64));
}

TEST(DenseCache, TakesItsPagesFromASharedPool) {
  const std::uint64_t page_bytes = DenseCache::page_bytes(small()).value();
  PagePool pool = PagePool::create({.page_bytes = page_bytes, .capacity_pages = 5}).value();
  DenseCacheOptions options = small();
  options.pool = &pool;
  {
    DenseCache a = DenseCache::create(options).value(), b = DenseCache::create(options).value();
    ASSERT_TRUE(a.update(0, tensor(0, 8), tensor(0, 8, 1)));
    EXPECT_EQ(pool.stats().used_pages, 4u);
    EXPECT_EQ(b.update(0, tensor(0, 1), tensor(0, 1, 1)).error(), Errc::kOutOfPages);
    EXPECT_EQ(b.seq_length(0).value(), 0u);
    EXPECT_EQ(pool.stats().used_pages, 4u);
  }
  EXPECT_EQ(pool.stats().used_pages, 0u) << "a cache gives its pages back";
  PagePool other = PagePool::create({.page_bytes = page_bytes + 64, .capacity_pages = 5}).value();
  options.pool = &other;
  EXPECT_EQ(DenseCache::create(options).error(), Errc::kInvalidArgument);
}

TEST(DenseCache, ConvertsToTheTypeItStores) {
  DenseCacheOptions options = small();
  options.dtype = DType::bf16;
  DenseCache cache = DenseCache::create(options).value();
  ASSERT_TRUE(cache.update(0, tensor(0, 3), tensor(0, 3, 1)));
  const std::vector<float> k = copy_of_k(cache, 0), want = tensor(0, 3);
  for (std::size_t i = 0; i < k.size(); ++i) EXPECT_NEAR(k[i], want[i], 1.0 / 256);
}

TEST(DenseCache, BadOptionsAreRefused) {
  const auto error_of = [](auto change) {
    DenseCacheOptions options = small();
    change(options);
    return DenseCache::create(options).error();
  };
  EXPECT_EQ(error_of([](auto& o) { o.batch_size = 0; }), Errc::kInvalidArgument);
  EXPECT_EQ(error_of([](auto& o) { o.batch_size = 0xffffffffu; }), Errc::kInvalidArgument);
  EXPECT_EQ(error_of([](auto& o) { o.num_layers = 0; }), Errc::kInvalidArgument);
  EXPECT_EQ(error_of([](auto& o) { o.num_heads = 0; }), Errc::kInvalidArgument);
  EXPECT_EQ(error_of([](auto& o) { o.head_dim = 1025; }), Errc::kInvalidArgument);
  EXPECT_EQ(error_of([](auto& o) { o.max_seq_len = 0; }), Errc::kInvalidArgument);
  EXPECT_EQ(error_of([](auto& o) { o.max_seq_len = 0xffffffffu; }), Errc::kInvalidArgument);
  EXPECT_EQ(error_of([](auto& o) { o.page_size = 0; }), Errc::kInvalidArgument);
  EXPECT_EQ(error_of([](auto& o) { o.dtype = static_cast<DType>(77); }), Errc::kInvalidArgument);
  EXPECT_EQ(error_of([](auto& o) { o.target = "abacus"; }), Errc::kUnsupported);
}

TEST(DenseCache, OptionsJustWithinTheirBoundsAreTaken) {
  const auto error_of = [](auto change) {
    DenseCacheOptions options = small(4);
    options.num_heads = options.head_dim = options.page_size = 1;
    change(options);
    return DenseCache::create(options).error();
  };
  EXPECT_EQ(error_of([](auto& o) { o.batch_size = 65536; }), Errc::kOk);
  EXPECT_EQ(error_of([](auto& o) { o.batch_size = 65537; }), Errc::kInvalidArgument);
  EXPECT_EQ(error_of([](auto& o) { o.num_layers = 4096; }), Errc::kOk);
  EXPECT_EQ(error_of([](auto& o) { o.num_layers = 4097; }), Errc::kInvalidArgument);
  EXPECT_EQ(error_of([](auto& o) { o.batch_size = o.num_layers = o.max_seq_len = 1; }), Errc::kOk);
  const auto error_of_length = [&error_of](std::uint32_t max_seq_len, PagePool* pool = nullptr) {
    return error_of([=](auto& o) {
      o.batch_size = o.num_layers = 1, o.page_size = 256, o.max_seq_len = max_seq_len, o.pool = pool;
    });
  };
  EXPECT_EQ(error_of_length(1u << 30), Errc::kOk);
  EXPECT_EQ(error_of_length((1u << 30) + 1), Errc::kInvalidArgument);
  PagePool pool = PagePool::create({.page_bytes = 2 * 256 * 4, .capacity_pages = 1}).value();
  EXPECT_EQ(error_of_length(1, &pool), Errc::kOk);
  EXPECT_EQ(error_of_length(0, &pool), Errc::kInvalidArgument);
}

TEST(DenseCache, KnowsTheBytesOfAPageBeforeItIsMade) {
  DenseCacheOptions options = small();
  const std::uint64_t page_bytes = DenseCache::page_bytes(options).value();
  EXPECT_EQ(DenseCache::create(options).value().pool_stats().page_bytes, page_bytes);
  EXPECT_EQ(page_bytes, 2u * kHeads * 4 * kDim * 4);
  options.head_dim = 0;
  EXPECT_EQ(DenseCache::page_bytes(options).error(), Errc::kInvalidArgument);
}

TEST(DenseCache, KeepsNothingOfWhatItsOptionsBorrow) {
  PagePool pool =
      PagePool::create({.page_bytes = DenseCache::page_bytes(small()).value(), .capacity_pages = 4}).value();
  std::string target = "scalar";
  DenseCacheOptions options = small();
  options.target = target;
  options.pool = &pool;
  const DenseCache cache = DenseCache::create(options).value();
  target.assign("??????");
  EXPECT_EQ(cache.options().target, "scalar");
  EXPECT_EQ(cache.options().pool, nullptr);
  EXPECT_EQ(cache.options().page_size, 4u);
}

TEST(DenseCache, PageTablesTakeMemoryAsTheyAreFilled) {
  DenseCacheOptions options = small(1U << 28);  // 512 MiB of page tables a layer
  DenseCache cache = DenseCache::create(options).value();
  ASSERT_TRUE(cache.update(1, tensor(0, 9), tensor(0, 9, 1)));
  const DenseKv held = cache.get(1).value();
  EXPECT_LE(testing::resident_bytes(held.page_table.data(), held.page_table.size_bytes()), 4U << 20);
  EXPECT_EQ(copy_of_k(cache, 1), tensor(0, 9));
}

TEST(DenseCache, RowsOfTheBatchGrowInPagesOfTheirOwnAndFillThem) {
  DenseCache cache = DenseCache::create(small(12)).value();
  for (std::size_t t = 0; t < 12; ++t) {
    ASSERT_TRUE(cache.update(1, tensor(t, 1), tensor(t, 1, 1)));
    EXPECT_EQ(cache.pool_stats().used_pages, kBatch * (t / 4 + 1));
  }
  EXPECT_EQ(cache.update(1, tensor(12, 1), tensor(12, 1, 1)).error(), Errc::kInvalidArgument);
  EXPECT_EQ(copy_of_k(cache, 1), tensor(0, 12));
  const DenseKv held = cache.get(1).value();
  EXPECT_EQ(held.page_table.size(), kBatch * 3u);
  EXPECT_EQ(held.page_table_stride, 3u);
  EXPECT_EQ(held.page_size, 4u);
  EXPECT_EQ(held.dtype, DType::f32);
}

TEST(DenseCache, CopiesValuesToo) {
  DenseCache cache = DenseCache::create(small()).value();
  ASSERT_TRUE(cache.update(0, tensor(0, 5), tensor(0, 5, 1)));
  std::vector<float> k(kBatch * kHeads * 5 * kDim), v(k.size()), shorter(k.size() - 1);
  ASSERT_TRUE(cache.copy(0, k, v));
  EXPECT_EQ(v, tensor(0, 5, 1));
  std::vector<float> longer(k.size() + 1, -7.0f);
  ASSERT_TRUE(cache.copy(0, Tensor(longer.data(), k.size(), DType::f32), v));
  EXPECT_EQ(longer.back(), -7.0f) << "nothing is written behind the tensor";
  const Tensor null(nullptr, k.size(), DType::f32), unknown(k.data(), k.size(), static_cast<DType>(9));
  EXPECT_EQ(cache.copy(0, shorter, v).error(), Errc::kInvalidArgument);
  EXPECT_EQ(cache.copy(0, k, shorter).error(), Errc::kInvalidArgument);
  EXPECT_EQ(cache.copy(0, null, v).error(), Errc::kInvalidArgument);
  EXPECT_EQ(cache.copy(0, k, null).error(), Errc::kInvalidArgument);
  EXPECT_EQ(cache.copy(0, unknown, v).error(), Errc::kInvalidArgument);
  EXPECT_EQ(cache.copy(0, k, unknown).error(), Errc::kInvalidArgument);
  EXPECT_EQ(cache.copy(kLayers, k, v).error(), Errc::kInvalidArgument);
  EXPECT_TRUE(cache.copy(1, Tensor(nullptr, 0, DType::f32), Tensor(nullptr, 0, DType::f32))) << "nothing is held";
}

TEST(DenseCache, AttentionThatIsRefusedChangesNothing) {
  DenseCache cache = DenseCache::create(small()).value();
  const std::vector<float> two = tensor(0, 2), three = tensor(0, 3);
  std::vector<float> out(two.size());
  const ConstTensor null(nullptr, two.size(), DType::f32), unknown(two.data(), two.size(), static_cast<DType>(9));
  const Tensor no_out(nullptr, two.size(), DType::f32), odd_out(out.data(), out.size(), static_cast<DType>(9));
  const auto error_of = [&](ConstTensor q, ConstTensor k, ConstTensor v, Tensor to) {
    return cache.cached_attention(0, q, k, v, to).error();
  };
  EXPECT_EQ(error_of(three, two, two, out), Errc::kInvalidArgument);
  EXPECT_EQ(error_of(null, two, two, out), Errc::kInvalidArgument);
  EXPECT_EQ(error_of(unknown, two, two, out), Errc::kInvalidArgument);
  EXPECT_EQ(error_of(two, null, two, out), Errc::kInvalidArgument);
  EXPECT_EQ(error_of(two, two, null, out), Errc::kInvalidArgument);
  EXPECT_EQ(error_of(two, two, unknown, out), Errc::kInvalidArgument);
  EXPECT_EQ(error_of(two, two, two, no_out), Errc::kInvalidArgument);
  EXPECT_EQ(error_of(two, two, two, odd_out), Errc::kInvalidArgument);
  EXPECT_EQ(cache.cached_attention(kLayers, two, two, two, out).error(), Errc::kInvalidArgument);
  EXPECT_EQ(cache.seq_length(0).value(), 0u);
  EXPECT_EQ(cache.pool_stats().used_pages, 0u);
  EXPECT_TRUE(cache.cached_attention(0, two, two, two, out));
}

TEST(DenseCache, AMovedFromOneAnswersClosed) {
  DenseCache cache = DenseCache::create(small()).value();
  DenseCache moved = std::move(cache);
  std::vector<float> rows = tensor(0, 1);
  // NOLINTBEGIN(bugprone-use-after-move)
  EXPECT_EQ(cache.cached_attention(0, rows, rows, rows, rows).error(), Errc::kClosed);
  EXPECT_EQ(cache.copy(0, rows, rows).error(), Errc::kClosed);
  EXPECT_EQ(cache.seq_length(0).error(), Errc::kClosed);
  EXPECT_EQ(cache.options().batch_size, 0u);
  EXPECT_EQ(cache.pool_stats().capacity_pages, 0u);
  cache.reset();
  // NOLINTEND(bugprone-use-after-move)
  EXPECT_EQ(moved.options().batch_size, kBatch);
}

TEST(DenseCache, BadTensorsAndLayersAreRefusedAndNothingChanges) {
  DenseCache cache = DenseCache::create(small()).value();
  std::vector<float> three = tensor(0, 3), odd(three.size() - 1), out(three.size()), two = tensor(0, 2);
  const ConstTensor null(nullptr, three.size(), DType::f32), unknown(three.data(), three.size(), static_cast<DType>(9));
  EXPECT_EQ(cache.update(kLayers, three, three).error(), Errc::kInvalidArgument);
  EXPECT_EQ(cache.update(0, odd, odd).error(), Errc::kInvalidArgument);
  EXPECT_EQ(cache.update(0, three, two).error(), Errc::kInvalidArgument);
  EXPECT_EQ(cache.update(0, ConstTensor(), ConstTensor()).error(), Errc::kInvalidArgument);
  EXPECT_EQ(cache.update(0, null, three).error(), Errc::kInvalidArgument);
  EXPECT_EQ(cache.update(0, unknown, three).error(), Errc::kInvalidArgument);
  EXPECT_EQ(cache.cached_attention(0, two, three, three, out).error(), Errc::kInvalidArgument);
  EXPECT_EQ(cache.cached_attention(0, three, three, three, odd).error(), Errc::kInvalidArgument);
  EXPECT_EQ(cache.copy(0, out, out).error(), Errc::kInvalidArgument);
  EXPECT_EQ(cache.get(kLayers).error(), Errc::kInvalidArgument);
  EXPECT_EQ(cache.seq_length(kLayers).error(), Errc::kInvalidArgument);
  EXPECT_EQ(cache.seq_length(0).value(), 0u);

  DenseCache moved = std::move(cache);
  EXPECT_EQ(cache.update(0, three, three).error(), Errc::kClosed);  // NOLINT(bugprone-use-after-move)
  EXPECT_EQ(cache.get(0).error(), Errc::kClosed);
}

}  // namespace
}  // namespace pagedkv
