// KvCacheOptions after they were checked: what a cache keeps of them, without borrowed memory.
//
// Layer: cache.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "cache/layer_map.h"
#include "cache/page_layout.h"
#include "pagedkv/attention.h"
#include "pagedkv/kv_cache.h"
#include "pagedkv/result.h"

namespace pagedkv::cache {

/// Checked options. Not movable: `options` points into it.
class Config {
 public:
  Config() noexcept = default;
  Config(const Config&) = delete;
  Config& operator=(const Config&) = delete;

  /// Checks `options` and copies what they borrow.
  ///
  /// Errors: kInvalidArgument (a shape, capacity or scale out of range), kUnsupported (unknown target), kOutOfMemory
  Result<void> assign(const KvCacheOptions& options) noexcept;

  [[nodiscard]] const KvCacheOptions& options() const noexcept { return options_; }
  [[nodiscard]] const PageLayout& layout() const noexcept { return layout_; }
  [[nodiscard]] const LayerMap& layers() const noexcept { return layers_; }
  /// Shape and arithmetic of the layers of a page table. Requires: table < layers().tables().size()
  [[nodiscard]] const AttentionConfig& attention(std::size_t table = 0) const noexcept { return attention_[table]; }
  /// Sinks of a layer [num_q_heads], or empty if those of the variant are for all layers.
  [[nodiscard]] std::span<const float> sinks(std::uint32_t layer) const noexcept {
    const std::size_t heads = options_.shape.num_q_heads;
    return sinks_.size() > heads ? std::span<const float>(sinks_).subspan(layer * heads, heads)
                                 : std::span<const float>();
  }
  [[nodiscard]] std::uint64_t capacity_pages() const noexcept { return capacity_pages_; }
  /// Page ids are below this for ever.
  [[nodiscard]] std::uint64_t max_pages() const noexcept {
    return std::max(capacity_pages_, options_.max_capacity_pages);
  }

 private:
  void copy_borrowed(const KvCacheOptions& options);
  void make_attention();

  KvCacheOptions options_;
  PageLayout layout_;
  LayerMap layers_;
  std::vector<AttentionConfig> attention_;  // [tables]
  std::uint64_t capacity_pages_ = 0;
  std::vector<float> sinks_;         // [num_q_heads] or [num_layers][num_q_heads] or empty
  std::vector<float> alibi_slopes_;  // [num_q_heads] or empty
  std::vector<std::vector<std::uint32_t>> group_layers_;
  std::vector<KvLayerGroup> groups_;  // over group_layers_
  std::string target_;
};

}  // namespace pagedkv::cache
