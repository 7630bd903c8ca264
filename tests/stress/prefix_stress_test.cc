// Opens, forks, steps, evictions, pins, trims and capacity changes from many threads at once keep every value.
#include <gtest/gtest.h>

#include <atomic>
#include <random>
#include <string>
#include <vector>

#include "support/cached_store.h"
#include "support/threads.h"

namespace pagedkv {
namespace {

using testing::CachedStore;
using testing::run_threads;
using testing::value_of;

// Values must be those of the tokens in their namespace, whoever computed them.
void expect_values(CachedStore& cached, const Sequence& sequence, std::uint64_t name_space,
                   std::span<const Token> tokens) {
  std::uint64_t expected = 0;
  for (std::uint64_t t = 0; t < sequence.num_tokens(); ++t) {
    expected = value_of(name_space, expected, tokens[t]);
    ASSERT_EQ(cached.value(sequence, t), expected) << "token " << t;
  }
}

// One request: a prompt that shares its beginning with others, a few steps, sometimes a fork. Returns the tokens found.
std::uint64_t serve(CachedStore& cached, std::mt19937& random) {
  const std::uint64_t name_space = random() % 2;
  std::vector<Token> tokens(10 + random() % 50);
  const Token topic = static_cast<Token>(random() % 6);
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = i < 24 ? topic : static_cast<Token>(random() % 3);
  Sequence sequence = cached.open(tokens, std::string(name_space, 's'));
  expect_values(cached, sequence, name_space, tokens);
  if (!cached.append(sequence, std::span<const Token>(tokens).subspan(sequence.num_tokens()), name_space)) {
    return sequence.cached_tokens();
  }
  for (int step = 0; step < 8; ++step) {
    const Token next = static_cast<Token>(random() % 3);
    if (!cached.append(sequence, {&next, 1}, name_space)) break;
    tokens.push_back(next);
    if (step % 4 == 3) {
      Sequence fork = sequence.fork().value();
      const Token other = 9;
      tokens.push_back(other);
      if (cached.append(fork, {&other, 1}, name_space)) expect_values(cached, fork, name_space, tokens);
      tokens.pop_back();
    }
  }
  expect_values(cached, sequence, name_space, tokens);
  return sequence.cached_tokens();
}

// What operators do meanwhile.
void disturb(CachedStore& cached, std::mt19937& random) {
  switch (random() % 5) {
    case 0: EXPECT_TRUE(cached.pool().trim()); break;
    case 1:
      if (cached.pool().set_capacity(120 + random() % 81)) {
        EXPECT_TRUE(cached.pool().set_capacity(200));
      }
      break;
    case 2: {
      const std::vector<Token> prompt(24, static_cast<Token>(random() % 6));
      const auto pin = cached.pin(prompt);
      if (pin) {
        EXPECT_TRUE(cached.index().unpin(*pin));
      }
      break;
    }
    case 3: cached.index().poll_events([](void*, const CacheEvent&) noexcept {}, nullptr); break;
    default:
      if (random() % 64 == 0) cached.index().clear();
      EXPECT_LE(cached.index().stats().published_pages, 200U);
  }
}

void run(PrefixCacheOptions options) {
  options.event_capacity = 256;
  CachedStore cached(200, 4, options);
  std::atomic<std::uint64_t> hit_tokens = 0;
  run_threads([&](int thread) {
    std::mt19937 random(static_cast<unsigned>(thread));
    for (int round = 0; round < 2000; ++round) {
      hit_tokens += serve(cached, random);
      disturb(cached, random);
    }
  });
  ASSERT_TRUE(cached.pool().set_capacity(200));
  const PoolStats stats = cached.pool().stats();
  EXPECT_EQ(stats.used_pages, 0U);
  EXPECT_EQ(stats.evictable_pages, cached.index().stats().published_pages);
  EXPECT_GT(stats.evictions, 0U);
  EXPECT_GT(hit_tokens, 0U);
}

TEST(PrefixStress, LruKeepsEveryValueUnderManyThreads) { run({}); }
TEST(PrefixStress, S3FifoKeepsEveryValueUnderManyThreads) { run({.policy = make_s3fifo_policy().value()}); }

TEST(PrefixStress, ArcKeepsEveryValueUnderManyThreads) { run({.policy = make_arc_policy().value()}); }

}  // namespace
}  // namespace pagedkv
