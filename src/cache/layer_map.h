// Which page table a layer belongs to, and which place it has in the pages of that table.
//
// Layers that see the same keys share page tables. All tables of a cache share one pool, so their pages must have equal
// bytes: a page holds `layers_per_page` layers, and a group of more layers takes several tables.
//
//   12 sliding + 4 full layers, 4 a page        tables 0 1 2 (sliding)  3 (full)
//
// Layer: cache.
#pragma once

#include <cstdint>
#include <vector>

#include "pagedkv/kv_cache.h"
#include "pagedkv/result.h"
#include "pagedkv/sequence.h"

namespace pagedkv::cache {

struct LayerPlace {
  std::uint32_t table = 0;  ///< Of Sequence::pages.
  std::uint32_t index = 0;  ///< Of the layer among those of a page.
};

class LayerMap {
 public:
  /// Throws std::bad_alloc. Requires: options.shape.num_layers in range.
  ///
  /// Errors: kInvalidArgument  a layer in no group or in two, a window below -1, more than kMaxLayerGroups tables
  Result<void> assign(const KvCacheOptions& options);

  [[nodiscard]] std::uint32_t layers_per_page() const noexcept { return layers_per_page_; }
  [[nodiscard]] const std::vector<LayerPlace>& places() const noexcept { return places_; }  ///< [num_layers]
  [[nodiscard]] const std::vector<LayerGroup>& tables() const noexcept { return tables_; }  ///< At least one.

 private:
  std::uint32_t layers_per_page_ = 0;
  std::vector<LayerPlace> places_;
  std::vector<LayerGroup> tables_;
};

}  // namespace pagedkv::cache
