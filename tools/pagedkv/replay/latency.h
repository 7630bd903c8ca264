// Percentiles of many short times, in memory that does not grow, and a memory that takes its own times.
#pragma once

#include <array>
#include <bit>
#include <chrono>
#include <cstdint>
#include <memory>

#include "replay/kv_memory.h"

namespace pagedkv::tool {

/// Counts times in buckets of 1/16 of a power of two, so that a percentile is right within 6 %.
class LatencyHistogram {
 public:
  void add(std::uint64_t nanoseconds) {
    ++counts_[bucket_of(nanoseconds)];
    ++total_;
  }
  /// The time that a fraction of all calls did not exceed; 0 if there were none.
  [[nodiscard]] std::uint64_t percentile_ns(double fraction) const;
  [[nodiscard]] std::uint64_t total() const { return total_; }

 private:
  static constexpr std::uint64_t kSteps = 16;  ///< Buckets a power of two.
  static std::size_t bucket_of(std::uint64_t ns) {
    if (ns < kSteps) return ns;
    const auto order = static_cast<std::uint64_t>(std::bit_width(ns) - 1);
    return order * kSteps + (ns >> (order - 4)) % kSteps;
  }

  std::array<std::uint64_t, 64 * kSteps> counts_ = {};
  std::uint64_t total_ = 0;
};

/// Forwards to another memory and takes the time of every call that makes room for tokens. Calls that find no room are
/// no samples: while a queue waits there is one a step, and quick. A memory that makes room for a whole step at once
/// yields a sample for each sequence of the step, its share, to stand beside those of memories that grow one by one.
class TimedMemory final : public KvMemory {
 public:
  explicit TimedMemory(std::unique_ptr<KvMemory> memory) : memory_(std::move(memory)) {}

  [[nodiscard]] const LatencyHistogram& latency() const { return latency_; }

  [[nodiscard]] bool can_ever_hold(std::uint64_t tokens) const override { return memory_->can_ever_hold(tokens); }
  bool open(SequenceKey key, const Demand& demand) override {
    return timed([&] { return memory_->open(key, demand); });
  }
  bool grow(SequenceKey key, std::uint32_t num_tokens) override {
    if (memory_->reserves_whole_steps()) {
      const bool planned = memory_->grow(key, num_tokens);
      if (planned) ++planned_;
      return planned;
    }
    return timed([&] { return memory_->grow(key, num_tokens); });
  }
  [[nodiscard]] bool reserves_whole_steps() const override { return memory_->reserves_whole_steps(); }
  void reserve() override {
    const auto begun = std::chrono::steady_clock::now();
    memory_->reserve();
    const std::uint64_t ns = nanoseconds_since(begun);
    for (std::uint64_t i = 0; i < planned_; ++i) latency_.add(ns / planned_);
    planned_ = 0;
  }
  [[nodiscard]] std::uint64_t cached_tokens(SequenceKey key) const override { return memory_->cached_tokens(key); }
  void compute() override { memory_->compute(); }
  void close(SequenceKey key, bool finished) override { memory_->close(key, finished); }
  [[nodiscard]] MemoryUsage usage() const override { return memory_->usage(); }
  [[nodiscard]] MemoryTotals totals() const override { return memory_->totals(); }
  [[nodiscard]] PageCounts page_counts() const override { return memory_->page_counts(); }
  [[nodiscard]] std::vector<SlotRun> layout() const override { return memory_->layout(); }

 private:
  static std::uint64_t nanoseconds_since(std::chrono::steady_clock::time_point begun) {
    return static_cast<std::uint64_t>((std::chrono::steady_clock::now() - begun).count());
  }
  template <class Call>
  bool timed(const Call& call) {
    const auto begun = std::chrono::steady_clock::now();
    const bool done = call();
    if (done) latency_.add(nanoseconds_since(begun));
    return done;
  }

  std::unique_ptr<KvMemory> memory_;
  LatencyHistogram latency_;
  std::uint64_t planned_ = 0;  ///< Sequences for which reserve() is going to make room.
};

}  // namespace pagedkv::tool
