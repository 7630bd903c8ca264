// Sized structs between callers and libraries of different ages.
#include "capi/convert.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>

namespace pagedkv::capi {
namespace {

/// A struct that has grown once: its first release ended before `added`.
struct Grown {
  std::size_t struct_size;
  std::uint32_t old;
  std::uint32_t reserved;
  std::uint64_t added;
};
struct First {
  std::size_t struct_size;
  std::uint32_t old;
  std::uint32_t reserved;
};
struct Newer {
  Grown known;
  std::uint64_t unknown;
};

}  // namespace

template <>
inline constexpr std::size_t kFirstVersionBytes<Grown> = offsetof(Grown, added);

namespace {

TEST(SizedStructs, AnOlderCallersStructIsReadWithDefaults) {
  struct {
    First first;
    std::uint64_t not_a_member;
  } caller = {{sizeof(First), 7, 0}, 99};
  const Result<Grown> read = read_sized(reinterpret_cast<const Grown*>(&caller.first));
  ASSERT_TRUE(read);
  EXPECT_EQ(read->old, 7u);
  EXPECT_EQ(read->added, 0u) << "what lies behind the caller's struct is not read";
}

TEST(SizedStructs, AnOlderCallersStructIsWrittenNoFurtherThanItGoes) {
  struct {
    First first;
    std::uint64_t not_a_member;
  } caller = {{sizeof(First), 0, 0}, 99};
  ASSERT_TRUE(write_sized(Grown{0, 5, 0, 6}, reinterpret_cast<Grown*>(&caller.first)));
  EXPECT_EQ(caller.first.struct_size, sizeof(First));
  EXPECT_EQ(caller.first.old, 5u);
  EXPECT_EQ(caller.not_a_member, 99u);
}

TEST(SizedStructs, ANewerCallersMembersAreRefusedUnlessTheyAreZero) {
  Newer caller = {{sizeof(Newer), 7, 0, 8}, 0};
  const Result<Grown> read = read_sized(&caller.known);
  ASSERT_TRUE(read);
  EXPECT_EQ(read->added, 8u);
  caller.unknown = 1;
  EXPECT_EQ(read_sized(&caller.known).error(), Errc::kUnsupported);
  ASSERT_TRUE(write_sized(Grown{0, 5, 0, 6}, &caller.known));
  EXPECT_EQ(caller.known.struct_size, sizeof(Newer));
  EXPECT_EQ(caller.known.added, 6u);
  EXPECT_EQ(caller.unknown, 1u) << "a library writes only what it knows";
}

TEST(SizedStructs, SizesOfNoVersionAreRefused) {
  for (const std::size_t size : {std::size_t{0}, std::size_t{8}, sizeof(First) - 1, SIZE_MAX}) {
    const Grown caller = {size, 0, 0, 0};
    EXPECT_EQ(read_sized(&caller).error(), Errc::kInvalidArgument) << size;
  }
  Grown small = {sizeof(First) - 1, 3, 0, 0};
  EXPECT_EQ(write_sized(Grown{}, &small).error(), Errc::kInvalidArgument);
  EXPECT_EQ(small.old, 3u);
  EXPECT_EQ(read_sized<Grown>(nullptr).error(), Errc::kInvalidArgument);
  EXPECT_EQ(write_sized<Grown>(Grown{}, nullptr).error(), Errc::kInvalidArgument);
}

}  // namespace
}  // namespace pagedkv::capi
