// Checks what a caller asks of a cache, before any memory is reserved.
#include "cache/config.h"

#include <algorithm>
#include <cmath>
#include <new>
#include <span>

#include "attention/batch.h"
#include "core/align.h"
#include "cpu/targets.h"

namespace pagedkv::cache {
namespace {

constexpr std::uint64_t kMaxPages = 0x7fffffff;  // page ids are 31 bits wide
constexpr std::uint64_t kMaxBytes = INT64_MAX;   // strides and offsets are signed

Error invalid(const char* what) noexcept { return {Errc::kInvalidArgument, what}; }

bool all_finite(std::span<const float> values) noexcept {
  return std::all_of(values.begin(), values.end(), [](float x) { return std::isfinite(x); });
}

/// A sink of minus infinity is none: its layer or head has no share of the softmax without a value.
bool all_sinks(std::span<const float> values) noexcept {
  return std::all_of(values.begin(), values.end(), [](float x) { return x < INFINITY; });
}

Result<void> check_variant(const AttentionVariant& variant, const ModelShape& shape) noexcept {
  const std::size_t num_q_heads = shape.num_q_heads;
  if (!std::isfinite(variant.sm_scale)) return invalid("sm_scale must be finite");
  if (!attention::is_soft_cap(variant)) {
    return invalid("logits_soft_cap must be 0 or from 2^-126 to 1e38, and sm_scale / logits_soft_cap below 1e38");
  }
  if (variant.window_left < -1) return invalid("window_left must be -1 (off) or more");
  if (!variant.sinks.empty() && variant.sinks.size() != num_q_heads &&
      variant.sinks.size() != shape.num_layers * num_q_heads) {
    return invalid("sinks must have num_q_heads entries, or as many for each layer");
  }
  if (!variant.alibi_slopes.empty() && variant.alibi_slopes.size() != num_q_heads) {
    return invalid("alibi_slopes must have num_q_heads entries");
  }
  if (!all_sinks(variant.sinks)) return invalid("sinks must be numbers below infinity");
  if (!all_finite(variant.alibi_slopes)) return invalid("alibi_slopes must be finite");
  return {};
}

Result<std::uint64_t> resolve_capacity(const KvCacheOptions& options, std::uint64_t page_bytes) noexcept {
  if ((options.capacity_bytes == 0) == (options.capacity_pages == 0)) {
    return invalid("give one of capacity_bytes and capacity_pages");
  }
  const std::uint64_t pages =
      options.capacity_pages != 0 ? options.capacity_pages : options.capacity_bytes / page_bytes;
  if (pages == 0) return invalid("capacity_bytes is less than one page");
  if (pages > kMaxPages) return invalid("capacity is more than 2^31 - 1 pages");
  std::uint64_t bytes = 0;
  if (options.max_capacity_pages > kMaxPages) return invalid("max_capacity_pages is more than 2^31 - 1 pages");
  if (options.max_capacity_pages != 0 && options.max_capacity_pages < pages) {
    return invalid("max_capacity_pages is less than the capacity");
  }
  if (!checked_mul(std::max(pages, options.max_capacity_pages), page_bytes, bytes) || bytes > kMaxBytes) {
    return invalid("capacity overflows the address space");
  }
  if (options.watermark_pages > pages) return invalid("watermark_pages is more than the capacity");
  return pages;
}

}  // namespace

Result<void> Config::assign(const KvCacheOptions& options) noexcept try {
  // The whole shape is checked before anything is sized by it.
  const Result<PageLayout> whole = PageLayout::create(options.shape, options.page_size);
  if (!whole) return whole.error();
  if (Result<void> checked = check_variant(options.attention, options.shape); !checked) return checked;
  if (Result<void> assigned = layers_.assign(options); !assigned) return assigned;
  ModelShape page_shape = options.shape;
  page_shape.num_layers = layers_.layers_per_page();
  layout_ = PageLayout::create(page_shape, options.page_size).value();
  const Result<std::uint64_t> capacity = resolve_capacity(options, layout_.page_bytes);
  if (!capacity) return capacity.error();
  if (options.huge_pages > HugePages::kTransparent) return invalid("huge_pages is unknown");
  // Chosen here, once: all steps compute alike, and none of them looks at the environment.
  const auto target = cpu::choose_target(options.target);
  if (!target) return target.error();
  target_ = (*target)->name;
  capacity_pages_ = *capacity;
  copy_borrowed(options);
  make_attention();
  return {};
} catch (const std::bad_alloc&) {
  return Error{Errc::kOutOfMemory, "no memory for the options of the cache"};
}

void Config::copy_borrowed(const KvCacheOptions& options) {
  options_ = options;
  sinks_.assign(options.attention.sinks.begin(), options.attention.sinks.end());
  alibi_slopes_.assign(options.attention.alibi_slopes.begin(), options.attention.alibi_slopes.end());
  for (const KvLayerGroup& group : options.layer_groups) {
    group_layers_.emplace_back(group.layers.begin(), group.layers.end());
    groups_.push_back({group_layers_.back(), group.window_left, group.sink_tokens});
  }
  options_.attention.sinks = sinks_;
  options_.attention.alibi_slopes = alibi_slopes_;
  options_.target = target_;
  options_.layer_groups = groups_;
}

void Config::make_attention() {
  const ModelShape& shape = options_.shape;
  for (const LayerGroup& table : layers_.tables()) {
    attention_.push_back({.num_q_heads = shape.num_q_heads,
                          .num_kv_heads = shape.num_kv_heads,
                          .head_dim = shape.head_dim,
                          .v_head_dim = shape.v_head_dim,
                          .page_size = options_.page_size,
                          .kv_dtype = shape.dtype,
                          .variant = options_.attention,
                          .target = options_.target,
                          .cascade = options_.cascade});
    AttentionVariant& variant = attention_.back().variant;
    variant.window_left = table.window_left;
    variant.sink_tokens = table.sink_tokens;
    if (sinks_.size() > shape.num_q_heads) variant.sinks = {};  // given with each run
  }
}

}  // namespace pagedkv::cache
