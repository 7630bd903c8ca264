// What one tenant may see of another's: nothing, on every path by which a page changes hands or a prefix is found.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "pagedkv/kv_cache.h"

namespace pagedkv {
namespace {

constexpr std::uint32_t kPageSize = 4, kDim = 8;
constexpr float kSecret = 1234.5F;

KvCacheOptions small_options(std::uint64_t capacity_pages) {
  KvCacheOptions options{
      .shape = {.num_layers = 1, .num_q_heads = 1, .num_kv_heads = 1, .head_dim = kDim, .dtype = DType::f32},
      .page_size = kPageSize,
      .capacity_pages = capacity_pages};
  options.prefix.event_capacity = 64;
  return options;
}

// Computes the rest of a prompt with rows of one value.
void prefill(KvCache& cache, Sequence& sequence, std::size_t num_tokens, float value) {
  const auto num_new = static_cast<std::uint32_t>(num_tokens - sequence.num_tokens());
  Step step = cache.begin_step({{&sequence, num_new}}).value();
  const std::vector<float> rows(num_new * kDim, value);
  ASSERT_TRUE(step.write(0, rows, rows));
  ASSERT_TRUE(step.commit());
}

Sequence open_and_fill(KvCache& cache, const std::vector<Token>& prompt, const char* salt, float value) {
  Sequence sequence = cache.open(prompt, {.cache_salt = salt}).value();
  prefill(cache, sequence, prompt.size(), value);
  return sequence;
}

bool holds_secret(KvCache& cache, const Sequence& sequence) {
  for (const PageId page : sequence.pages()) {
    const auto* const values = reinterpret_cast<const float*>(cache.pool().page_data(page));
    if (std::find(values, values + cache.page_bytes() / 4, kSecret) != values + cache.page_bytes() / 4) return true;
  }
  return false;
}

const std::vector<Token> kPrompt{1, 2, 3, 4, 5, 6, 7, 8, 9, 10};

TEST(Tenants, ThePromptOfAnotherIsNotFound) {
  KvCache cache = KvCache::create(small_options(16)).value();
  const Sequence theirs = open_and_fill(cache, kPrompt, "a", kSecret);
  for (const char* salt : {"", "b", "A", "a\x01", "aa"}) {
    EXPECT_EQ(cache.open(kPrompt, {.cache_salt = salt}).value().num_tokens(), 0U) << salt;
  }
  EXPECT_EQ(cache.open(kPrompt, {.cache_salt = std::string_view("a\0", 2)}).value().num_tokens(), 0U);
  EXPECT_EQ(cache.open(kPrompt, {.extra_key = "a"}).value().num_tokens(), 0U) << "the key is not the salt";
  EXPECT_EQ(cache.open(kPrompt, {.cache_salt = "a", .extra_key = "x"}).value().num_tokens(), 0U);
  EXPECT_EQ(cache.open(kPrompt, {.cache_salt = "a"}).value().num_tokens(), 8U) << "their own";
}

TEST(Tenants, NoRowsOfAnothersPageAreCopiedForAPartialMatch) {
  KvCache cache = KvCache::create(small_options(16)).value();
  const Sequence theirs = open_and_fill(cache, kPrompt, "a", kSecret);
  const std::vector<Token> same_beginning{1, 2, 3, 99};
  EXPECT_EQ(cache.open(same_beginning, {.cache_salt = "a"}).value().num_tokens(), 3U);
  EXPECT_EQ(cache.open(same_beginning, {.cache_salt = "b"}).value().num_tokens(), 0U);
}

TEST(Tenants, EqualPromptsOfTwoTenantsAreNeverMerged) {
  KvCache cache = KvCache::create(small_options(16)).value();
  Sequence theirs = cache.open(kPrompt, {.cache_salt = "a"}).value();
  Sequence mine = cache.open(kPrompt, {.cache_salt = "b"}).value();
  prefill(cache, theirs, kPrompt.size(), kSecret);
  prefill(cache, mine, kPrompt.size(), 1);
  EXPECT_EQ(cache.stats().prefix.merged_pages, 0U);
  std::set<PageId> pages(theirs.pages().begin(), theirs.pages().end());
  for (const PageId page : mine.pages()) EXPECT_TRUE(pages.insert(page).second);
  EXPECT_FALSE(holds_secret(cache, mine));
}

TEST(Tenants, AForkStaysWithItsTenant) {
  KvCache cache = KvCache::create(small_options(16)).value();
  Sequence theirs = open_and_fill(cache, kPrompt, "a", kSecret);
  Sequence branch = theirs.fork().value();
  ASSERT_TRUE(theirs.close());
  const std::vector<Token> more{11, 12};
  Step step = cache.begin_step({{&branch, 2, more}}).value();
  const std::vector<float> rows(2 * kDim, kSecret);
  ASSERT_TRUE(step.write(0, rows, rows));
  ASSERT_TRUE(step.commit());
  std::vector<Token> longer = kPrompt;
  longer.insert(longer.end(), {11, 12, 13});
  EXPECT_EQ(cache.open(longer, {.cache_salt = "b"}).value().num_tokens(), 0U);
  EXPECT_EQ(cache.open(longer, {.cache_salt = "a"}).value().num_tokens(), 12U);
}

TEST(Tenants, AHashThatCollidesFindsNothingOfAnothers) {
  KvCacheOptions options = small_options(16);
  options.prefix.hash = [](const Token*, std::size_t, std::uint64_t) noexcept { return std::uint64_t{1}; };
  KvCache cache = KvCache::create(options).value();
  const Sequence theirs = open_and_fill(cache, kPrompt, "a", kSecret);
  EXPECT_EQ(cache.open(kPrompt, {.cache_salt = "b"}).value().num_tokens(), 0U);
  EXPECT_EQ(cache.pin(kPrompt, {.cache_salt = "b"}).error(), Errc::kNotFound);
}

TEST(Tenants, APrefixOfAnotherCannotBePinnedNorUnpinnedByGuessingTokens) {
  KvCache cache = KvCache::create(small_options(16)).value();
  const Sequence theirs = open_and_fill(cache, kPrompt, "a", kSecret);
  EXPECT_EQ(cache.pin(kPrompt, {.cache_salt = "b"}).error(), Errc::kNotFound);
  EXPECT_EQ(cache.stats().prefix.pinned_pages, 0U);
}

// Events name hashes, and the hash of equal tokens differs between tenants: who sees the events of one cannot look for
// what another asked.
TEST(Tenants, EventsOfEqualPromptsHaveOtherHashes) {
  KvCache cache = KvCache::create(small_options(16)).value();
  const Sequence theirs = open_and_fill(cache, kPrompt, "a", kSecret);
  const Sequence mine = open_and_fill(cache, kPrompt, "b", 1);
  std::vector<std::uint64_t> hashes;
  cache.poll_events(
      [](void* user, const CacheEvent& event) noexcept {
        static_cast<std::vector<std::uint64_t>*>(user)->push_back(event.hash);
        static_cast<std::vector<std::uint64_t>*>(user)->push_back(event.parent_hash);
      },
      &hashes);
  ASSERT_EQ(hashes.size(), 8U);
  EXPECT_EQ(std::set<std::uint64_t>(hashes.begin(), hashes.end()).size(), 6U) << "three of each, none in common";
}

// A page that another tenant filled and left, taken again by every way that gives a sequence a page.
class ZeroedPages : public testing::Test {
 protected:
  static KvCache used_by_another(bool zeroes, std::uint64_t capacity_pages = 4) {
    KvCacheOptions options = small_options(capacity_pages);
    options.zero_pages_between_tenants = zeroes;
    KvCache cache = KvCache::create(options).value();
    std::vector<Token> prompt(capacity_pages * kPageSize);
    for (std::size_t i = 0; i < prompt.size(); ++i) prompt[i] = static_cast<Token>(i);
    open_and_fill(cache, prompt, "a", kSecret);
    return cache;
  }
};

TEST_F(ZeroedPages, WithoutTheOptionAPageComesAsItWasLeft) {
  KvCache cache = used_by_another(false);
  Sequence mine = cache.open({}, {.cache_salt = "b"}).value();
  const Step step = cache.begin_step({{&mine, 1}}).value();
  EXPECT_TRUE(holds_secret(cache, mine)) << "what the option is for";
}

TEST_F(ZeroedPages, AStepGetsNoBytesOfAnother) {
  KvCache cache = used_by_another(true);
  Sequence mine = cache.open({}, {.cache_salt = "b"}).value();
  const Step step = cache.begin_step({{&mine, 4 * kPageSize}}).value();
  EXPECT_FALSE(holds_secret(cache, mine));
}

TEST_F(ZeroedPages, AnAppendGetsNoBytesOfAnother) {
  KvCache cache = used_by_another(true);
  Sequence mine = cache.open({}, {.cache_salt = "b"}).value();
  ASSERT_TRUE(mine.append(4 * kPageSize));
  EXPECT_FALSE(holds_secret(cache, mine));
}

TEST_F(ZeroedPages, ACopyOnWriteGetsNoBytesOfAnother) {
  KvCache cache = used_by_another(true, 4);
  Sequence mine = cache.open({}, {.cache_salt = "b"}).value();
  ASSERT_TRUE(mine.append(2));
  Sequence branch = mine.fork().value();
  ASSERT_TRUE(branch.append(1));
  EXPECT_FALSE(holds_secret(cache, branch));
  EXPECT_NE(branch.pages()[0], mine.pages()[0]);
}

TEST_F(ZeroedPages, ACopyOfAPartOfAPageGetsNoBytesOfAnother) {
  KvCache cache = used_by_another(true, 4);
  const std::vector<Token> prompt{50, 51, 52, 53, 54};
  Sequence mine = open_and_fill(cache, prompt, "b", 1);
  const std::vector<Token> same_beginning{50, 51, 99};
  const Sequence other = cache.open(same_beginning, {.cache_salt = "b"}).value();
  ASSERT_EQ(other.num_tokens(), 2U);
  EXPECT_FALSE(holds_secret(cache, other));
}

TEST_F(ZeroedPages, ATenantsOwnPagesAreNotTouched) {
  KvCache cache = used_by_another(true);
  Sequence again = cache.open({}, {.cache_salt = "a"}).value();
  const Step step = cache.begin_step({{&again, 1}}).value();
  EXPECT_TRUE(holds_secret(cache, again)) << "zeroing costs only where tenants change";
}

TEST_F(ZeroedPages, ATenantThatWasForgottenAndCameBackIsAnother) {
  KvCache cache = used_by_another(true);
  for (int i = 0; i < 200; ++i) {  // namespaces that nobody uses are forgotten meanwhile
    Sequence passer = cache.open({}, {.cache_salt = std::to_string(i)}).value();
    ASSERT_TRUE(passer.append(4 * kPageSize));
  }
  Sequence again = cache.open({}, {.cache_salt = "a"}).value();
  ASSERT_TRUE(again.append(4 * kPageSize));
  EXPECT_FALSE(holds_secret(cache, again));
}

TEST_F(ZeroedPages, WithoutAPrefixCacheEveryPageIsZeroed) {
  KvCacheOptions options = small_options(2);
  options.prefix_cache = false;
  options.zero_pages_between_tenants = true;
  KvCache cache = KvCache::create(options).value();
  const std::vector<Token> prompt(2 * kPageSize, 3);
  open_and_fill(cache, prompt, "a", kSecret);
  Sequence mine = cache.open().value();
  ASSERT_TRUE(mine.append(1));
  EXPECT_FALSE(holds_secret(cache, mine));
}

}  // namespace
}  // namespace pagedkv
