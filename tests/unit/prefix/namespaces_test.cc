// Namespaces are told apart by their keys, kept while somebody uses them or they hold pages, and forgotten then.
#include "prefix/namespaces.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "support/cached_store.h"

namespace pagedkv::prefix {
namespace {

using testing::CachedStore;
using testing::run_of_tokens;

TEST(Namespaces, EveryKeyHasAnIdAndASeedOfItsOwn) {
  Namespaces all;
  std::set<std::uint64_t> ids, seeds;
  std::vector<std::shared_ptr<Namespace>> held;
  for (const char* salt : {"", "a", "b", "ab"}) {
    for (const char* extra_key : {"", "a", "b"}) {
      for (const std::uint64_t page_table : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{256}}) {
        held.push_back(all.acquire(salt, extra_key, page_table).value());
        EXPECT_EQ(all.acquire(salt, extra_key, page_table).value(), held.back());
        ids.insert(held.back()->id);
        seeds.insert(held.back()->seed);
      }
    }
  }
  EXPECT_EQ(ids.size(), held.size());
  EXPECT_EQ(*ids.begin(), 1U);
  EXPECT_EQ(seeds.size(), held.size());
  EXPECT_EQ(all.count(), held.size());
  held.clear();
  EXPECT_EQ(all.count(), 0U);
}

TEST(Namespaces, TheSameKeyHasTheSameSeedInEveryCache) {
  Namespaces a, b;
  (void)b.acquire("first", "", 0);
  EXPECT_EQ(a.acquire("tenant", "lora", 3).value()->seed, b.acquire("tenant", "lora", 3).value()->seed);
}

TEST(Namespaces, KeysMayBeAsLongAsPromisedAndNoLonger) {
  Namespaces all;
  const std::string longest(kMaxCacheKeyBytes, 'x');
  EXPECT_TRUE(all.acquire(longest, longest, 0));
  EXPECT_EQ(all.acquire(longest + "x", "", 0).error(), Errc::kInvalidArgument);
  EXPECT_EQ(all.acquire("", longest + "x", 0).error(), Errc::kInvalidArgument);
}

std::uint64_t id_of(Namespaces& all, int number) { return all.acquire(std::to_string(number), "", 0).value()->id; }

TEST(Namespaces, UnusedOnesAreForgottenWhenSixtyFourAreKnown) {
  Namespaces all;
  for (int i = 0; i < 64; ++i) EXPECT_EQ(id_of(all, i), static_cast<std::uint64_t>(i) + 1);
  EXPECT_EQ(id_of(all, 0), 1U) << "not yet";
  EXPECT_EQ(id_of(all, 64), 65U);
  EXPECT_EQ(id_of(all, 0), 66U) << "made again";
}

TEST(Namespaces, ThoseInUseAndThoseWithPagesStayAndTheUnusedAreLookedForAtTwiceTheirNumber) {
  Namespaces all;
  std::vector<std::shared_ptr<Namespace>> held;
  for (int i = 0; i < 64; ++i) held.push_back(all.acquire(std::to_string(i), "", 0).value());
  held[7]->num_pages = 1;
  held.erase(held.begin() + 7);
  EXPECT_EQ(all.count(), 64U);
  for (int i = 64; i < 128; ++i) EXPECT_EQ(id_of(all, i), static_cast<std::uint64_t>(i) + 1);
  for (int i = 0; i < 128; ++i) EXPECT_EQ(id_of(all, i), static_cast<std::uint64_t>(i) + 1) << "none is forgotten";
  EXPECT_EQ(id_of(all, 128), 129U);
  for (int i = 0; i < 64; ++i) EXPECT_EQ(id_of(all, i), static_cast<std::uint64_t>(i) + 1);
  EXPECT_EQ(id_of(all, 64), 130U) << "those that nobody used were forgotten";
}

TEST(Namespaces, AreForgottenWithTheLastOfTheirPages) {
  CachedStore c(8, 2);
  const auto num_namespaces = [&c] { return c.index().stats().namespaces; };
  {
    Sequence a = c.prefill(run_of_tokens(9), "a");
    EXPECT_EQ(num_namespaces(), 1U);
  }
  EXPECT_EQ(num_namespaces(), 1U) << "four pages of it are published";
  std::vector<PageId> pages(7);
  ASSERT_TRUE(c.pool().allocate(pages));
  EXPECT_EQ(num_namespaces(), 1U) << "one page is left";
  PageId last = kNullPage;
  ASSERT_TRUE(c.pool().allocate({&last, 1}));
  EXPECT_EQ(num_namespaces(), 0U);
  ASSERT_TRUE(c.pool().release(pages));
  {
    Sequence b = c.prefill(run_of_tokens(5), "b");
  }
  EXPECT_EQ(num_namespaces(), 1U);
  c.index().clear();
  EXPECT_EQ(num_namespaces(), 0U);
}

}  // namespace
}  // namespace pagedkv::prefix
