// Attention of a step: what its rows see, and what of it the options change.
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "pagedkv/kv_cache.h"
#include "unit/cache/tiny_cache.h"

namespace pagedkv {
namespace {

TEST(Step, AttendsOverHeldAndNewTokensCausally) {
  KvCache cache = tiny_cache(8);
  Sequence a = cache.open().value();
  feed(cache, a, 5, 2);
  Step step = cache.begin_step({{&a, 2}}).value();
  write_all(step, 8);
  // Zero queries weigh all visible keys alike: outputs are means of V.
  const std::vector<float> q(2 * 8, 0);
  std::vector<float> out(2 * 8), lse(2 * 2);
  ASSERT_TRUE(step.attend(0, q, out, lse));
  EXPECT_NEAR(out[0], (5 * 2 + 8) / 6.0, 1e-6);
  EXPECT_NEAR(out[8], (5 * 2 + 8 + 8) / 7.0, 1e-6);
  EXPECT_NEAR(lse[0], std::log(6.0), 1e-6);
  EXPECT_NEAR(lse[2], std::log(7.0), 1e-6);
}

TEST(Step, OfForksGivesTheSameWithCascade) {
  KvCacheOptions options = tiny(600);
  options.cascade = true;
  KvCache cache = KvCache::create(options).value();
  Sequence a = cache.open().value();
  feed(cache, a, 1000, 2);
  feed(cache, a, 50, 5);  // 1024 tokens are a part that is shared
  Sequence alone = cache.open().value();
  feed(cache, alone, 3, 1);
  Sequence b = a.fork().value();
  feed(cache, b, 10, 7);
  Step step = cache.begin_step({{&a, 1}, {&alone, 1}, {&b, 1}}).value();
  write_all(step, 9);
  const std::vector<float> q(3 * 8, 0);
  std::vector<float> out(3 * 8), lse(3 * 2);
  ASSERT_TRUE(step.attend(1, q, out, lse));
  EXPECT_NEAR(out[0], (1000 * 2 + 50 * 5 + 9) / 1051.0, 1e-5);
  EXPECT_NEAR(out[8], (3 * 1 + 9) / 4.0, 1e-5);
  EXPECT_NEAR(out[16], (1000 * 2 + 50 * 5 + 10 * 7 + 9) / 1061.0, 1e-5);
  EXPECT_NEAR(lse[4], std::log(1061.0), 1e-5);
}

TEST(Step, SeesItsSinkTokensAndItsWindow) {
  KvCacheOptions options = tiny(64);
  options.attention.window_left = 5;
  options.attention.sink_tokens = 3;
  KvCache cache = KvCache::create(options).value();
  Sequence a = cache.open().value();
  feed(cache, a, 3, 100);  // the sinks
  feed(cache, a, 40, 7);   // mostly behind the window
  feed(cache, a, 4, 2);
  EXPECT_NE(a.pages()[0], kNullPage);
  EXPECT_EQ(a.pages()[1], kNullPage);
  Step step = cache.begin_step({{&a, 2}}).value();
  write_all(step, 4);
  const std::vector<float> q(2 * 8, 0);
  std::vector<float> out(2 * 8), lse(2 * 2);
  ASSERT_TRUE(step.attend(0, q, out, lse));
  // Zero queries weigh all visible keys alike: three sinks, five keys before the row, and the row's own.
  EXPECT_NEAR(out[0], (3 * 100 + 7 + 4 * 2 + 4) / 9.0, 1e-4);
  EXPECT_NEAR(out[8], (3 * 100 + 4 * 2 + 2 * 4) / 9.0, 1e-4);
  EXPECT_NEAR(lse[0], std::log(9.0), 1e-6);
}

TEST(Step, AttendsWithTheSinksOfEachLayer) {
  KvCacheOptions options = tiny(8);
  const std::vector<float> sinks = {0, std::log(3.0F), std::log(5.0F), -std::numeric_limits<float>::infinity()};
  options.attention.sinks = sinks;  // [2 layers][2 heads]
  KvCache cache = KvCache::create(options).value();
  Sequence a = cache.open().value();
  Step step = cache.begin_step({{&a, 2}}).value();
  write_all(step, 8);
  const std::vector<float> q(2 * 8, 0);
  std::vector<float> out(2 * 8), lse(2 * 2);
  ASSERT_TRUE(step.attend(0, q, out, lse));
  // The second row sees two keys of weight 1, and a sink of weight 1 or 3 that has no value.
  EXPECT_NEAR(out[8], 16 / 3.0, 1e-5);
  EXPECT_NEAR(out[12], 16 / 5.0, 1e-5);
  ASSERT_TRUE(step.attend(1, q, out, lse));
  EXPECT_NEAR(out[8], 16 / 7.0, 1e-5);
  EXPECT_NEAR(out[12], 8, 1e-5) << "minus infinity is no sink";
  EXPECT_NEAR(lse[3], std::log(2.0), 1e-6);
}

TEST(Step, RefusesToAttendOverWhatTheCallerSlidAway) {
  KvCacheOptions options = tiny(64);
  options.attention.window_left = 12;
  options.attention.sink_tokens = 4;
  KvCache cache = KvCache::create(options).value();
  const std::vector<float> q(8, 0);
  std::vector<float> out(8);
  const auto attend_after = [&](std::uint64_t window, std::uint64_t sink_tokens) {
    Sequence a = cache.open().value();
    feed(cache, a, 30, 1);
    EXPECT_TRUE(a.slide(window, sink_tokens));
    Step step = cache.begin_step({{&a, 1}}).value();
    write_all(step, 1);
    const Errc answer = step.attend(0, q, out).error().code;
    EXPECT_EQ(step.attend(1, q, out).error(), answer) << "it says so again";
    return answer;
  };
  EXPECT_EQ(attend_after(12, 4), Errc::kOk);
  EXPECT_EQ(attend_after(3, 4), Errc::kInvalidArgument) << "a narrower window";
  EXPECT_EQ(attend_after(12, 0), Errc::kInvalidArgument) << "no sinks";
}

TEST(Step, ConvertsRowsToTheFormatOfThePages) {
  KvCacheOptions options = tiny(4);
  options.shape.dtype = DType::bf16;
  KvCache cache = KvCache::create(options).value();
  Sequence a = cache.open().value();
  Step step = cache.begin_step({{&a, 1}}).value();
  write_all(step, 1.5f);
  const KvView view = cache.view(0).value();
  const auto* row = reinterpret_cast<const bf16_t*>(static_cast<const std::byte*>(view.k) +
                                                    to_index(a.pages()[0]) * view.k_page_stride);
  EXPECT_EQ(row[0].bits, 0x3fc0);
}

}  // namespace
}  // namespace pagedkv
