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

}  // namespace pagedkv::python
