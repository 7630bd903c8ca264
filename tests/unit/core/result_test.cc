// Result holds a value or an error, moves, and never mixes the two.
#include "pagedkv/result.h"

#include <gtest/gtest.h>

#include <memory>

namespace pagedkv {
namespace {

TEST(Result, HoldsAValueThatMovesOut) {
  Result<std::unique_ptr<int>> r = std::make_unique<int>(7);
  ASSERT_TRUE(r);
  EXPECT_EQ(r.error().code, Errc::kOk);
  std::unique_ptr<int> p = std::move(r).value();
  EXPECT_EQ(*p, 7);
}

TEST(Result, HoldsAnErrorThatSurvivesMoves) {
  Result<std::unique_ptr<int>> r = Error{Errc::kOutOfPages, "pool is full"};
  Result<std::unique_ptr<int>> moved = std::move(r);
  ASSERT_FALSE(moved);
  EXPECT_EQ(moved.error(), Errc::kOutOfPages);
  EXPECT_STREQ(moved.error().what, "pool is full");
}

TEST(Result, AssignmentReplacesValueByErrorAndBack) {
  Result<std::unique_ptr<int>> r = std::make_unique<int>(1);
  r = Error{Errc::kClosed, "closed"};
  EXPECT_FALSE(r);
  r = std::make_unique<int>(2);
  ASSERT_TRUE(r);
  EXPECT_EQ(**r, 2);
}

TEST(Result, VoidIsSuccessUntilGivenAnError) {
  EXPECT_TRUE(Result<void>{});
  EXPECT_FALSE((Result<void>{Error{Errc::kBusy, "in a step"}}));
}

TEST(Errc, EveryCodeHasAName) {
  for (int code = 0; code <= static_cast<int>(Errc::kCorrupt); ++code) {
    EXPECT_STRNE(to_string(static_cast<Errc>(code)), "unknown") << code;
  }
  EXPECT_STREQ(to_string(static_cast<Errc>(99)), "unknown");
}

}  // namespace
}  // namespace pagedkv
