// Histories of allocate, retain and release from many threads, each explained by some order of its calls one at a time.
//
// Source: Wing, Gong, "Testing and verifying concurrent objects", 1993: a search for a legal order that keeps the order
// of calls that did not overlap.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <barrier>
#include <cstdint>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "pagedkv/page_pool.h"

namespace pagedkv {
namespace {

constexpr int kNumThreads = 8, kCallsAThread = 3, kNumRounds = 2000;
constexpr std::uint64_t kCapacity = 3;

enum class CallKind : std::uint8_t { kAllocate, kRetain, kRelease, kCount };

struct Call {
  CallKind kind{};
  PageId page = kNullPage;  // given, or got; kNullPage if there was none
  bool succeeded = false;
  std::uint32_t count = 0;  // references that kCount saw
  std::uint64_t begin = 0, end = 0;
};

// The pool as a sequential program: references a page.
struct SerialPool {
  std::array<std::uint8_t, kCapacity> references{};

  // Whether the call may answer as it did; then it is done.
  bool explains(const Call& call) {
    if (call.kind == CallKind::kAllocate && !call.succeeded) {
      return std::none_of(references.begin(), references.end(), [](std::uint8_t r) { return r == 0; });
    }
    std::uint8_t& count = references[static_cast<std::size_t>(to_index(call.page))];
    switch (call.kind) {
      case CallKind::kAllocate:
        if (count != 0) return false;
        count = 1;
        return true;
      case CallKind::kRetain:
        if (call.succeeded != (count > 0)) return false;
        if (call.succeeded) ++count;
        return true;
      case CallKind::kRelease:
        if (call.succeeded != (count > 0)) return false;
        if (call.succeeded) --count;
        return true;
      case CallKind::kCount: return count == call.count;
    }
    return false;
  }
};

class Checker {
 public:
  explicit Checker(std::vector<Call> history) : history_(std::move(history)) {}
  bool is_linearizable() { return search(0, {}); }

 private:
  // `done` is a set of calls as bits. A state that failed once fails again.
  bool search(std::uint64_t done, SerialPool pool) {
    if (done == (std::uint64_t{1} << history_.size()) - 1) return true;
    if (!seen_.insert({done, pool.references}).second) return false;
    std::uint64_t first_end = ~std::uint64_t{0};
    for (std::size_t i = 0; i < history_.size(); ++i) {
      if ((done >> i & 1) == 0) first_end = std::min(first_end, history_[i].end);
    }
    for (std::size_t i = 0; i < history_.size(); ++i) {
      if ((done >> i & 1) != 0 || history_[i].begin > first_end) continue;  // another ended before it began
      SerialPool next = pool;
      if (next.explains(history_[i]) && search(done | std::uint64_t{1} << i, next)) return true;
    }
    return false;
  }

  const std::vector<Call> history_;
  std::set<std::pair<std::uint64_t, std::array<std::uint8_t, kCapacity>>> seen_;
};

// Calls of one thread, which releases only what it holds, but asks about any page. `held` is what it did not release.
std::vector<Call> call_around(PagePool& pool, std::atomic<std::uint64_t>& clock, std::mt19937& random,
                              std::vector<PageId>& held) {
  std::vector<Call> calls;
  for (int i = 0; i < kCallsAThread; ++i) {
    Call call;
    const auto which = random() % 4;
    call.kind = held.empty() && which != 3 ? CallKind::kAllocate : static_cast<CallKind>(which);
    call.page = held.empty() ? PageId{static_cast<std::int32_t>(random() % kCapacity)} : held.back();
    if (call.kind == CallKind::kCount) call.page = PageId{static_cast<std::int32_t>(random() % kCapacity)};
    call.begin = clock.fetch_add(1);
    if (random() % 2 == 0) std::this_thread::yield();  // so that calls overlap on few cores, too
    if (call.kind == CallKind::kAllocate) {
      const Result<PageId> got = pool.allocate();
      call.succeeded = got.has_value();
      call.page = got ? *got : kNullPage;
    }
    if (call.kind == CallKind::kRetain) call.succeeded = pool.retain({&call.page, 1}).has_value();
    if (call.kind == CallKind::kRelease) call.succeeded = pool.release({&call.page, 1}).has_value();
    if (call.kind == CallKind::kCount) call.count = pool.ref_count(call.page);
    if (random() % 2 == 0) std::this_thread::yield();
    call.end = clock.fetch_add(1);
    if ((call.kind == CallKind::kAllocate || call.kind == CallKind::kRetain) && call.succeeded) {
      held.push_back(call.page);
    }
    if (call.kind == CallKind::kRelease && call.succeeded) held.pop_back();
    calls.push_back(call);
  }
  return calls;
}

TEST(PoolLinearizability, EveryHistoryIsThatOfAnOrderOfItsCalls) {
  PagePool pool =
      PagePool::create({.page_bytes = 64, .capacity_pages = kCapacity, .huge_pages = HugePages::kNever}).value();
  std::array<std::vector<Call>, kNumThreads> calls;
  std::atomic<std::uint64_t> clock{0};
  std::uint64_t num_overlaps = 0;
  int num_wrong = 0;
  // Between two arrivals everybody calls; then the threads wait while the history is judged.
  std::barrier phase(kNumThreads + 1);
  std::vector<std::thread> threads;
  for (int t = 0; t < kNumThreads; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(static_cast<unsigned>(t));
      for (int round = 0; round < kNumRounds; ++round) {
        phase.arrive_and_wait();
        std::vector<PageId> held;
        calls[static_cast<std::size_t>(t)] = call_around(pool, clock, random, held);
        phase.arrive_and_wait();
        EXPECT_TRUE(pool.release(held));  // in no history: before the next round begins
      }
    });
  }
  for (int round = 0; round < kNumRounds; ++round) {
    phase.arrive_and_wait();
    phase.arrive_and_wait();
    std::vector<Call> history;
    for (const std::vector<Call>& of_thread : calls) history.insert(history.end(), of_thread.begin(), of_thread.end());
    for (const Call& call : history) num_overlaps += call.end - call.begin > 1 ? 1U : 0U;
    num_wrong += Checker(std::move(history)).is_linearizable() ? 0 : 1;
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(num_wrong, 0);
  EXPECT_GT(num_overlaps, 0U) << "calls were meant to overlap";
  EXPECT_EQ(pool.stats().used_pages, 0U);
}

TEST(PoolLinearizability, TheCheckerRefusesAPageThatWasGivenTwice) {
  const Call first{CallKind::kAllocate, PageId{0}, true, 0, 0, 1},
      second{CallKind::kAllocate, PageId{0}, true, 0, 2, 3};
  EXPECT_FALSE(Checker({first, second}).is_linearizable());
  const Call released{CallKind::kRelease, PageId{0}, true, 0, 1, 4};
  EXPECT_TRUE(Checker({first, second, released}).is_linearizable()) << "if it was given back in between";
}

}  // namespace
}  // namespace pagedkv
