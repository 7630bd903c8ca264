// The policy `paged` as a server runs it: a KvCache and one Step for each step, with attention, prefix cache or both.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "pagedkv/kv_cache.h"
#include "replay/attention_load.h"
#include "replay/kv_memory.h"
#include "replay/paged_memory.h"

namespace pagedkv::tool {

enum class Eviction { kLru, kS3Fifo, kArc };

struct CacheMemoryOptions {
  std::uint64_t capacity_tokens = 0;
  std::uint32_t page_size = 16;
  std::uint32_t max_seqs = 0;
  bool attention = false;  ///< Write real rows and attend; else pages are as small as they can be and never written.
  AttentionShape shape;    ///< With attention.
  bool prefix_cache = false;
  Eviction eviction = Eviction::kLru;
};

class CacheMemory final : public KvMemory {
 public:
  /// Throws BadInput if the library refuses.
  explicit CacheMemory(const CacheMemoryOptions& options);

  [[nodiscard]] bool can_ever_hold(std::uint64_t total_tokens) const override;
  bool open(SequenceKey key, const Demand& demand) override;
  [[nodiscard]] std::uint64_t cached_tokens(SequenceKey key) const override;
  bool grow(SequenceKey key, std::uint32_t num_tokens) override;
  [[nodiscard]] bool reserves_whole_steps() const override { return true; }
  void reserve() override;
  void compute() override;
  void close(SequenceKey key, bool finished) override;
  [[nodiscard]] MemoryUsage usage() const override;
  [[nodiscard]] MemoryTotals totals() const override { return totals_; }
  [[nodiscard]] PageCounts page_counts() const override;
  [[nodiscard]] std::vector<SlotRun> layout() const override;

 private:
  bool fits(const Sequence& sequence, const Demand& demand);
  void compute_attention();
  void update_slack(SequenceKey key);

  CacheMemoryOptions options_;
  KvCache cache_;
  AttentionLoad load_;
  PagePromises promises_;
  std::vector<Sequence> sequences_;
  std::vector<RequestTokens> tokens_;        ///< By key, with a prefix cache.
  std::vector<std::uint64_t> known_tokens_;  ///< By key: given to the cache so far.
  std::vector<Token> prompt_;                ///< Of the sequence that is being opened.
  std::vector<Token> decoded_;               ///< [max_seqs] the token that a sequence decodes in this step.
  std::vector<StepItem> items_;              ///< Of the step that is being put together.
  std::vector<NewTokens> parts_;
  std::optional<Step> step_;          ///< From reserve() to compute().
  std::uint64_t pending_pages_ = 0;   ///< That the step will take.
  std::vector<std::uint64_t> slack_;  ///< By key: slots of its last page that hold no token.
  std::uint64_t total_slack_ = 0;
  /// A request that was refused, and the pages that it lacked: not looked up again before there are as many.
  std::uint64_t refused_number_ = ~std::uint64_t{0}, refused_pages_ = 0;
  MemoryTotals totals_;
};

}  // namespace pagedkv::tool
