// The steps of the machine: begun, written, attended, and ended in every way.
#include <algorithm>
#include <cmath>
#include <utility>

#include "model/cache_machine.h"

namespace pagedkv::testing {

// A step over the sequences that `mask` names, busy ones too, with some new tokens each.
void CacheMachine::begin(std::uint32_t mask, std::uint32_t counts, std::uint32_t how) {
  if (steps_.size() >= kMaxSteps) return;
  std::vector<std::shared_ptr<ModelSequence>> batch;
  std::vector<std::vector<Token>> ids;
  std::vector<StepItem> items;
  bool any_busy = false;
  std::uint64_t needed = 0;
  for (std::size_t i = 0; i < sequences_.size(); ++i) {
    ModelSequence& s = *sequences_[i];
    const std::uint32_t num_new = 1 + (counts >> (3 * i)) % 5;
    if ((mask >> i & 1) == 0 || s.rows.size() + num_new > kMaxTokens) continue;
    std::vector<Token> known;
    if ((how >> i) % 4 != 0) {  // the others are known from the prompt, or never
      for (std::size_t t = s.rows.size(); t < s.rows.size() + num_new; ++t) {
        known.push_back(t < s.ids.size() ? s.ids[t] : static_cast<Token>((how >> (t % 16)) % 2));
      }
    }
    any_busy = any_busy || s.is_busy;
    needed += s.is_busy ? 0 : pages_to_take(s, num_new);
    batch.push_back(sequences_[i]);
    ids.push_back(std::move(known));
    items.push_back({&s.sequence, num_new, {}});
  }
  if (batch.empty()) return;
  for (std::size_t i = 0; i < items.size(); ++i) items[i].tokens = ids[i];

  const Result<std::uint64_t> asked = guarded([&] { return cache_->pages_needed(items); });
  Result<Step> begun = guarded([&] { return cache_->begin_step(items); });
  if (any_busy) {
    require(asked.error() == Errc::kBusy && begun.error() == Errc::kBusy, "a step with a busy sequence");
    return;
  }
  require(asked.has_value() && *asked == needed, "pages needed");
  const bool fits = used_pages() + needed <= capacity_;
  require(fits ? begun.has_value() : begun.error() == Errc::kOutOfPages, "a step is refused if pages lack");
  if (!fits) return;
  ++counts_.steps_begun;
  ModelStep made{.step = std::move(*begun), .items = {}, .is_written = false};
  for (std::size_t i = 0; i < batch.size(); ++i) {
    made.items.push_back(reserve_item(batch[i], items[i].num_new_tokens, ids[i]));
  }
  steps_.push_back(std::move(made));
}

// The page tables with what was reserved: nothing that was there has changed, but for a copied last page.
ModelStepItem CacheMachine::reserve_item(const std::shared_ptr<ModelSequence>& sequence, std::uint32_t num_new,
                                         std::span<const Token> ids) {
  ModelSequence& s = *sequence;
  ModelStepItem item{.sequence = sequence, .new_rows = {}, .tables_before = s.tables, .ids_before = s.ids};
  const std::size_t held = s.rows.size();
  if (!ids.empty() && s.ids.size() >= held) {
    const std::size_t skip = std::min(s.ids.size() - held, ids.size());
    s.ids.insert(s.ids.end(), ids.begin() + static_cast<std::ptrdiff_t>(skip), ids.end());
  }
  Row row = s.last_row();
  for (std::size_t t = held; t < held + num_new; ++t) {
    row = next_row(row,
                   t < s.ids.size() ? static_cast<std::uint64_t>(s.ids[t]) : (std::uint64_t{1} << 40) + next_nonce_++);
    item.new_rows.push_back(row);
  }
  for (std::uint32_t t = 0; t < tables(); ++t) {
    const std::span<const PageId> pages = s.sequence.pages(t);
    require(pages.size() == pages_of(held + num_new), "a step adds entries");
    PageIds& table = s.tables[t];
    if (held % on_.page_size != 0 && pages[table.size() - 1] != table.back()) {
      s.replaced[t] = std::exchange(table.back(), pages[table.size() - 1]);
      ++counts_.copied_pages;
      poison_fresh(s, t, table.size() - 1, held % on_.page_size);
    }
    for (std::size_t i = table.size(); i < pages.size(); ++i) {
      table.push_back(pages[i]);
      poison_fresh(s, t, i, 0);
    }
  }
  s.is_busy = true;
  return item;
}

// Writes and attends all layers, beginning with any.
void CacheMachine::work(std::uint32_t index) {
  if (steps_.empty()) return;
  ModelStep& step = steps_[index % steps_.size()];
  for (std::uint32_t i = 0; i < on_.layers; ++i) {
    const std::uint32_t layer = (index / 4 + i) % on_.layers;
    std::vector<float> k, v;
    for (const ModelStepItem& item : step.items) {
      for (const Row row : item.new_rows) {
        push_row(k, row, RowPart::kK, layer, kKvHeads * kHeadDim);
        push_row(v, row, RowPart::kV, layer, kKvHeads * kVHeadDim);
      }
    }
    require(guarded([&] { return step.step.write(layer, k, v); }).has_value(), "write");
    attend(step, layer);
  }
  step.is_written = true;
}

void CacheMachine::attend(ModelStep& step, std::uint32_t layer) {
  std::vector<float> q;
  for (const ModelStepItem& item : step.items) {
    for (const Row row : item.new_rows) push_row(q, row, RowPart::kQ, layer, kQHeads * kHeadDim);
  }
  std::vector<float> out(step.step.num_rows() * kQHeads * kVHeadDim, NAN), lse(step.step.num_rows() * kQHeads, NAN);
  const Result<void> attended = guarded([&] { return step.step.attend(layer, q, out, lse); });
  if (sees_released_page(step)) {
    return require(attended.error() == Errc::kInvalidArgument, "attention over a released page is refused");
  }
  require(attended.has_value(), "attend");
  compare_attention(step, layer, q, out, lse);
}

// Whether a page table lacks a page that a new token would see, because the caller slid further than its window.
bool CacheMachine::sees_released_page(const ModelStep& step) const {
  for (const ModelStepItem& item : step.items) {
    for (std::uint32_t t = 0; t < tables(); ++t) {
      const PageIds& table = item.sequence->tables[t];
      for (std::size_t i = 0; i < table.size(); ++i) {
        if (table[i] == kNullPage && sees(t, item.sequence->rows.size(), i)) return true;
      }
    }
  }
  return false;
}

void CacheMachine::write_rows(Sequence& sequence, const ModelSequence& model, std::size_t first_token) {
  const auto dtype = static_cast<DType>(on_.dtype);
  for (std::uint32_t layer = 0; layer < on_.layers; ++layer) {
    const std::span<const PageId> pages = sequence.pages(table_of_[layer]);
    for (std::size_t t = first_token; t < model.rows.size(); ++t) {
      const PageId page = pages[t / on_.page_size];
      if (page == kNullPage) continue;
      for (std::uint32_t head = 0; head < kKvHeads; ++head) {
        std::byte* const k = row_at(page, layer, RowPart::kK, head, t % on_.page_size);
        std::byte* const v = row_at(page, layer, RowPart::kV, head, t % on_.page_size);
        for (std::size_t i = 0; i < kHeadDim; ++i) {
          store_exact(k + i * size_of(dtype), element(model.rows[t], RowPart::kK, layer, head * kHeadDim + i), dtype);
        }
        for (std::size_t i = 0; i < kVHeadDim; ++i) {
          store_exact(v + i * size_of(dtype), element(model.rows[t], RowPart::kV, layer, head * kVHeadDim + i), dtype);
        }
      }
    }
  }
}

// Commits all, commits a part, rolls back, or drops a step.
void CacheMachine::end_step(std::uint32_t index, std::uint32_t how) {
  if (steps_.empty()) return;
  const auto at = steps_.begin() + index % static_cast<std::uint32_t>(steps_.size());
  if (!at->is_written) how |= 2;
  std::vector<std::uint32_t> accepted;
  std::uint64_t num_accepted = 0;
  for (const ModelStepItem& item : at->items) {
    const auto all = static_cast<std::uint32_t>(item.new_rows.size());
    accepted.push_back(how % 4 == 0 ? all : how % 4 == 1 ? (how >> 2) % (all + 1) : 0);
    num_accepted += accepted.back();
  }
  if (how % 4 == 0) require(at->step.commit().has_value(), "commit");
  if (how % 4 == 1) require(at->step.commit(accepted).has_value(), "commit of a part");
  if (how % 4 == 2) at->step.rollback();
  if (how % 4 == 2) require(at->step.commit().error() == Errc::kClosed, "commit after rollback");
  if (how % 4 == 3) at->step = Step();
  ++(how % 4 < 2 ? counts_.steps_committed : counts_.steps_rolled_back);
  counts_.tokens_committed += num_accepted;
  poll(at->items, accepted);
  for (std::size_t i = 0; i < at->items.size(); ++i) end_item(at->items[i], accepted[i]);
  steps_.erase(at);
}

void CacheMachine::end_item(const ModelStepItem& item, std::uint32_t accepted) {
  ModelSequence& s = *item.sequence;
  s.is_busy = false;
  const PageIds replaced = std::exchange(s.replaced, PageIds(tables(), kNullPage));
  if (accepted == 0) {
    s.tables = item.tables_before;
    s.ids = item.ids_before;
    return;
  }
  s.rows.insert(s.rows.end(), item.new_rows.begin(), item.new_rows.begin() + accepted);
  s.ids.resize(std::min(s.ids.size(), std::max(s.rows.size(), item.ids_before.size())));
  const std::size_t num_known = std::min(s.rows.size(), s.ids.size()) / on_.page_size;
  // A commit that fills a page publishes all before it too, if they were cleared.
  const bool fills_page = num_known > (s.rows.size() - accepted) / on_.page_size;
  for (std::uint32_t t = 0; t < tables(); ++t) {
    PageIds& table = s.tables[t];
    const bool is_whole = fills_page && t == chain_ && std::find(table.begin(), table.end(), kNullPage) == table.end();
    const std::span<const PageId> pages = s.sequence.pages(t);
    for (std::size_t i = 0; i < num_known && on_.prefix != 0; ++i) {
      const auto end = s.ids.begin() + static_cast<std::ptrdiff_t>((i + 1) * on_.page_size);
      const std::optional<PageId> published = prefixes_.find({s.tenant, t, {s.ids.begin(), end}});
      require(published.has_value() || !is_whole, "a committed page of known tokens is published");
      // A sequence that was cleared may keep a page of its own beside a published one that holds the same.
      const bool is_merged = !was_cleared_ && is_whole;
      if (is_merged || (published.has_value() && i < pages.size() && pages[i] == *published)) table[i] = *published;
    }
    table.resize(pages_of(s.rows.size()));
  }
  slide_windows(s, s.rows.size());
}

}  // namespace pagedkv::testing
