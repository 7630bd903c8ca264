// BatchReport: what a batch of prompts did to the pool, step by step, as a table for the terminal and a page of plots.
#pragma once

#include <chrono>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/engine.h"

namespace serving {

/// One prompt of the batch. Times are in milliseconds from the report's making.
struct PromptReport {
  RequestId request = 0;
  std::string prompt = {}, output = {};
  std::uint64_t prompt_tokens = 0, cached_tokens = 0, output_tokens = 0;
  double first_token_ms = 0, last_token_ms = 0;
};

class BatchReport {
 public:
  /// Both are borrowed. `context` is the model's: what a server without pages must reserve for each sequence.
  BatchReport(Engine& engine, const pagedkv::KvCache& cache, std::string model, std::uint64_t context);

  /// In the order of their submission; the caller fills in texts and numbers of tokens.
  std::vector<PromptReport> prompts = {};
  /// From a request's listener.
  void hear(std::size_t prompt, const Event& event);
  /// After each step of the engine: looks at who holds which pages. Cost: O(capacity of the pool).
  void look();

  [[nodiscard]] std::string table() const;
  /// Throws std::runtime_error: the file cannot be written.
  void write_html(const std::string& path) const;

 private:
  // What the pool held after a step.
  struct Look {
    double ms = 0;
    std::uint64_t used = 0, shared = 0, evictable = 0, running = 0, waiting = 0, tokens = 0;
    std::vector<std::uint32_t> held;  // [prompts] pages; a shared one counts for the first of its holders.
    std::vector<std::int32_t> map;    // [rows] prompt, or one of kFree, kEvictable, kShared.
  };

  [[nodiscard]] double now_ms() const;
  [[nodiscard]] Look look_at(const PoolSnapshot& snapshot) const;
  [[nodiscard]] std::uint64_t most_at_once() const;
  [[nodiscard]] std::uint64_t reserved_at_once() const;
  [[nodiscard]] std::uint64_t output_tokens() const;
  [[nodiscard]] nlohmann::json to_json() const;

  Engine& engine_;
  const pagedkv::KvCache& cache_;
  const std::string model_;
  const std::uint64_t context_;  // Tokens.
  const std::chrono::steady_clock::time_point start_;
  std::vector<Look> looks_;
  std::uint64_t steps_seen_ = 0, stride_ = 1;  // Every so many steps are kept, so that a page stays readable.
  PoolSnapshot last_;
};

}  // namespace serving
