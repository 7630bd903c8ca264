// Steps with real attention over contiguous buffers.
#include "replay/contiguous_attention.h"

#include <chrono>
#include <cstring>

#include "tool.h"

namespace pagedkv::tool {
namespace {

using Clock = std::chrono::steady_clock;

PagePool create_arena(const AttentionShape& shape, std::uint64_t capacity_tokens, std::uint32_t page_size) {
  const std::uint64_t capacity_pages = capacity_tokens / page_size;
  PagePool pool = value_or_bad_input(
      PagePool::create({.page_bytes = shape.bytes_per_token() * page_size, .capacity_pages = capacity_pages}),
      "cannot create the arena");
  std::vector<PageId> ids(capacity_pages);
  value_or_bad_input(pool.allocate(ids), "cannot fill the arena");
  return pool;
}

}  // namespace

ContiguousAttentionMemory::ContiguousAttentionMemory(Sizing sizing, const AttentionShape& shape,
                                                     std::uint64_t capacity_tokens, std::uint64_t max_seq_len,
                                                     std::uint32_t page_size, std::uint32_t max_seqs)
    : ContiguousMemory({.sizing = sizing,
                        .capacity_tokens = capacity_tokens,
                        .max_seq_len = max_seq_len,
                        .unit = page_size,
                        .max_seqs = max_seqs}),
      shape_(shape),
      page_size_(page_size),
      arena_(create_arena(shape, capacity_tokens, page_size)),
      load_(shape, max_seqs) {
  config_.num_q_heads = shape.q_heads;
  config_.num_kv_heads = shape.kv_heads;
  config_.head_dim = shape.head_dim;
  config_.page_size = page_size;
  config_.kv_dtype = shape.dtype;
}

bool ContiguousAttentionMemory::open(SequenceKey key, const Demand& demand) {
  if (!ContiguousMemory::open(key, demand)) return false;
  load_.open(key, demand);
  return true;
}

bool ContiguousAttentionMemory::grow(SequenceKey key, std::uint32_t num_tokens) {
  const std::uint64_t held = buffer(key).held;
  if (!ContiguousMemory::grow(key, num_tokens)) return false;
  parts_.push_back({key, held, num_tokens});
  return true;
}

void ContiguousAttentionMemory::copy(const Buffer& from, const Buffer& to) {
  const std::uint64_t page_bytes = arena_.page_bytes();
  const std::uint64_t num_pages = (from.held + page_size_ - 1) / page_size_;
  std::memcpy(arena_.base() + to.begin / page_size_ * page_bytes, arena_.base() + from.begin / page_size_ * page_bytes,
              num_pages * page_bytes);
  ContiguousMemory::copy(from, to);
}

/// Page tables of neighbouring pages, and the slots of the new tokens.
void ContiguousAttentionMemory::describe_batch() {
  qo_indptr_.assign(1, 0);
  kv_indptr_.assign(1, 0);
  kv_indices_.clear();
  kv_last_page_len_.clear();
  slots_.clear();
  for (const NewTokens& part : parts_) {
    const Buffer& place = buffer(part.key);
    const std::uint64_t first_page = place.begin / page_size_;
    for (std::uint64_t page = 0; page * page_size_ < place.held; ++page) {
      kv_indices_.push_back(static_cast<std::int32_t>(first_page + page));
    }
    qo_indptr_.push_back(qo_indptr_.back() + static_cast<std::int32_t>(part.count));
    kv_indptr_.push_back(static_cast<std::int32_t>(kv_indices_.size()));
    kv_last_page_len_.push_back(static_cast<std::int32_t>((place.held - 1) % page_size_ + 1));
    for (std::uint64_t i = 0; i < part.count; ++i) {
      slots_.push_back(static_cast<std::int64_t>(place.begin + part.begin + i));
    }
  }
}

void ContiguousAttentionMemory::compute() {
  if (parts_.empty()) return;
  describe_batch();
  const AttentionBatch batch = {.qo_indptr = qo_indptr_,
                                .kv_indptr = kv_indptr_,
                                .kv_indices = kv_indices_,
                                .kv_last_page_len = kv_last_page_len_};
  const AttentionPlan plan = value_or_bad_input(AttentionPlan::create(config_, batch), "cannot plan a step");
  load_.begin_step(parts_);
  const auto element = static_cast<std::int64_t>(size_of(shape_.dtype));
  const std::int64_t token_stride = shape_.head_dim * element;
  const std::int64_t head_stride = 2 * token_stride * page_size_;  // K and V of a head side by side
  const auto page_stride = static_cast<std::int64_t>(arena_.page_bytes());
  const auto num_pages = static_cast<std::int64_t>(arena_.capacity_pages());
  for (std::uint32_t layer = 0; layer < shape_.layers; ++layer) {
    std::byte* k = arena_.base() + layer * shape_.kv_heads * head_stride;
    std::byte* v = k + token_stride * page_size_;
    load_.fill(layer);
    const KvWriteView pages = {k,           v,           page_stride,  head_stride, token_stride,
                               page_stride, head_stride, token_stride, num_pages};
    value_or_bad_input(write_kv(config_, pages, slots_, load_.k(), load_.v()), "cannot write K and V");
    const Clock::time_point begun = Clock::now();
    value_or_bad_input(plan.run(pages, load_.q(), load_.out()), "cannot attend");
    load_.took(layer, parts_, Clock::now() - begun, totals_);
  }
  parts_.clear();
}

}  // namespace pagedkv::tool
