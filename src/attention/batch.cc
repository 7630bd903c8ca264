// Checks of layers, batches and views; nothing that a caller passes is trusted further in.
#include "attention/batch.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>

namespace pagedkv::attention {
namespace {

constexpr std::uint32_t kMaxHeads = 1U << 16, kMaxHeadDim = 1024, kMaxPageSize = 256;
constexpr std::int64_t kMaxStride = std::int64_t{1} << 40;  // bytes, or entries of a mask
// Of products of strides: no sum of them in a kernel can overflow.
constexpr std::int64_t kMaxOffset = std::int64_t{1} << 61;
// Of keys and of positions before the first query row: kernels count both in 32 bits.
constexpr auto kMaxTokens = static_cast<std::int64_t>(kMaxSequenceTokens);

constexpr Error invalid(const char* what) noexcept { return {Errc::kInvalidArgument, what}; }
constexpr Error kTooLong = invalid("a sequence has more than 2^30 tokens");

bool is_csr(const AttentionBatch& batch) noexcept { return !batch.kv_indptr.empty(); }

std::int64_t pages_of(std::int64_t tokens, std::uint32_t page_size) noexcept {
  return (tokens + page_size - 1) / page_size;
}

std::int64_t tokens_of(std::int64_t pages, std::int64_t last_page_len, std::uint32_t page_size) noexcept {
  return pages == 0 ? 0 : (pages - 1) * page_size + last_page_len;
}

bool is_indptr(std::span<const std::int32_t> indptr) noexcept {
  return indptr.front() == 0 && std::is_sorted(indptr.begin(), indptr.end());
}

bool all_ids(std::span<const std::int32_t> ids) noexcept {
  // The sign bit of the union says whether any id is negative; this loop is a plain reduction over vectors.
  std::int32_t all = 0;
  for (const std::int32_t id : ids) all |= id;
  return all >= 0;
}

Result<void> check_csr(const AttentionConfig& config, const AttentionBatch& batch) noexcept {
  const std::size_t count = num_sequences(batch);
  if (batch.kv_indptr.size() != count + 1) return invalid("kv_indptr must have one entry more than sequences");
  if (!batch.block_table.empty() || !batch.seq_lens.empty()) {
    return invalid("a batch has one page table: kv_indptr or block_table, not both");
  }
  if (!is_indptr(batch.kv_indptr)) return invalid("kv_indptr must begin at 0 and not decrease");
  if (batch.kv_indices.size() < static_cast<std::size_t>(batch.kv_indptr.back())) {
    return invalid("kv_indices is shorter than kv_indptr says");
  }
  if (batch.kv_last_page_len.size() != count) return invalid("kv_last_page_len must have one entry a sequence");
  for (std::size_t i = 0; i < count; ++i) {
    const std::int32_t last = batch.kv_last_page_len[i];
    const std::int64_t num_pages = batch.kv_indptr[i + 1] - batch.kv_indptr[i];
    if (num_pages == 0 ? last != 0 : last < 1 || static_cast<std::uint32_t>(last) > config.page_size) {
      return invalid("kv_last_page_len must be 1..page_size, or 0 for a sequence without pages");
    }
    if (tokens_of(num_pages, last, config.page_size) > kMaxTokens) return kTooLong;
  }
  if (!all_ids(batch.kv_indices.first(static_cast<std::size_t>(batch.kv_indptr.back())))) {
    return invalid("a page id is negative");
  }
  return {};
}

Result<void> check_padded(const AttentionConfig& config, const AttentionBatch& batch) noexcept {
  const std::size_t count = num_sequences(batch);
  if (!batch.kv_indices.empty() || !batch.kv_last_page_len.empty()) {
    return invalid("kv_indices and kv_last_page_len need kv_indptr");
  }
  if (batch.seq_lens.size() != count) return invalid("seq_lens must have one entry a sequence");
  const std::int64_t stride = batch.block_table_stride;
  if (stride < 0 || stride > kMaxStride) return invalid("block_table_stride is out of range");
  for (std::size_t i = 0; i < count; ++i) {
    if (batch.seq_lens[i] < 0) return invalid("seq_lens must not be negative");
    if (batch.seq_lens[i] > kMaxTokens) return kTooLong;
    const std::int64_t used = pages_of(batch.seq_lens[i], config.page_size);
    if (used == 0) continue;
    if (used > stride) return invalid("a sequence has more tokens than its row of block_table has pages for");
    const std::size_t size = batch.block_table.size(), row = static_cast<std::size_t>(stride);
    if (static_cast<std::size_t>(used) > size || i > (size - static_cast<std::size_t>(used)) / row) {
      return invalid("block_table is shorter than its stride and the number of sequences say");
    }
    if (!all_ids(batch.block_table.subspan(i * row, static_cast<std::size_t>(used)))) {
      return invalid("a page id is negative");
    }
  }
  return {};
}

Result<void> check_mask(const AttentionConfig& config, const AttentionBatch& batch) noexcept {
  const AttentionMask& mask = batch.mask;
  if (mask.kind == MaskKind::kNone) return {};
  if (mask.kind > MaskKind::kBits) return invalid("unknown kind of mask");
  const std::size_t count = num_sequences(batch);
  if (mask.offsets.size() != count) return invalid("a mask needs one offset a sequence");
  if (!mask.row_strides.empty() && mask.row_strides.size() != count) return invalid("wrong number of mask row strides");
  if (!mask.head_strides.empty() && mask.head_strides.size() != count) {
    return invalid("wrong number of mask head strides");
  }
  if (mask.kind == MaskKind::kAdditive && reinterpret_cast<std::uintptr_t>(mask.bytes.data()) % alignof(float) != 0) {
    return invalid("an additive mask must be aligned to its entries");
  }
  const std::uint64_t capacity = mask.kind == MaskKind::kBits       ? std::uint64_t{mask.bytes.size()} * 8
                                 : mask.kind == MaskKind::kAdditive ? mask.bytes.size() / sizeof(float)
                                                                    : mask.bytes.size();
  for (std::size_t i = 0; i < count; ++i) {
    const SequenceView sequence = read_sequence(config, batch, i);
    const std::int64_t row_stride = sequence.mask_row_stride, head_stride = sequence.mask_head_stride;
    if (sequence.mask_offset < 0 || row_stride < 0 || head_stride < 0 || sequence.mask_offset > kMaxStride ||
        row_stride > kMaxStride || head_stride > kMaxStride) {
      return invalid("mask offsets and strides must be in range and not negative");
    }
    if (sequence.q_len == 0) continue;
    // In f64 the sum cannot overflow, and is exact far beyond every size that fits in memory.
    const double last = static_cast<double>(sequence.mask_offset) +
                        static_cast<double>(head_stride) * (config.num_q_heads - 1.0) +
                        static_cast<double>(row_stride) * static_cast<double>(sequence.q_len - 1) +
                        static_cast<double>(sequence.kv_len);
    // Without keys no entry is read, but where rows would begin is computed all the same.
    if (last > (sequence.kv_len == 0 ? static_cast<double>(kMaxOffset) : static_cast<double>(capacity))) {
      return invalid("the mask is shorter than its offsets and strides say");
    }
  }
  return {};
}

bool is_stride(std::int64_t stride, std::size_t element) noexcept {
  return stride >= -kMaxStride && stride <= kMaxStride && stride % static_cast<std::int64_t>(element) == 0;
}

}  // namespace

Result<void> check_sinks(std::span<const float> sinks, std::uint32_t num_q_heads) noexcept {
  const auto is_sink = [](float value) { return value < std::numeric_limits<float>::infinity(); };  // -inf is no sink
  if (sinks.empty() || (sinks.size() == num_q_heads && std::all_of(sinks.begin(), sinks.end(), is_sink))) return {};
  return invalid("sinks must be one number a query head, below infinity");
}

Result<kernels::AttendParams> read_layer(const AttentionConfig& config) noexcept {
  const AttentionVariant& variant = config.variant;
  const std::uint32_t v_head_dim = config.v_head_dim != 0 ? config.v_head_dim : config.head_dim;
  if (config.num_kv_heads == 0 || config.num_q_heads == 0 || config.num_q_heads > kMaxHeads ||
      config.num_q_heads % config.num_kv_heads != 0) {
    return invalid("num_q_heads must be a multiple of num_kv_heads, both from 1 to 65536");
  }
  if (config.head_dim == 0 || config.head_dim > kMaxHeadDim || v_head_dim > kMaxHeadDim) {
    return invalid("head_dim and v_head_dim must be from 1 to 1024");
  }
  if (config.page_size == 0 || config.page_size > kMaxPageSize) return invalid("page_size must be from 1 to 256");
  if (!is_valid(config.kv_dtype)) return invalid("unknown format of the pages");
  if (!std::isfinite(variant.sm_scale)) return invalid("sm_scale must be finite");
  if (!is_soft_cap(variant)) {
    return invalid("logits_soft_cap must be 0 or from 2^-126 to 1e38, and sm_scale / logits_soft_cap below 1e38");
  }
  const auto is_finite = [](float value) { return std::isfinite(value); };
  if (auto checked = check_sinks(variant.sinks, config.num_q_heads); !checked) return checked.error();
  if (!variant.alibi_slopes.empty() &&
      (variant.alibi_slopes.size() != config.num_q_heads ||
       !std::all_of(variant.alibi_slopes.begin(), variant.alibi_slopes.end(), is_finite))) {
    return invalid("alibi_slopes must be one finite number a query head");
  }
  kernels::AttendParams params = {};
  params.num_q_heads = config.num_q_heads;
  params.num_kv_heads = config.num_kv_heads;
  params.group = config.num_q_heads / config.num_kv_heads;
  params.head_dim = config.head_dim;
  params.v_head_dim = v_head_dim;
  params.page_size = config.page_size;
  params.kv_dtype = config.kv_dtype;
  params.f16_as_bf16 = variant.f16_as_bf16 && config.kv_dtype == DType::f16;
  params.causal = variant.causal;
  params.window_left = variant.window_left < 0 ? -1 : variant.window_left;
  params.sink_tokens = variant.window_left < 0 ? 0 : variant.sink_tokens;
  params.sm_scale = variant.sm_scale != 0 ? variant.sm_scale : 1.0F / std::sqrt(static_cast<float>(config.head_dim));
  params.logits_soft_cap = variant.logits_soft_cap;
  params.alibi_slopes = variant.alibi_slopes.empty() ? nullptr : variant.alibi_slopes.data();
  params.sinks = variant.sinks.empty() ? nullptr : variant.sinks.data();
  return params;
}

std::size_t num_sequences(const AttentionBatch& batch) noexcept {
  return batch.qo_indptr.empty() ? 0 : batch.qo_indptr.size() - 1;
}

Result<void> check_batch(const AttentionConfig& config, const AttentionBatch& batch) noexcept {
  const std::size_t count = num_sequences(batch);
  if (batch.qo_indptr.empty()) return invalid("qo_indptr must have one entry more than sequences");
  if (!is_indptr(batch.qo_indptr)) return invalid("qo_indptr must begin at 0 and not decrease");
  if (static_cast<std::uint64_t>(batch.qo_indptr.back()) * config.num_kv_heads > kMaxHeadRows) {
    return invalid("a batch has more than 2^26 query rows times kv heads");
  }
  if (!batch.q_start.empty() && batch.q_start.size() != count) return invalid("q_start must have one entry a sequence");
  if (auto table = is_csr(batch) ? check_csr(config, batch) : check_padded(config, batch); !table) return table;
  for (const std::int32_t start : batch.q_start) {
    if (start < 0 || start > kMaxTokens) return invalid("q_start must be from 0 to 2^30");
  }
  return check_mask(config, batch);
}

bool is_soft_cap(const AttentionVariant& variant) noexcept {
  constexpr float kLargest = 1e38F;
  const float cap = variant.logits_soft_cap;
  if (cap == 0) return true;
  return cap >= std::numeric_limits<float>::min() && cap <= kLargest && std::abs(variant.sm_scale) / cap < kLargest;
}

SequenceView read_sequence(const AttentionConfig& config, const AttentionBatch& batch, std::size_t index) noexcept {
  SequenceView view;
  view.first_row = batch.qo_indptr[index];
  view.q_len = batch.qo_indptr[index + 1] - view.first_row;
  if (is_csr(batch)) {
    view.pages = batch.kv_indices.data() + batch.kv_indptr[index];
    view.num_pages = batch.kv_indptr[index + 1] - batch.kv_indptr[index];
    view.kv_len = tokens_of(view.num_pages, batch.kv_last_page_len[index], config.page_size);
  } else {
    view.kv_len = batch.seq_lens[index];
    view.num_pages = pages_of(view.kv_len, config.page_size);
    if (view.num_pages != 0) {
      view.pages = batch.block_table.data() + static_cast<std::int64_t>(index) * batch.block_table_stride;
    }
  }
  view.q_start = batch.q_start.empty() ? view.kv_len - view.q_len : batch.q_start[index];
  if (batch.mask.kind != MaskKind::kNone) {
    view.mask_offset = batch.mask.offsets[index];
    view.mask_row_stride = batch.mask.row_strides.empty() ? view.kv_len : batch.mask.row_strides[index];
    view.mask_head_stride = batch.mask.head_strides.empty() ? 0 : batch.mask.head_strides[index];
  }
  return view;
}

KeyRange visible_keys(const kernels::AttendParams& params, std::int64_t kv_len, std::int64_t first_pos,
                      std::int64_t num_rows) noexcept {
  const std::int64_t end = params.causal ? std::clamp<std::int64_t>(first_pos + num_rows, 0, kv_len) : kv_len;
  const std::int64_t begin =
      params.window_left >= 0 ? std::clamp<std::int64_t>(first_pos - params.window_left, 0, end) : 0;
  return {begin, end};
}

Result<void> check_view(const kernels::AttendParams& params, const KvView& pages, std::int64_t page_id_limit) noexcept {
  const std::size_t element = size_of(params.kv_dtype);
  if (pages.num_pages < page_id_limit) return invalid("a page id is not below the number of pages");
  if (page_id_limit > 0 && (pages.k == nullptr || pages.v == nullptr)) return invalid("the view has no pages");
  if (reinterpret_cast<std::uintptr_t>(pages.k) % element != 0 ||
      reinterpret_cast<std::uintptr_t>(pages.v) % element != 0) {
    return invalid("K and V must be aligned to their elements");
  }
  if (!is_stride(pages.k_page_stride, element) || !is_stride(pages.k_head_stride, element) ||
      !is_stride(pages.k_token_stride, element) || !is_stride(pages.v_page_stride, element) ||
      !is_stride(pages.v_head_stride, element) || !is_stride(pages.v_token_stride, element)) {
    return invalid("strides must be multiples of the element size and below 2^40 bytes");
  }
  const std::int64_t page_stride = std::max(std::abs(pages.k_page_stride), std::abs(pages.v_page_stride));
  if (page_stride != 0 && page_id_limit > kMaxOffset / page_stride) {
    return invalid("page strides and ids are too large for an address");
  }
  return {};
}

}  // namespace pagedkv::attention
