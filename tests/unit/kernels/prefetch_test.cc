// RowsAhead: every line of the rows once, in pieces of about an OS page. Addresses alone; nothing is read.
#include "kernels/prefetch.h"

#include <gmock/gmock.h>

#include <map>
#include <random>

namespace pagedkv::kernels {
namespace {

using ::testing::Each;
using ::testing::Pair;

// Where no memory needs to be.
const std::byte* at(std::uintptr_t address) {
  return reinterpret_cast<const std::byte*>(address);  // NOLINT(performance-no-int-to-ptr)
}
std::uintptr_t address(const std::byte* pointer) { return reinterpret_cast<std::uintptr_t>(pointer); }

constexpr std::uintptr_t kPool = std::uintptr_t{1} << 30;

// How often each line is in a piece.
std::map<std::uintptr_t, int> lines_of(const RowsAhead& rows) {
  std::map<std::uintptr_t, int> lines;
  for (const RowsAhead::Piece& piece : rows) {
    for (const std::byte* line = piece.begin; line < piece.end; line += kLineBytes) ++lines[address(line)];
  }
  return lines;
}

std::vector<std::ptrdiff_t> piece_bytes(const RowsAhead& rows) {
  std::vector<std::ptrdiff_t> bytes;
  for (const RowsAhead::Piece& piece : rows) bytes.push_back(piece.end - piece.begin);
  return bytes;
}

TEST(RowsAhead, PagesOfAnOsPageArePieces) {
  RowsAhead rows;
  for (std::uintptr_t page : {7U, 2U, 3U}) rows.add(at(kPool + page * std::uintptr_t{kOsPageBytes}), kOsPageBytes);
  EXPECT_THAT(piece_bytes(rows), ::testing::ElementsAre(kOsPageBytes, kOsPageBytes, kOsPageBytes));
}

TEST(RowsAhead, RowsThatFollowEachOtherAreOnePieceAnOsPage) {
  RowsAhead rows;
  for (std::uintptr_t row = 0; row < 32; ++row) rows.add(at(kPool + row * 192), 192);
  EXPECT_THAT(piece_bytes(rows), ::testing::ElementsAre(22 * 192, 10 * 192));  // A row that crosses the end goes along.
}

TEST(RowsAhead, PoolsAtOddAddressesHaveNoSlivers) {
  for (std::uintptr_t offset : {16U, 64U, 192U, 3904U, 4032U, 4080U}) {
    RowsAhead rows;
    for (std::uintptr_t page : {7U, 2U, 3U})
      rows.add(at(kPool + offset + page * std::uintptr_t{kOsPageBytes}), kOsPageBytes);
    EXPECT_EQ(rows.end() - rows.begin(), 3) << offset;
  }
}

TEST(RowsAhead, EveryLineOfTheRowsOnceInPiecesOfAboutAnOsPage) {
  std::mt19937 random(1);
  const auto draw = [&](std::uintptr_t below) {
    return std::uniform_int_distribution<std::uintptr_t>(0, below - 1)(random);
  };
  for (int round = 0; round < 2000; ++round) {
    RowsAhead rows;
    std::map<std::uintptr_t, int> expected;
    const std::uintptr_t bytes = (1 + draw(200)) * kLineBytes, gap = draw(2) * kLineBytes,
                         offset = draw(64) * kLineBytes;
    for (std::uintptr_t row = 0, count = 1 + draw(20); row < count; ++row) {
      const std::uintptr_t begin = kPool + offset + row * (bytes + gap);
      rows.add(at(begin), static_cast<std::int64_t>(bytes));
      for (std::uintptr_t line = begin; line < begin + bytes; line += kLineBytes) expected[line] = 1;
    }
    ASSERT_FALSE(rows.is_full());
    ASSERT_EQ(lines_of(rows), expected) << bytes << " bytes a row, " << gap << " between rows, offset " << offset;
    EXPECT_THAT(piece_bytes(rows), Each(::testing::Le(kOsPageBytes + 2 * 256)));
  }
}

TEST(RowsAhead, LinesOfUnalignedRowsAreWhole) {
  RowsAhead rows;
  rows.add(at(kPool + 100), 60);
  EXPECT_THAT(lines_of(rows), ::testing::ElementsAre(Pair(kPool + 64, 1), Pair(kPool + 128, 1)));
}

TEST(RowsAhead, AddsWhatFits) {
  RowsAhead rows;
  for (std::uintptr_t row = 0; row < 300; ++row) rows.add(at(kPool + row * 8192), 64);
  EXPECT_TRUE(rows.is_full());
  EXPECT_EQ(rows.end() - rows.begin(), RowsAhead::kMaxPieces);
  rows.clear();
  EXPECT_EQ(rows.begin(), rows.end());
}

}  // namespace
}  // namespace pagedkv::kernels
