// Layer groups: how layers are packed into pages, what that wastes, and which groups are refused.
#include "cache/layer_map.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "pagedkv/kv_cache.h"

namespace pagedkv::cache {
namespace {

/// Every `period`-th layer sees all keys, the others slide.
struct Interleaved {
  std::vector<std::uint32_t> full, sliding;
  Interleaved(std::uint32_t num_layers, std::uint32_t period) {
    for (std::uint32_t layer = 0; layer < num_layers; ++layer) {
      ((layer + 1) % period == 0 ? full : sliding).push_back(layer);
    }
  }
};

KvCacheOptions shape_of(std::uint32_t num_layers) {
  return {.shape = {.num_layers = num_layers, .num_q_heads = 4, .num_kv_heads = 2, .head_dim = 64},
          .capacity_pages = 64};
}

struct Packing {
  const char* model;
  std::uint32_t num_layers, period;
  std::int32_t window_left;
  std::uint32_t layers_per_page, num_tables;
  double waste;  // places without a layer / all places
  double held;   // bytes that 32,768 tokens hold / those that all layers would hold without windows
};

// The table of docs/FRAGMENTATION.md.
TEST(LayerMap, KnownModelsWasteAtMostATwentieth) {
  const Packing cases[] = {
      {"gpt-oss 120b", 36, 2, 127, 18, 2, 0, 0.502},        {"Llama 4 Scout", 48, 4, 8191, 12, 4, 0, 0.438},
      {"Gemma 2 27b", 46, 2, 4095, 23, 2, 0, 0.563},        {"Gemma 3 1b", 26, 6, 511, 2, 13, 0, 0.168},
      {"Gemma 3 27b", 62, 6, 1023, 5, 13, 3.0 / 65, 0.190},
  };
  for (const Packing& known : cases) {
    const Interleaved layers(known.num_layers, known.period);
    const KvLayerGroup groups[] = {{layers.sliding, known.window_left}, {layers.full, -1}};
    KvCacheOptions options = shape_of(known.num_layers);
    options.layer_groups = groups;
    LayerMap map;
    ASSERT_TRUE(map.assign(options)) << known.model;
    EXPECT_EQ(map.layers_per_page(), known.layers_per_page) << known.model;
    EXPECT_EQ(map.tables().size(), known.num_tables) << known.model;
    const KvCache cache = KvCache::create(options).value();
    const CacheStats stats = cache.stats();
    constexpr std::uint64_t kTokens = 32'768;
    const double held = static_cast<double>(cache.pages_for_tokens(kTokens, 1) * map.layers_per_page());
    const double of_all_layers = static_cast<double>(kTokens / options.page_size * known.num_layers);
    EXPECT_NEAR(held / of_all_layers, known.held, 0.0005) << known.model;
    EXPECT_NEAR(stats.padding_bytes_per_token / stats.bytes_per_token, known.waste, 1e-9) << known.model;
    EXPECT_LE(known.waste, 0.05);
  }
}

TEST(LayerMap, EveryLayerHasAPlaceOfItsOwnInATableOfItsWindow) {
  const Interleaved layers(62, 6);
  const KvLayerGroup groups[] = {{layers.sliding, 512}, {layers.full, -1}};
  KvCacheOptions options = shape_of(62);
  options.layer_groups = groups;
  LayerMap map;
  ASSERT_TRUE(map.assign(options));
  std::set<std::pair<std::uint32_t, std::uint32_t>> places;
  for (std::uint32_t layer = 0; layer < 62; ++layer) {
    const LayerPlace place = map.places()[layer];
    EXPECT_TRUE(places.insert({place.table, place.index}).second);
    EXPECT_LT(place.index, map.layers_per_page());
    EXPECT_EQ(map.tables()[place.table].window_left, (layer + 1) % 6 == 0 ? -1 : 512);
  }
}

TEST(LayerMap, WithoutGroupsAllLayersShareOneTable) {
  KvCacheOptions options = shape_of(3);
  options.attention.window_left = 7;
  LayerMap map;
  ASSERT_TRUE(map.assign(options));
  ASSERT_EQ(map.tables().size(), 1u);
  EXPECT_EQ(map.tables()[0].window_left, 7);
  EXPECT_EQ(map.places()[2].index, 2u);
}

TEST(LayerMap, BadGroupsAreRefused) {
  const std::vector<std::uint32_t> none, first{0}, second{1}, both{0, 1}, twice{0, 0, 1}, beyond{0, 1, 2},
      another{0, 2};
  const auto error_of = [](std::vector<KvLayerGroup> groups, auto change) {
    KvCacheOptions options = shape_of(2);
    options.layer_groups = groups;
    change(options);
    const Error error = KvCache::create(options).error();
    EXPECT_EQ(LayerMap().assign(options).error(), error.code) << "before anything else looks at them";
    return error;
  };
  const auto as_is = [](KvCacheOptions&) {};
  EXPECT_EQ(error_of({{first, -1}}, as_is), Errc::kInvalidArgument) << "a layer without a group";
  EXPECT_EQ(error_of({{both, -1}, {second, 4}}, as_is), Errc::kInvalidArgument) << "a layer in two groups";
  EXPECT_EQ(error_of({{twice, -1}}, as_is), Errc::kInvalidArgument) << "a layer twice";
  EXPECT_EQ(error_of({{beyond, -1}}, as_is), Errc::kInvalidArgument) << "no such layer";
  EXPECT_EQ(error_of({{another, -1}}, as_is), Errc::kInvalidArgument) << "as many layers as there are, but not those";
  EXPECT_EQ(error_of({{both, -1}, {none, 4}}, as_is), Errc::kInvalidArgument) << "an empty group";
  EXPECT_EQ(error_of({{both, -2}}, as_is), Errc::kInvalidArgument) << "a window below -1";
  EXPECT_EQ(error_of({{both, 4}}, [](auto& o) { o.attention.window_left = 4; }), Errc::kInvalidArgument);
  EXPECT_EQ(error_of({{both, 4}}, [](auto& o) { o.attention.sink_tokens = 4; }), Errc::kInvalidArgument);
  EXPECT_EQ(error_of({{both, 4}}, [](auto& o) { o.layers_per_page = 3; }), Errc::kInvalidArgument);
  EXPECT_EQ(error_of({}, [](auto& o) { o.layers_per_page = 1; }), Errc::kInvalidArgument);
  EXPECT_EQ(error_of({{first, 4}, {second, -1}}, as_is), Errc::kOk);

  std::vector<std::uint32_t> many(100);
  std::iota(many.begin(), many.end(), 0u);
  const KvLayerGroup group[] = {{many, -1}};
  KvCacheOptions options = shape_of(100);
  options.layer_groups = group;
  options.layers_per_page = 1;
  EXPECT_EQ(KvCache::create(options).error(), Errc::kInvalidArgument) << "100 page tables";
  options.layers_per_page = 100;
  EXPECT_EQ(KvCache::create(options).error(), Errc::kOk);
  many.resize(64);
  options.shape.num_layers = 64;
  const KvLayerGroup fewer[] = {{many, 0}};
  options.layer_groups = fewer;
  options.layers_per_page = 1;
  EXPECT_EQ(KvCache::create(options).error(), Errc::kOk) << "64 page tables, of windows of a token";
}

TEST(LayerMap, ATwentiethMayBeWastedExactly) {
  std::vector<std::uint32_t> layers(39);
  std::iota(layers.begin(), layers.end(), 0u);
  const std::span<const std::uint32_t> all(layers);
  const auto layers_per_page = [](std::uint32_t num_layers, std::initializer_list<KvLayerGroup> groups) {
    const std::vector<KvLayerGroup> copy(groups);
    KvCacheOptions options = shape_of(num_layers);
    options.layer_groups = copy;
    LayerMap map;
    EXPECT_TRUE(map.assign(options));
    return map.layers_per_page();
  };
  EXPECT_EQ(layers_per_page(39, {{all.first(20), 4}, {all.subspan(20), -1}}), 20u) << "1 of 20 places of full layers";
  EXPECT_EQ(layers_per_page(38, {{all.first(20), 4}, {all.subspan(20, 18), 8}}), 20u) << "2 of 40 places";
}

// Groups of which no packing wastes little: as many page tables as there may be.
TEST(LayerMap, GroupsThatDoNotFitEachOtherTakeManyTables) {
  std::vector<std::uint32_t> layers(126);
  std::iota(layers.begin(), layers.end(), 0u);
  std::vector<KvLayerGroup> groups;
  for (std::size_t i = 0; i < 30; ++i) groups.push_back({std::span(layers).subspan(i, 1), static_cast<int>(i)});
  groups.push_back({std::span(layers).subspan(30), -1});
  KvCacheOptions options = shape_of(126);
  options.layer_groups = groups;
  LayerMap map;
  ASSERT_TRUE(map.assign(options));
  EXPECT_EQ(map.layers_per_page(), 3u) << "30 page tables and 32; with two layers a page there would be 78";
  EXPECT_EQ(map.tables().size(), 62u);
  EXPECT_EQ(map.places()[125].table, 61u);
  EXPECT_EQ(map.places()[125].index, 2u);
  EXPECT_EQ(map.places()[29].index, 0u);
  EXPECT_EQ(map.tables()[29].window_left, 29);
  EXPECT_EQ(map.tables()[30].window_left, -1);
}

TEST(LayerMap, SlidingLayersHoldTheirWindowAlone) {
  const Interleaved layers(6, 6);
  const KvLayerGroup groups[] = {{layers.sliding, 32}, {layers.full, -1}};
  KvCacheOptions options = shape_of(6);
  options.layer_groups = groups;
  options.layers_per_page = 1;
  options.capacity_pages = 1024;
  KvCache cache = KvCache::create(options).value();
  Sequence sequence = cache.open().value();
  for (int chunk = 0; chunk < 100; ++chunk) {
    ASSERT_TRUE(cache.begin_step({{&sequence, 16}}).value().commit());
    EXPECT_LE(cache.stats().pool.used_pages, cache.pages_for_tokens(sequence.num_tokens(), 16));
  }
  EXPECT_EQ(cache.stats().pool.used_pages, 100u + 5 * 2) << "1600 tokens of one full layer, 32 of five sliding ones";
  EXPECT_EQ(cache.pages_for_tokens(1600), 600u);
  EXPECT_EQ(cache.pages_for_tokens(1600, 16), 100u + 5 * 5);
  EXPECT_FALSE(cache.can_admit(16000));
  EXPECT_TRUE(cache.can_admit(12000, 0, 16));
  EXPECT_FALSE(cache.can_admit(12000));
}

TEST(LayerMap, SlidingLayersKeepThePagesOfTheirSinkTokens) {
  const Interleaved layers(2, 2);
  const KvLayerGroup groups[] = {{layers.sliding, 32, 5}, {layers.full, -1}};
  KvCacheOptions options = shape_of(2);
  options.layer_groups = groups;
  options.page_size = 4;
  options.capacity_pages = 1024;
  KvCache cache = KvCache::create(options).value();
  Sequence sequence = cache.open().value();
  for (int chunk = 0; chunk < 50; ++chunk) {
    ASSERT_TRUE(cache.begin_step({{&sequence, 16}}).value().commit());
    EXPECT_LE(cache.stats().pool.used_pages, cache.pages_for_tokens(sequence.num_tokens(), 16));
  }
  const std::span<const PageId> pages = sequence.pages(cache.page_table_of(0).value());
  EXPECT_EQ(std::count(pages.begin(), pages.end(), kNullPage), 200 - 2 - 8)
      << "800 tokens: 5 of sinks, 32 of the window";
  EXPECT_NE(pages[0], kNullPage);
  EXPECT_NE(pages[1], kNullPage);
  EXPECT_EQ(pages[2], kNullPage);
}

}  // namespace
}  // namespace pagedkv::cache
