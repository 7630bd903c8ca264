// Computes the layout of a page from the shape of a model.
#include "cache/page_layout.h"

#include <cstring>

#include "core/align.h"
#include "core/check.h"

namespace pagedkv::cache {
namespace {

/// The start of what follows `run_bytes`: the next cache line if the gap is small beside the run, else right behind.
/// A page of few narrow rows would be mostly padding otherwise. Every run stays a multiple of the element size.
std::uint64_t padded_run(std::uint64_t run_bytes) noexcept {
  const std::uint64_t aligned = round_up(run_bytes, kCacheLineBytes);
  return (aligned - run_bytes) * 32 <= run_bytes ? aligned : run_bytes;
}

bool in_range(std::uint32_t value, std::uint32_t max) noexcept { return value >= 1 && value <= max; }

}  // namespace

Result<PageLayout> PageLayout::create(const ModelShape& shape, std::uint32_t page_size) noexcept {
  const auto invalid = [](const char* what) { return Error{Errc::kInvalidArgument, what}; };
  if (!is_valid(shape.dtype)) return invalid("dtype of the pages is unknown");
  if (!in_range(shape.num_layers, kMaxLayers)) return invalid("num_layers must be 1..4096");
  if (!in_range(shape.num_q_heads, kMaxHeads)) return invalid("num_q_heads must be 1..65536");
  if (!in_range(shape.num_kv_heads, kMaxHeads)) return invalid("num_kv_heads must be 1..65536");
  if (shape.num_q_heads % shape.num_kv_heads != 0) return invalid("num_q_heads must be a multiple of num_kv_heads");
  if (!in_range(shape.head_dim, kMaxHeadDim)) return invalid("head_dim must be 1..1024");
  if (shape.v_head_dim > kMaxHeadDim) return invalid("v_head_dim must be 0..1024");
  if (!in_range(page_size, kMaxPageSize)) return invalid("page_size must be 1..256");

  const auto element_bytes = static_cast<std::uint32_t>(size_of(shape.dtype));
  const std::uint32_t v_head_dim = shape.v_head_dim == 0 ? shape.head_dim : shape.v_head_dim;
  PageLayout layout;
  layout.num_layers = shape.num_layers;
  layout.num_kv_heads = shape.num_kv_heads;
  layout.page_size = page_size;
  layout.k_row_bytes = shape.head_dim * element_bytes;
  layout.v_row_bytes = v_head_dim * element_bytes;
  // The largest page, 4096 layers of 65536 heads of 256 rows of 2 * 4 KiB, has 2^49 bytes: nothing below overflows.
  const std::uint64_t k_run = padded_run(std::uint64_t{page_size} * layout.k_row_bytes);
  const std::uint64_t v_run = padded_run(std::uint64_t{page_size} * layout.v_row_bytes);
  layout.v_offset = static_cast<std::uint32_t>(k_run);
  layout.head_stride = k_run + v_run;
  layout.layer_stride = layout.head_stride * shape.num_kv_heads;
  layout.page_bytes = round_up(layout.layer_stride * shape.num_layers, kCacheLineBytes);
  return layout;
}

KvWriteView PageLayout::write_view(std::byte* base, std::uint32_t layer, std::uint64_t num_pages) const noexcept {
  PAGEDKV_ASSERT(layer < num_layers);
  std::byte* const k = base + layer * layer_stride;
  KvWriteView view;
  view.k = k;
  view.v = k + v_offset;
  view.k_page_stride = view.v_page_stride = static_cast<std::int64_t>(page_bytes);
  view.k_head_stride = view.v_head_stride = static_cast<std::int64_t>(head_stride);
  view.k_token_stride = k_row_bytes;
  view.v_token_stride = v_row_bytes;
  view.num_pages = static_cast<std::int64_t>(num_pages);
  return view;
}

KvView PageLayout::view(const std::byte* base, std::uint32_t layer, std::uint64_t num_pages) const noexcept {
  return write_view(const_cast<std::byte*>(base), layer, num_pages);  // as a KvView it only reads
}

void PageLayout::copy_rows(std::byte* to_page, const std::byte* from_page, std::uint32_t num_tokens) const noexcept {
  PAGEDKV_ASSERT(num_tokens <= page_size);
  const std::size_t k_bytes = std::size_t{num_tokens} * k_row_bytes;
  const std::size_t v_bytes = std::size_t{num_tokens} * v_row_bytes;
  const std::uint64_t num_heads = std::uint64_t{num_layers} * num_kv_heads;
  for (std::uint64_t head = 0; head < num_heads; ++head) {  // layers follow each other without a gap
    const std::uint64_t offset = head * head_stride;
    std::memcpy(to_page + offset, from_page + offset, k_bytes);
    std::memcpy(to_page + offset + v_offset, from_page + offset + v_offset, v_bytes);
  }
}

}  // namespace pagedkv::cache
