// A ragged batch from keyword arguments, with the arrays that it borrows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "arguments.h"
#include "arrays.h"
#include "pagedkv/attention.h"

namespace pagedkv::python {

/// qo_indptr; kv_indptr, kv_indices and kv_last_page_len, or block_table and seq_lens; q_start; mask, mask_bits,
/// mask_offsets.
struct BatchArguments {
  explicit BatchArguments(Arguments& arguments);
  /// Raises ValueError unless each sequence's rows and keys are in the mask.
  void check_mask(const AttentionConfig& config) const;

  AttentionBatch batch;
  nanobind::object mask_owner;  ///< Keeps the mask's memory alive: a plan borrows it while it lives.

 private:
  struct MaskShape {
    std::int64_t sequences, heads, rows, keys;
  };

  void take_mask(Arguments& arguments);
  [[nodiscard]] std::int64_t num_keys(std::size_t sequence, std::uint32_t page_size) const;

  Ints qo_indptr_, kv_indptr_, kv_indices_, kv_last_page_len_, block_table_, seq_lens_, q_start_;
  Longs mask_offsets_;
  std::optional<MaskShape> mask_shape_;  ///< Unless the mask has one axis.
  std::vector<std::int64_t> offsets_, row_strides_, head_strides_;
};

inline constexpr const char* kBatchHelp =
    "Page tables come as kv_indptr, kv_indices and kv_last_page_len, or as block_table and seq_lens; lengths are after "
    "append. Integers are lists or arrays. mask, on top of causality and window, is an array [sequences, q rows, keys] "
    "or "
    "[sequences, heads, q rows, keys] of bool (True = visible) or float32 (added to the logits), or a flat one with "
    "mask_offsets, where each sequence's [q rows][keys] entries begin; with mask_bits a flat array of bytes, a bit an "
    "entry, offsets in bits. It is read in place: do not change it while the plan lives.";

}  // namespace pagedkv::python
