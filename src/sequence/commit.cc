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

// Releases pages that lie wholly behind the window of every token to come, but for those of sinks.
void slide(const Control& control, PageTable& table, const LayerGroup& group, std::uint64_t page_size,
           PageReleaser& released) noexcept {
  if (group.window_left < 0) return;
  const auto window = static_cast<std::uint64_t>(group.window_left);
  if (control.num_tokens <= window) return;
  const std::uint64_t num_behind = (control.num_tokens - window) / page_size;  // pages
  const std::uint64_t first = std::max<std::uint64_t>(table.num_released, ceil_div(group.sink_tokens, page_size));
  for (std::uint64_t i = first; i < num_behind; ++i) {
    released.add(table.pages[i]);
    table.pages[i] = kNullPage;
  }
  table.num_released = std::max(table.num_released, static_cast<std::uint32_t>(num_behind));
}

}  // namespace

void commit(Control& control, std::uint64_t accepted) noexcept {
  PAGEDKV_ASSERT(control.is_busy() && accepted <= control.num_new_tokens);
  const SequenceStore::Impl& store = *control.store;
  control.num_tokens += accepted;
  control.num_new_tokens = 0;
  const std::uint64_t num_ids = std::max(control.num_tokens, control.num_ids_before);
  if (num_ids < control.token_ids.size()) control.token_ids.resize(num_ids);

  {
    PageReleaser released(*store.pool);
    const std::uint64_t num_pages = ceil_div(control.num_tokens, store.page_size);
    for (std::size_t g = 0; g < control.tables.size(); ++g) {
      PageTable& table = control.tables[g];
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
      slide(control, table, store.groups[g], store.page_size, released);
    }
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
