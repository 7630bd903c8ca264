// Steps over the library's cache.
#include "replay/cache_memory.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "tool.h"

namespace pagedkv::tool {
namespace {

using Clock = std::chrono::steady_clock;

std::shared_ptr<EvictionPolicy> create_policy(Eviction eviction) {
  return value_or_bad_input(eviction == Eviction::kLru      ? make_lru_policy()
                            : eviction == Eviction::kS3Fifo ? make_s3fifo_policy()
                                                            : make_arc_policy(),
                            "cannot create the eviction policy");
}

KvCache create_cache(const CacheMemoryOptions& options) {
  const AttentionShape& shape = options.shape;
  KvCacheOptions cache;
  cache.shape = {.num_layers = 1, .num_q_heads = 1, .num_kv_heads = 1, .head_dim = 1, .dtype = DType::bf16};
  if (options.attention) {
    cache.shape = {.num_layers = shape.layers,
                   .num_q_heads = shape.q_heads,
                   .num_kv_heads = shape.kv_heads,
                   .head_dim = shape.head_dim,
                   .dtype = shape.dtype};
  } else {
    cache.huge_pages = HugePages::kNever;  // nothing is written
  }
  cache.page_size = options.page_size;
  cache.capacity_pages = options.capacity_tokens / options.page_size;
  cache.watermark_pages = watermark_pages(cache.capacity_pages);
  cache.prefix_cache = options.prefix_cache;
  if (options.prefix_cache) cache.prefix.policy = create_policy(options.eviction);
  return value_or_bad_input(KvCache::create(cache), "cannot create the cache");
}

}  // namespace

CacheMemory::CacheMemory(const CacheMemoryOptions& options)
    : options_(options),
      cache_(create_cache(options)),
      load_(options.shape, options.max_seqs),
      promises_(options.max_seqs),
      sequences_(options.max_seqs),
      tokens_(options.max_seqs),
      known_tokens_(options.max_seqs, 0),
      decoded_(options.max_seqs),
      slack_(options.max_seqs, 0) {}

bool CacheMemory::can_ever_hold(std::uint64_t total_tokens) const {
  return cache_.pages_for_tokens(total_tokens) <= cache_.options().capacity_pages;
}

/// Whether the rest of a prompt fits beside what the step takes and what others were promised.
bool CacheMemory::fits(const Sequence& sequence, const Demand& demand) {
  const std::uint64_t rest = demand.prefill_tokens - sequence.num_tokens();
  const std::uint64_t reserve = demand.alone ? 0 : cache_.options().watermark_pages;
  refused_pages_ =
      sequence.pages_needed(static_cast<std::uint32_t>(rest)) + pending_pages_ + promises_.total() + reserve;
  return refused_pages_ <= cache_.pages_available();
}

bool CacheMemory::open(SequenceKey key, const Demand& demand) {
  if (refused_number_ == demand.request->number && !demand.alone && cache_.pages_available() < refused_pages_) {
    return false;
  }
  prompt_.clear();
  if (options_.prefix_cache) {
    tokens_[key] = RequestTokens(*demand.request);
    prompt_.resize(demand.prefill_tokens);
    tokens_[key].expand(0, prompt_);
  }
  sequences_[key] = value_or_bad_input(cache_.open(prompt_), "cannot open a sequence");
  if (!fits(sequences_[key], demand)) {
    refused_number_ = demand.request->number;
    value_or_bad_input(sequences_[key].close(), "cannot close a sequence");
    return false;
  }
  refused_number_ = ~std::uint64_t{0};
  const std::uint64_t rest = demand.prefill_tokens - sequences_[key].num_tokens();
  promises_.promise(key, sequences_[key].pages_needed(static_cast<std::uint32_t>(rest)));
  known_tokens_[key] = demand.prefill_tokens;
  if (options_.attention) load_.open(key, demand);
  update_slack(key);
  return true;
}

std::uint64_t CacheMemory::cached_tokens(SequenceKey key) const { return sequences_[key].cached_tokens(); }

bool CacheMemory::grow(SequenceKey key, std::uint32_t num_tokens) {
  Sequence& sequence = sequences_[key];
  const std::uint64_t pages = sequence.pages_needed(num_tokens);
  if (pages + pending_pages_ > cache_.pages_available()) return false;
  pending_pages_ += pages;
  promises_.keep(key, pages);
  parts_.push_back({key, sequence.num_tokens(), num_tokens});
  StepItem item = {.sequence = &sequence, .num_new_tokens = num_tokens};
  // Behind what `open` was given, tokens come one at a time.
  if (options_.prefix_cache && sequence.num_tokens() >= known_tokens_[key]) {
    tokens_[key].expand(sequence.num_tokens(), std::span(&decoded_[key], 1));
    item.tokens = std::span<const Token>(&decoded_[key], 1);
  }
  items_.push_back(item);
  return true;
}

void CacheMemory::reserve() {
  if (items_.empty()) return;
  step_.emplace(value_or_bad_input(cache_.begin_step(items_), "cannot begin a step"));
}

void CacheMemory::compute() {
  if (!step_) return;
  if (options_.attention) compute_attention();
  value_or_bad_input(step_->commit(), "cannot commit a step");
  step_.reset();
  for (const NewTokens& part : parts_) update_slack(part.key);
  items_.clear();
  parts_.clear();
  pending_pages_ = 0;
}

void CacheMemory::compute_attention() {
  load_.begin_step(parts_);
  for (std::uint32_t layer = 0; layer < options_.shape.layers; ++layer) {
    load_.fill(layer);
    value_or_bad_input(step_->write(layer, load_.k(), load_.v()), "cannot write K and V");
    const Clock::time_point begun = Clock::now();
    value_or_bad_input(step_->attend(layer, load_.q(), load_.out()), "cannot attend");
    load_.took(layer, parts_, Clock::now() - begun, totals_);
  }
}

void CacheMemory::update_slack(SequenceKey key) {
  const Sequence& sequence = sequences_[key];
  const std::uint64_t slack = sequence.pages().size() * options_.page_size - sequence.num_tokens();
  total_slack_ += slack - slack_[key];
  slack_[key] = slack;
}

void CacheMemory::close(SequenceKey key, bool) {
  promises_.drop(key);
  value_or_bad_input(sequences_[key].close(), "cannot close a sequence");
  total_slack_ -= std::exchange(slack_[key], 0);
}

/// Only a sequence's last page holds less than it could, and that page is its own: shared tokens count once.
MemoryUsage CacheMemory::usage() const {
  const CacheStats stats = cache_.stats();
  const std::uint64_t reserved = stats.pool.used_pages * options_.page_size;
  return {reserved, reserved - std::min(reserved, total_slack_), 0,
          stats.pool.metadata_bytes + stats.prefix.metadata_bytes};
}

PageCounts CacheMemory::page_counts() const {
  const PoolStats pool = cache_.stats().pool;
  return {pool.used_pages, pool.evictable_pages, pool.free_pages, pool.evictions};
}

std::vector<SlotRun> CacheMemory::layout() const { return layout_of(sequences_, options_.page_size); }

}  // namespace pagedkv::tool
