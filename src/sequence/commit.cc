// The end of a reservation: tokens held, pages given back, windows slid.
#include <algorithm>

#include "core/align.h"
#include "core/check.h"
#include "pool/pool_impl.h"
#include "sequence/control.h"
#include "sequence/page_releaser.h"
#include "sequence/sequence_store.h"

namespace pagedkv::sequence {

namespace {
using Control = Sequence::Control;
}

std::uint64_t slide(Control& control, PageTable& table, std::uint64_t num_tokens, std::uint64_t window,
                    std::uint64_t sink_tokens) noexcept {
  if (num_tokens <= window) return 0;
  const std::uint64_t page_size = control.store->page_size;
  const std::uint64_t num_behind = (num_tokens - window) / page_size;  // pages that no token to come sees
  const std::uint64_t first = std::max<std::uint64_t>(table.num_released, ceil_div(sink_tokens, page_size));
  PageReleaser released(*control.store->pool);
  std::uint64_t num_pages = 0;
  for (std::uint64_t i = first; i < num_behind; ++i) {
    if (table.pages[i] == kNullPage) continue;
    released.add(table.pages[i]);
    table.pages[i] = kNullPage;
    ++num_pages;
  }
  table.num_released = std::max(table.num_released, static_cast<std::uint32_t>(num_behind));
  return num_pages;
}

void commit(Control& control, std::uint64_t accepted, NewTokens tokens) noexcept {
  PAGEDKV_ASSERT(control.is_busy() && accepted <= control.num_new_tokens);
  const SequenceStore::Impl& store = *control.store;
  const std::uint64_t first_unseen = control.num_tokens + (tokens == NewTokens::kAttended ? accepted : 0);
  control.num_tokens += accepted;
  const std::uint64_t num_ids = std::max(control.num_tokens, control.num_ids_before);
  if (num_ids < control.token_ids.size()) control.token_ids.resize(num_ids);

  {
    PageReleaser released(*store.pool);
    const std::uint64_t num_pages = ceil_div(control.num_tokens, store.page_size);
    for (PageTable& table : control.tables) {
      while (table.pages.size() > num_pages) {
        released.add(table.pages.back());
        table.pages.pop_back();
      }
      if (table.replaced != kNullPage) {
        PageId& last_before = table.pages[table.num_before - 1];
        if (accepted == 0) std::swap(last_before, table.replaced);
        released.add(table.replaced);
        table.replaced = kNullPage;
      }
    }
  }

  for (std::size_t g = 0; g < control.tables.size() && accepted > 0; ++g) {  // a rollback releases nothing else
    const LayerGroup& group = store.groups[g];
    if (group.window_left < 0) continue;
    slide(control, control.tables[g], first_unseen, static_cast<std::uint64_t>(group.window_left), group.sink_tokens);
  }

  const std::uint32_t before = control.state.fetch_and(~Control::kBusy, std::memory_order_acq_rel);
  if ((before & Control::kOrphaned) != 0) destroy(control);
}

void destroy(Control& control) noexcept {
  {
    PageReleaser released(*control.store->pool);
    for (PageTable& table : control.tables) {
      for (std::size_t i = table.pages.size(); i-- > 0;) released.add(table.pages[i]);
    }
  }
  SequenceStore::Impl::free_control(&control);
}

}  // namespace pagedkv::sequence
