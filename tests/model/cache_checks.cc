// The comparisons of the machine: pages, references, rows, counters and outputs.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <utility>

#include "model/cache_machine.h"
#include "pagedkv/reference.h"

namespace pagedkv::testing {

void CacheMachine::check() const {
  check_pages();
  check_stats();
  check_prefixes();
  for (const auto& s : sequences_) check_sequence(*s);
}

void CacheMachine::check_pages() const {
  const std::vector<std::uint32_t> count = references();
  for (std::size_t i = 0; i < count.size(); ++i) {
    const PageId page{static_cast<std::int32_t>(i)};
    require(pool_->ref_count(page) == count[i], "reference count");
    require(pool_->is_evictable(page) == (count[i] == 0 && prefixes_.has(page)), "evictable page");
  }
  const PoolStats stats = pool_->stats();
  std::uint64_t used = 0, shared = 0, evictable = 0;
  for (std::size_t i = 0; i < count.size(); ++i) {
    used += count[i] > 0 ? 1U : 0U;
    shared += count[i] > 1 ? 1U : 0U;
    evictable += count[i] == 0 && prefixes_.has(PageId{static_cast<std::int32_t>(i)}) ? 1U : 0U;
  }
  require(stats.used_pages == used, "used pages");
  require(stats.shared_pages == shared, "shared pages");
  require(stats.evictable_pages == evictable, "evictable pages");
  require(stats.capacity_pages == capacity_ && used + evictable <= capacity_, "capacity");
  require(stats.free_pages == capacity_ - used - evictable, "free pages");
}

void CacheMachine::check_stats() const {
  const CacheStats stats = cache_->stats();
  std::size_t num_open = sequences_.size();
  for (const ModelStep& step : steps_) {
    for (const ModelStepItem& item : step.items) num_open += item.sequence->is_dropped ? 1U : 0U;
  }
  require(stats.open_sequences == num_open, "open sequences");
  require(stats.steps_begun == counts_.steps_begun, "steps begun");
  require(stats.steps_committed == counts_.steps_committed, "steps committed");
  require(stats.steps_rolled_back == counts_.steps_rolled_back, "steps rolled back");
  require(stats.tokens_committed == counts_.tokens_committed, "tokens committed");
  require(stats.copied_pages == counts_.copied_pages, "copied pages");
  require(stats.prefix.lookups == counts_.prefix.lookups, "lookups");
  require(stats.prefix.lookup_tokens == counts_.prefix.lookup_tokens, "tokens looked up");
  require(stats.prefix.hit_tokens == counts_.prefix.hit_tokens, "tokens found");
  require(stats.prefix.published_pages == prefixes_.pages().size(), "published pages");
  require(stats.prefix.lost_events == 0, "lost events");
  std::set<PageId> pinned;
  for (const ModelPin& pin : pins_) pinned.insert(pin.pages.begin(), pin.pages.end());
  require(stats.prefix.pinned_pages == pinned.size(), "pinned pages");
}

// Published pages hold the rows of their tokens, in use or not, and so do all pages before them.
void CacheMachine::check_prefixes() const {
  for (const auto& [page, key] : prefixes_.pages()) {
    const PrefixKey before =
        key.table == chain_ ? key.parent(on_.page_size) : PrefixKey{key.tenant, chain_, key.tokens};
    require(before.tokens.empty() || prefixes_.find(before).has_value(), "a published page can be reached");
    std::vector<Row> rows;
    for (const Token token : key.tokens) {
      rows.push_back(next_row(rows.empty() ? first_row(key.tenant) : rows.back(), static_cast<std::uint64_t>(token)));
    }
    check_rows(page, key.table, std::span(rows).last(on_.page_size));
  }
}

void CacheMachine::check_sequence(const ModelSequence& s) const {
  require(s.sequence.num_tokens() == s.rows.size(), "length");
  require(s.sequence.num_groups() == tables(), "page tables");
  const std::span<const Token> ids = s.sequence.tokens();
  require(std::equal(ids.begin(), ids.end(), s.ids.begin(), s.ids.end()), "token ids");
  for (std::uint32_t t = 0; t < tables(); ++t) {
    const std::span<const PageId> pages = s.sequence.pages(t);
    require(std::equal(pages.begin(), pages.end(), s.tables[t].begin(), s.tables[t].end()), "page table");
    for (std::size_t first = 0; first < s.rows.size(); first += on_.page_size) {
      const PageId page = pages[first / on_.page_size];
      const std::size_t count = std::min<std::size_t>(on_.page_size, s.rows.size() - first);
      if (page != kNullPage) check_rows(page, t, std::span(s.rows).subspan(first, count));
    }
  }
}

std::byte* CacheMachine::row_at(PageId page, std::uint32_t layer, RowPart part, std::uint32_t head,
                                std::size_t token) const {
  const KvView view = cache_->view(layer).value();
  const bool is_k = part == RowPart::kK;
  const auto* const base = static_cast<const std::byte*>(is_k ? view.k : view.v);
  return pool_->base() + (base - pool_->base()) + to_index(page) * (is_k ? view.k_page_stride : view.v_page_stride) +
         head * (is_k ? view.k_head_stride : view.v_head_stride) +
         static_cast<std::int64_t>(token) * (is_k ? view.k_token_stride : view.v_token_stride);
}

void CacheMachine::check_rows(PageId page, std::uint32_t table, std::span<const Row> rows) const {
  const auto dtype = static_cast<DType>(on_.dtype);
  for (std::uint32_t layer = 0; layer < on_.layers; ++layer) {
    if (table_of_[layer] != table) continue;
    for (std::uint32_t head = 0; head < kKvHeads; ++head) {
      for (std::size_t t = 0; t < rows.size(); ++t) {
        for (const RowPart part : {RowPart::kK, RowPart::kV}) {
          const std::size_t width = part == RowPart::kK ? kHeadDim : kVHeadDim;
          const std::byte* const stored = row_at(page, layer, part, head, t);
          for (std::size_t i = 0; i < width; ++i) {
            std::byte want[4];
            store_exact(want, element(rows[t], part, layer, head * width + i), dtype);
            require(std::memcmp(stored + i * size_of(dtype), want, size_of(dtype)) == 0, "a row in its page");
          }
        }
      }
    }
  }
}

// Behind the rows that were copied to it, a page of another tenant holds nothing but zeros.
void CacheMachine::check_zeroed(PageId page, std::uint32_t table, std::uint32_t tenant, std::size_t num_held) {
  const std::uint32_t owner = std::exchange(owners_[static_cast<std::size_t>(to_index(page))], tenant);
  if (on_.zeroing == 0 || (owner == tenant && on_.prefix != 0)) return;
  const std::byte* const data = pool_->page_data(page);
  if (num_held == 0) {
    require(std::all_of(data, data + pool_->page_bytes(), [](std::byte b) { return b == std::byte{0}; }), "zeroed");
    return;
  }
  const std::size_t width = kHeadDim * size_of(static_cast<DType>(on_.dtype));
  for (std::uint32_t layer = 0; layer < on_.layers; ++layer) {
    for (std::size_t t = num_held; t < on_.page_size && table_of_[layer] == table; ++t) {
      const std::byte* const row = row_at(page, layer, RowPart::kK, kKvHeads - 1, t);
      require(std::all_of(row, row + width, [](std::byte b) { return b == std::byte{0}; }), "zeroed behind a copy");
    }
  }
}

// NaN behind the first `num_held` rows of a page that was taken just now: nobody may read them before they are written.
void CacheMachine::poison_fresh(const ModelSequence& s, std::uint32_t table, std::size_t entry, std::size_t num_held) {
  const auto dtype = static_cast<DType>(on_.dtype);
  const PageId page = s.tables[table][entry];
  check_zeroed(page, table, s.tenant, num_held);
  for (std::uint32_t layer = 0; layer < on_.layers; ++layer) {
    if (table_of_[layer] != table) continue;
    for (std::uint32_t head = 0; head < kKvHeads; ++head) {
      for (std::size_t t = num_held; t < on_.page_size; ++t) {
        std::memset(row_at(page, layer, RowPart::kK, head, t), 0xff, kHeadDim * size_of(dtype));
        std::memset(row_at(page, layer, RowPart::kV, head, t), 0xff, kVHeadDim * size_of(dtype));
      }
    }
  }
}

// NaN in pages that became free: nobody may read them.
void CacheMachine::poison_freed() {
  const std::vector<std::uint32_t> count = references();
  for (std::size_t i = 0; i < count.size(); ++i) {
    const PageId page{static_cast<std::int32_t>(i)};
    if (states_[i] == PageState::kFree || count[i] > 0 || prefixes_.has(page)) continue;
    std::memset(pool_->page_data(page), 0xff, pool_->page_bytes());
  }
}

// The oracle over dense copies of the model's rows, one page a row.
void CacheMachine::compare_attention(const ModelStep& step, std::uint32_t layer, const std::vector<float>& q,
                                     const std::vector<float>& out, const std::vector<float>& lse) const {
  constexpr std::size_t kKWidth = kKvHeads * kHeadDim, kVWidth = kKvHeads * kVHeadDim;
  std::vector<float> k, v;
  std::vector<std::int32_t> qo_indptr{0}, kv_indptr{0};
  for (const ModelStepItem& item : step.items) {
    std::vector<Row> rows = item.sequence->rows;
    rows.insert(rows.end(), item.new_rows.begin(), item.new_rows.end());
    for (const Row row : rows) {
      push_row(k, row, RowPart::kK, layer, kKWidth);
      push_row(v, row, RowPart::kV, layer, kVWidth);
    }
    qo_indptr.push_back(qo_indptr.back() + static_cast<std::int32_t>(item.new_rows.size()));
    kv_indptr.push_back(kv_indptr.back() + static_cast<std::int32_t>(rows.size()));
  }
  std::vector<std::int32_t> indices(static_cast<std::size_t>(kv_indptr.back()));
  std::iota(indices.begin(), indices.end(), 0);
  const std::vector<std::int32_t> last_page_len(step.items.size(), 1);
  const KvView view{.k = k.data(),
                    .v = v.data(),
                    .k_page_stride = kKWidth * 4,
                    .k_head_stride = kHeadDim * 4,
                    .k_token_stride = kKWidth * 4,
                    .v_page_stride = kVWidth * 4,
                    .v_head_stride = kVHeadDim * 4,
                    .v_token_stride = kVWidth * 4,
                    .num_pages = kv_indptr.back()};
  AttentionConfig config{.num_q_heads = kQHeads,
                         .num_kv_heads = kKvHeads,
                         .head_dim = kHeadDim,
                         .v_head_dim = kVHeadDim,
                         .page_size = 1,
                         .kv_dtype = DType::f32,
                         .variant = variant_};
  config.variant.window_left = windows_[table_of_[layer]];
  config.variant.sink_tokens = windows_[table_of_[layer]] >= 0 ? on_.sinks : 0;
  std::vector<double> want(out.size()), want_lse(lse.size());
  const Result<void> done = reference_attention(
      config,
      {.qo_indptr = qo_indptr, .kv_indptr = kv_indptr, .kv_indices = indices, .kv_last_page_len = last_page_len}, view,
      q, want, want_lse);
  require(done.has_value(), "oracle");
  for (std::size_t i = 0; i < out.size(); ++i) {
    require(std::abs(static_cast<double>(out[i]) - want[i]) < tolerance_, "attention");
  }
  for (std::size_t i = 0; i < lse.size(); ++i) {
    require(std::abs(static_cast<double>(lse[i]) - want_lse[i]) < tolerance_, "lse");
  }
}

}  // namespace pagedkv::testing
