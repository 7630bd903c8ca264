// Checks of what Python gives as a ragged batch.
#include "batch.h"

#include <string>

namespace nb = nanobind;

namespace pagedkv::python {
namespace {

[[noreturn]] void refuse_mask(const char* what) { throw nb::value_error((std::string("mask: ") + what).c_str()); }

struct MaskArray {
  nb::ndarray<nb::ro, nb::device::cpu, nb::c_contig> array;
  MaskKind kind = MaskKind::kBool;
};

MaskArray mask_array(nb::handle object, bool bits) {
  MaskArray mask;
  if (!nb::try_cast(object, mask.array, false)) {
    PyErr_Clear();
    throw nb::type_error("mask: expected a contiguous array in CPU memory");
  }
  const nb::dlpack::dtype type = mask.array.dtype();
  const bool is_byte = type == nb::dtype<std::uint8_t>();
  if (bits) {
    if (!is_byte) throw nb::type_error("mask: with mask_bits, elements must be uint8");
    mask.kind = MaskKind::kBits;
  } else if (type == nb::dtype<float>()) {
    mask.kind = MaskKind::kAdditive;
  } else if (!is_byte && type != nb::dtype<bool>()) {
    throw nb::type_error("mask: elements must be bool, uint8 or float32");
  }
  return mask;
}

}  // namespace

BatchArguments::BatchArguments(Arguments& arguments)
    : qo_indptr_(ints_of(arguments.take_any("qo_indptr"), "qo_indptr")),
      kv_indptr_(ints_of(arguments.take_any("kv_indptr"), "kv_indptr")),
      kv_indices_(ints_of(arguments.take_any("kv_indices"), "kv_indices")),
      kv_last_page_len_(ints_of(arguments.take_any("kv_last_page_len"), "kv_last_page_len")),
      block_table_(ints_of(arguments.take_any("block_table"), "block_table")),
      seq_lens_(ints_of(arguments.take_any("seq_lens"), "seq_lens")),
      q_start_(ints_of(arguments.take_any("q_start"), "q_start")) {
  if (!block_table_.span.empty() && block_table_.shape.size() != 2) {
    throw nb::value_error("block_table: expected two axes, [sequences, pages]");
  }
  batch.qo_indptr = qo_indptr_.span;
  batch.kv_indptr = kv_indptr_.span;
  batch.kv_indices = kv_indices_.span;
  batch.kv_last_page_len = kv_last_page_len_.span;
  batch.block_table = block_table_.span;
  batch.block_table_stride = block_table_.shape.size() == 2 ? block_table_.shape[1] : 0;
  batch.seq_lens = seq_lens_.span;
  batch.q_start = q_start_.span;
  take_mask(arguments);
}

void BatchArguments::take_mask(Arguments& arguments) {
  const nb::object object = arguments.take_any("mask");
  const bool bits = arguments.take("mask_bits", false);
  mask_offsets_ = longs_of(arguments.take_any("mask_offsets"), "mask_offsets");
  if (object.is_none()) {
    if (bits || !mask_offsets_.span.empty()) refuse_mask("mask_bits and mask_offsets need a mask");
    return;
  }
  const MaskArray mask = mask_array(object, bits);
  batch.mask.kind = mask.kind;
  batch.mask.bytes = {static_cast<const std::byte*>(mask.array.data()), mask.array.nbytes()};
  const std::size_t ndim = mask.array.ndim();
  if (ndim == 1) {
    batch.mask.offsets = mask_offsets_.span;
  } else {
    if (bits || !mask_offsets_.span.empty()) refuse_mask("mask_bits and mask_offsets go with one axis");
    if (ndim != 3 && ndim != 4) refuse_mask("expected 1, 3 or 4 axes");
    const auto extent = [&](std::size_t axis) { return static_cast<std::int64_t>(mask.array.shape(axis)); };
    mask_shape_ = {
        .sequences = extent(0), .heads = ndim == 4 ? extent(1) : 1, .rows = extent(ndim - 2), .keys = extent(ndim - 1)};
    const std::int64_t head_stride = extent(ndim - 2) * extent(ndim - 1);
    const std::int64_t sequence_stride = ndim == 4 ? extent(1) * head_stride : head_stride;
    for (std::int64_t i = 0; i < extent(0); ++i) {
      offsets_.push_back(i * sequence_stride);
      row_strides_.push_back(extent(ndim - 1));
      head_strides_.push_back(ndim == 4 && extent(1) > 1 ? head_stride : 0);
    }
    batch.mask.offsets = offsets_;
    batch.mask.row_strides = row_strides_;
    batch.mask.head_strides = head_strides_;
  }
  mask_owner = nb::cast(mask.array);
}

// The library sees one buffer with strides: a sequence longer than an axis would read the entries of the next one.
void BatchArguments::check_mask(const AttentionConfig& config) const {
  if (!mask_shape_) return;
  const auto num_sequences = static_cast<std::size_t>(mask_shape_->sequences);
  if (batch.qo_indptr.size() != num_sequences + 1) refuse_mask("its first axis is not the number of sequences");
  if (mask_shape_->heads != 1 && mask_shape_->heads != config.num_q_heads) {
    refuse_mask("its second axis is neither 1 nor num_q_heads");
  }
  for (std::size_t i = 0; i < num_sequences; ++i) {
    if (std::int64_t{batch.qo_indptr[i + 1]} - batch.qo_indptr[i] > mask_shape_->rows) {
      refuse_mask("a sequence has more query rows than the mask");
    }
    if (num_keys(i, config.page_size) > mask_shape_->keys) refuse_mask("a sequence has more keys than the mask");
  }
}

// Of a sequence; 0 if the arrays are too short, which the library refuses.
std::int64_t BatchArguments::num_keys(std::size_t sequence, std::uint32_t page_size) const {
  if (!batch.seq_lens.empty()) return sequence < batch.seq_lens.size() ? batch.seq_lens[sequence] : 0;
  if (sequence + 1 >= batch.kv_indptr.size() || sequence >= batch.kv_last_page_len.size()) return 0;
  const std::int64_t num_pages = std::int64_t{batch.kv_indptr[sequence + 1]} - batch.kv_indptr[sequence];
  return num_pages <= 0 ? 0 : (num_pages - 1) * page_size + batch.kv_last_page_len[sequence];
}

}  // namespace pagedkv::python
