// What KvCache::create refuses, and what it keeps of the options that it accepts.
#include "cache/config.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

namespace pagedkv::cache {
namespace {

KvCacheOptions small() {
  return {.shape = {.num_layers = 2, .num_q_heads = 4, .num_kv_heads = 2, .head_dim = 8, .dtype = DType::f32},
          .page_size = 4,
          .capacity_pages = 8};
}

struct BadOptions {
  const char* why;
  std::function<void(KvCacheOptions&)> change;
};

TEST(Config, BadOptionsAreRefused) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInf = std::numeric_limits<float>::infinity();
  static const std::vector<float> three(3, 0.5f), with_nan{0, 0, kNan, 0}, with_inf{0, kInf, 0, 0}, twelve(12, 0.5f);
  const BadOptions cases[] = {
      {"no layers", [](auto& o) { o.shape.num_layers = 0; }},
      {"page_size out of range", [](auto& o) { o.page_size = 257; }},
      {"no capacity", [](auto& o) { o.capacity_pages = 0; }},
      {"two capacities", [](auto& o) { o.capacity_bytes = 1 << 20; }},
      {"less than a page", [](auto& o) { o.capacity_pages = 0, o.capacity_bytes = 1; }},
      {"more pages than ids", [](auto& o) { o.capacity_pages = 1ull << 31; }},
      {"absurd bytes", [](auto& o) { o.capacity_pages = 0, o.capacity_bytes = UINT64_MAX; }},
      {"capacity overflows",
       [](auto& o) {
         o.shape = {.num_layers = 4096, .num_q_heads = 65536, .num_kv_heads = 65536, .head_dim = 1024};
         o.page_size = 256, o.capacity_pages = 0x7fffffff;
       }},
      {"watermark above capacity", [](auto& o) { o.watermark_pages = 9; }},
      {"more pages than ids at most", [](auto& o) { o.max_capacity_pages = 1ull << 31; }},
      {"less at most than at first", [](auto& o) { o.max_capacity_pages = 7; }},
      {"NaN scale", [](auto& o) { o.attention.sm_scale = kNan; }},
      {"infinite scale", [](auto& o) { o.attention.sm_scale = kInf; }},
      {"NaN cap", [](auto& o) { o.attention.logits_soft_cap = kNan; }},
      {"negative cap", [](auto& o) { o.attention.logits_soft_cap = -1; }},
      {"subnormal cap", [](auto& o) { o.attention.logits_soft_cap = 1e-39f; }},
      {"window below -1", [](auto& o) { o.attention.window_left = -2; }},
      {"sinks for three of two layers", [](auto& o) { o.shape.num_layers = 2, o.attention.sinks = twelve; }},
      {"infinite sink", [](auto& o) { o.attention.sinks = with_inf; }},
      {"three sinks for four heads", [](auto& o) { o.attention.sinks = three; }},
      {"NaN sink", [](auto& o) { o.attention.sinks = with_nan; }},
      {"three slopes for four heads", [](auto& o) { o.attention.alibi_slopes = three; }},
      {"infinite slope", [](auto& o) { o.attention.alibi_slopes = with_inf; }},
      {"unknown huge pages", [](auto& o) { o.huge_pages = static_cast<HugePages>(9); }},
  };
  for (const BadOptions& bad : cases) {
    KvCacheOptions options = small();
    bad.change(options);
    Config config;
    const Error error = config.assign(options).error();
    EXPECT_EQ(error, Errc::kInvalidArgument) << bad.why;
    EXPECT_NE(error.what[0], '\0') << bad.why;
    EXPECT_EQ(KvCache::create(options).error(), Errc::kInvalidArgument) << bad.why;
  }
}

TEST(Config, OptionsJustWithinTheirBoundsAreTaken) {
  static const std::vector<float> no_sinks(4, -std::numeric_limits<float>::infinity()), eight(8, 0.5f);
  const BadOptions cases[] = {
      {"all pages kept in hand", [](auto& o) { o.watermark_pages = 8; }},
      {"no more at most than at first", [](auto& o) { o.max_capacity_pages = 8; }},
      {"a small cap", [](auto& o) { o.attention.logits_soft_cap = 0.125f; }},
      {"a window of the token itself", [](auto& o) { o.attention.window_left = 0; }},
      {"no window", [](auto& o) { o.attention.window_left = -1; }},
      {"sinks that are none", [](auto& o) { o.attention.sinks = no_sinks; }},
      {"sinks of two layers", [](auto& o) { o.attention.sinks = eight; }},
      {"huge pages", [](auto& o) { o.huge_pages = HugePages::kTransparent; }},
      {"no huge pages", [](auto& o) { o.huge_pages = HugePages::kNever; }},
      {"as many pages as ids", [](auto& o) { o.capacity_pages = (1ull << 31) - 1; }},
      {"as many pages as ids at most", [](auto& o) { o.max_capacity_pages = (1ull << 31) - 1; }},
  };
  for (const BadOptions& good : cases) {
    KvCacheOptions options = small();
    good.change(options);
    Config config;
    EXPECT_TRUE(config.assign(options)) << good.why;
    EXPECT_EQ(config.max_pages(), std::max(options.capacity_pages, options.max_capacity_pages)) << good.why;
  }
}

TEST(Config, APageMayTakeAllBytesOfTheCapacity) {
  KvCacheOptions options = small();
  options.capacity_pages = 0;
  options.capacity_bytes = PageLayout::create(options.shape, 4)->page_bytes;
  Config config;
  ASSERT_TRUE(config.assign(options));
  EXPECT_EQ(config.capacity_pages(), 1u);
}

TEST(Config, CascadeIsOfEveryLayer) {
  KvCacheOptions options = small();
  Config plain, cascade;
  ASSERT_TRUE(plain.assign(options));
  EXPECT_FALSE(plain.attention().cascade);
  options.cascade = true;
  ASSERT_TRUE(cascade.assign(options));
  EXPECT_TRUE(cascade.attention().cascade);
}

TEST(Config, SinksAreOfAllLayersOrOfEach) {
  const std::vector<float> four{1, 2, 3, 4}, eight{1, 2, 3, 4, 5, 6, 7, 8};
  KvCacheOptions options = small();
  Config none, shared, each;
  ASSERT_TRUE(none.assign(options));
  EXPECT_TRUE(none.sinks(1).empty());
  options.attention.sinks = four;
  ASSERT_TRUE(shared.assign(options));
  EXPECT_TRUE(shared.sinks(1).empty());
  EXPECT_EQ(shared.attention().variant.sinks.size(), 4u);
  options.attention.sinks = eight;
  ASSERT_TRUE(each.assign(options));
  EXPECT_EQ(each.sinks(1)[0], 5.0f);
  EXPECT_EQ(each.sinks(1).size(), 4u);
  EXPECT_TRUE(each.attention().variant.sinks.empty()) << "given with each run";
}

TEST(Config, TheOptionsItGivesBackAreThoseItGot) {
  const std::vector<std::uint32_t> first{0}, second{1};
  const KvLayerGroup groups[] = {{first, 7, 3}, {second, -1}};
  KvCacheOptions options = small();
  options.layer_groups = groups;
  Config config;
  ASSERT_TRUE(config.assign(options));
  ASSERT_EQ(config.options().layer_groups.size(), 2u);
  const KvLayerGroup& sliding = config.options().layer_groups[0];
  EXPECT_NE(sliding.layers.data(), first.data()) << "a copy";
  EXPECT_EQ(std::vector<std::uint32_t>(sliding.layers.begin(), sliding.layers.end()), first);
  EXPECT_EQ(sliding.window_left, 7);
  EXPECT_EQ(sliding.sink_tokens, 3u);
  EXPECT_EQ(config.options().layer_groups[1].layers[0], 1u);
  EXPECT_EQ(config.attention(0).variant.window_left, 7);
  EXPECT_EQ(config.attention(0).variant.sink_tokens, 3u);
  EXPECT_EQ(config.attention(1).variant.window_left, -1);
  EXPECT_EQ(config.attention(1).page_size, 4u);
  EXPECT_EQ(config.layout().num_layers, 1u);
}

TEST(Config, UnknownTargetIsUnsupported) {
  KvCacheOptions options = small();
  options.target = "abacus";
  EXPECT_EQ(KvCache::create(options).error(), Errc::kUnsupported);
}

TEST(Config, CapacityInBytesIsRoundedDownToWholePages) {
  KvCacheOptions options = small();
  options.capacity_pages = 0;
  Config config;
  options.capacity_bytes = 10 * PageLayout::create(options.shape, 4)->page_bytes - 1;
  ASSERT_TRUE(config.assign(options));
  EXPECT_EQ(config.capacity_pages(), 9u);
}

TEST(Config, CopiesWhatTheOptionsBorrow) {
  Config config;
  {
    std::vector<float> sinks(4, 0.5f), slopes(4, 0.25f);
    std::string target = "scalar";
    KvCacheOptions options = small();
    options.attention.sinks = sinks;
    options.attention.alibi_slopes = slopes;
    options.target = target;
    ASSERT_TRUE(config.assign(options));
    std::fill(sinks.begin(), sinks.end(), NAN);
    std::fill(slopes.begin(), slopes.end(), NAN);
    std::fill(target.begin(), target.end(), '?');
  }
  EXPECT_EQ(config.attention().variant.sinks[3], 0.5f);
  EXPECT_EQ(config.attention().variant.alibi_slopes[0], 0.25f);
  EXPECT_EQ(config.attention().target, "scalar");
  EXPECT_EQ(config.options().target, "scalar");
}

}  // namespace
}  // namespace pagedkv::cache
