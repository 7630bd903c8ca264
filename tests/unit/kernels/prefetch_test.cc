// RowsAhead: every line of the rows once, in pieces of about an OS page. Addresses alone; nothing is read.
#include "kernels/prefetch.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <utility>
#include <vector>

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

TEST(RowsAhead, KAndVOfAPageSideBySideAreOnePieceAtAnyAddress) {
  for (std::uintptr_t offset : {0U, 16U, 64U, 150U}) {
    for (std::uintptr_t bytes : {1024U, 2048U}) {  // of K, and of V
      RowsAhead rows;
      for (std::uintptr_t page : {7U, 2U, 5U}) {
        const std::uintptr_t begin = kPool + offset + page * std::uintptr_t{kOsPageBytes};
        rows.add(at(begin), static_cast<std::int64_t>(bytes));
        rows.add(at(begin + bytes), static_cast<std::int64_t>(bytes));
      }
      EXPECT_EQ(rows.end() - rows.begin(), 3) << offset << " " << bytes;
      EXPECT_THAT(lines_of(rows), Each(Pair(::testing::_, 1)));
    }
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
    const std::uintptr_t unit = draw(2) == 0 ? kLineBytes : 4;  // of rows that begin and end with lines, or anywhere
    const std::uintptr_t bytes = (1 + draw(200)) * kLineBytes + draw(16) * 4 / unit * unit, gap = draw(2) * kLineBytes,
                         offset = draw(1024) * 4 / unit * unit;
    for (std::uintptr_t row = 0, count = 1 + draw(20); row < count; ++row) {
      const std::uintptr_t begin = kPool + offset + row * (bytes + gap);
      rows.add(at(begin), static_cast<std::int64_t>(bytes));
      for (std::uintptr_t line = begin / kLineBytes * kLineBytes; line < begin + bytes; line += kLineBytes) {
        expected[line] = 1;
      }
    }
    ASSERT_FALSE(rows.is_full());
    std::map<std::uintptr_t, int> lines = lines_of(rows);
    if (unit != kLineBytes) {
      for (auto& [line, count] : lines) count = std::min(count, 1);  // one that two rows share may be in both
    }
    ASSERT_EQ(lines, expected) << bytes << " bytes a row, " << gap << " between rows, offset " << offset;
    EXPECT_THAT(piece_bytes(rows), Each(::testing::Le(kOsPageBytes + 2 * 256)));
  }
}

TEST(RowsAhead, LinesOfUnalignedRowsAreWhole) {
  RowsAhead rows;
  rows.add(at(kPool + 100), 60);
  EXPECT_THAT(lines_of(rows), ::testing::ElementsAre(Pair(kPool + 64, 1), Pair(kPool + 128, 1)));
}

// Writes down the lines that a StreamPrefetcher asks for.
struct Recorder {
  static inline std::vector<std::uintptr_t> lines;
  static void line(const std::byte* at) noexcept { lines.push_back(address(at)); }
};

TEST(StreamPrefetcher, AsksForEveryLineWithinItsStepsAndTheFirstOfTheNextRows) {
  for (const std::uintptr_t num_pages : {1U, 3U, 8U, 9U, 40U, 256U}) {
    for (const std::size_t num_steps : {1U, 7U, 300U, 5000U}) {
      RowsAhead rows, after;
      for (std::uintptr_t page = 0; page < num_pages; ++page) {
        rows.add(at(kPool + 2 * page * std::uintptr_t{kOsPageBytes}), page % 3 == 0 ? 1000 : 4096);
        after.add(at(2 * kPool + 2 * page * std::uintptr_t{kOsPageBytes}), 4096);
      }
      Recorder::lines.clear();
      StreamPrefetcher<8, Recorder> prefetcher;
      prefetcher.start(rows, &after, num_steps);
      for (std::size_t step = 0; step < num_steps + 1; ++step) prefetcher.step();
      const std::set<std::uintptr_t> asked(Recorder::lines.begin(), Recorder::lines.end());
      for (const auto& [line, count] : lines_of(rows)) {
        ASSERT_TRUE(asked.contains(line)) << num_pages << " pages, " << num_steps << " steps";
      }
      for (const RowsAhead::Piece* next = after.begin(); next != after.end() && next != after.begin() + 8; ++next) {
        ASSERT_TRUE(asked.contains(address(next->begin))) << num_pages << " pages, " << num_steps << " steps";
      }
    }
  }
}

class PageAfterPage : public testing::TestWithParam<std::pair<Work, std::uintptr_t>> {};  // and bytes asked for, a page

TEST_P(PageAfterPage, IsAskedForWhereTheCpuWantsIt) {
  const auto [work, most] = GetParam();
  for (const std::uintptr_t num_pages : {1U, 9U, 256U}) {
    for (const std::size_t num_steps : {1U, 300U, 50000U}) {
      RowsAhead rows, after;
      std::vector<std::uintptr_t> want;
      for (std::uintptr_t page = 0; page < num_pages; ++page) {
        const std::uintptr_t begin = kPool + 2 * page * std::uintptr_t{kOsPageBytes};
        const std::uintptr_t bytes = page % 3 == 0 ? 1024 : 4096;
        rows.add(at(begin), static_cast<std::int64_t>(bytes));
        for (std::uintptr_t offset = 0; offset < std::min(bytes, most); offset += std::uintptr_t{kLineBytes}) {
          want.push_back(begin + offset);
        }
      }
      after.add(at(2 * kPool), 4096);
      Recorder::lines.clear();
      StreamPrefetcher<8, Recorder, true> prefetcher(cpu::PrefetchOrder::kPageAfterPage);
      prefetcher.start(rows, &after, num_steps, work);
      for (std::size_t step = 0; step < num_steps + 1; ++step) prefetcher.step();
      std::vector<std::uintptr_t> got;  // each once, but the first line of a page, also asked for a page ahead
      std::set<std::uintptr_t> begun;
      for (const std::uintptr_t line : Recorder::lines) {
        if (line % std::uintptr_t{kOsPageBytes} != 0 || !begun.insert(line).second) got.push_back(line);
      }
      std::erase(want, kPool);  // of the first page, which nothing comes before
      std::erase(got, kPool);
      EXPECT_EQ(got, want) << num_pages << " pages, " << num_steps << " steps";
      EXPECT_TRUE(begun.contains(2 * kPool));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Work, PageAfterPage,
                         testing::Values(std::pair(Work::kMixed, 4096U), std::pair(Work::kLoads, 256U)));

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
