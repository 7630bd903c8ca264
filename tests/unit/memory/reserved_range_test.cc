// ReservedRange commits from its beginning, gives OS pages back, and survives every failing call of the system.
#include "memory/reserved_range.h"

#include <gtest/gtest.h>

#include <cstring>
#include <limits>

#include "support/fault_memory.h"

namespace pagedkv::memory {
namespace {

using pagedkv::testing::FaultMemory;

TEST(ReservedRange, IsAlignedToHugePagesAndReadsAsZeroOnceCommitted) {
  auto range = ReservedRange::create(system_memory(), 5 << 20, true).value();
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(range.base()) % kHugePageBytes, 0U);
  ASSERT_TRUE(range.commit_up_to(5 << 20));
  for (std::size_t i = 0; i < (5U << 20); i += 4096) ASSERT_EQ(range.base()[i], std::byte{0});
}

TEST(ReservedRange, DecommittedMemoryIsUsableAndZeroAgain) {
  auto range = ReservedRange::create(system_memory(), 1 << 20, false).value();
  ASSERT_TRUE(range.commit_up_to(1 << 20));
  std::memset(range.base(), 1, 1 << 20);
  const std::uint64_t os_page = range.os_page_bytes();
  const auto given = range.decommit(os_page - 1, 4 * os_page + 1).value();
  EXPECT_EQ(given.begin, os_page);
  EXPECT_EQ(given.end, 4 * os_page);
  EXPECT_EQ(range.base()[os_page - 1], std::byte{1});
  EXPECT_EQ(range.base()[os_page], std::byte{0});
  EXPECT_EQ(range.base()[4 * os_page - 1], std::byte{0});
  EXPECT_EQ(range.base()[4 * os_page], std::byte{1});
}

TEST(ReservedRange, DecommitOfLessThanAnOsPageDoesNothing) {
  FaultMemory os;
  auto range = ReservedRange::create(os, 1 << 20, false).value();
  ASSERT_TRUE(range.commit_up_to(1 << 20));
  os.fail_call(0);
  const auto given = range.decommit(1, os.os_page_bytes() - 1).value();
  EXPECT_EQ(given.begin, given.end);
  EXPECT_EQ(os.calls(), 0);
}

TEST(ReservedRange, RefusesEmptyAndOverflowingSizes) {
  EXPECT_EQ(ReservedRange::create(system_memory(), 0, false).error(), Errc::kInvalidArgument);
  for (const std::uint64_t bytes : {std::numeric_limits<std::uint64_t>::max(), std::uint64_t{1} << 63}) {
    EXPECT_EQ(ReservedRange::create(system_memory(), bytes, false).error(), Errc::kInvalidArgument);
  }
  EXPECT_EQ(ReservedRange::create(system_memory(), std::uint64_t{1} << 62, false).error(), Errc::kOsError);
  EXPECT_EQ(system_memory().reserve(std::numeric_limits<std::uint64_t>::max(), 4096).error(), Errc::kInvalidArgument);
}

TEST(ReservedRange, FailingCommitChangesNothingAndCanBeRepeated) {
  FaultMemory os;
  auto range = ReservedRange::create(os, 64 << 20, false).value();
  ASSERT_TRUE(range.commit_up_to(1));
  os.fail_call(0);
  EXPECT_EQ(range.commit_up_to(64 << 20).error(), Errc::kOsError);
  range.base()[0] = std::byte{1};
  ASSERT_TRUE(range.commit_up_to(64 << 20));
  range.base()[(64 << 20) - 1] = std::byte{1};
}

TEST(ReservedRange, WithoutHugePagesOfTheSystemItSaysSo) {
  FaultMemory os;
  os.fail_call(1);
  auto range = ReservedRange::create(os, 4 << 20, true);
  ASSERT_TRUE(range);
  EXPECT_FALSE(range->has_huge_pages());
}

TEST(ReservedRange, GivesItsAddressSpaceBack) {
  FaultMemory os;
  {
    auto a = ReservedRange::create(os, 1 << 20, false).value();
    auto b = std::move(a);
    EXPECT_EQ(os.reserved_ranges(), 1);
    EXPECT_NE(b.base(), nullptr);
  }
  EXPECT_EQ(os.reserved_ranges(), 0);
}

TEST(ReservedRange, SystemRefusesToCommitWhatIsNotReserved) {
  auto* const nowhere = reinterpret_cast<std::byte*>(std::uintptr_t{4096});  // below what Linux ever maps
  EXPECT_EQ(system_memory().commit(nowhere, 4096).error(), Errc::kOsError);
  EXPECT_EQ(system_memory().decommit(nowhere, 4096).error(), Errc::kOsError);
  EXPECT_FALSE(system_memory().advise_huge_pages(nowhere, 4096));
}

}  // namespace
}  // namespace pagedkv::memory
