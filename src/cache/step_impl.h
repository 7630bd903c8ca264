// The inside of Step: the reserved sequences, and the arrays in which the compute column reads their page tables.
//
//   begin      reserves (sequence/); kReserved
//   write      makes the slots of the new tokens at the first call
//   attend     makes the plans at the first call, one for each page table, shared by its layers
//   finish     commits or rolls back (sequence/); kOver
//
// Layer: cache.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "cache/kv_cache_impl.h"
#include "pagedkv/attention.h"
#include "pagedkv/kv_cache.h"
#include "pagedkv/result.h"
#include "pagedkv/sequence.h"
#include "sequence/control.h"

namespace pagedkv {

struct PAGEDKV_LOCAL Step::Impl {
  /// Reserves the pages of all items. Errors: as KvCache::begin_step, and then nothing changed.
  Result<void> begin(const std::shared_ptr<KvCache::Impl>& cache, std::span<const StepItem> items) noexcept;
  Result<void> write(std::uint32_t layer, ConstTensor k, ConstTensor v) noexcept;
  Result<void> attend(std::uint32_t layer, ConstTensor q, Tensor out, std::span<float> lse) noexcept;
  /// Ends the step: `accepted` [num_items] of the new tokens are held; empty for all of them.
  Result<void> commit(std::span<const std::uint32_t> accepted) noexcept;
  Result<void> commit_all() noexcept;
  void roll_back() noexcept;

  [[nodiscard]] bool is_over() const noexcept { return over_; }
  [[nodiscard]] std::size_t num_items() const noexcept { return items.size(); }

  std::shared_ptr<KvCache::Impl> cache;      ///< Null while the step lies idle.
  std::vector<sequence::ReserveItem> items;  ///< [B]; their spans of ids are not read after `begin`.
  std::uint64_t num_rows = 0;                ///< New tokens of all items.

 private:
  Result<void> check_layer(std::uint32_t layer) const noexcept;
  Result<void> make_slots() noexcept;
  Result<void> make_plans() noexcept;
  Result<void> make_batch();
  [[nodiscard]] bool sees_all(std::size_t table, const Sequence::Control& control) const noexcept;
  void commit_item(Sequence::Control& control, std::uint32_t accepted) noexcept;
  void end() noexcept;

  /// What the tables of a batch do not have in common: the page ids.
  struct Table {
    std::vector<std::int64_t> slots;       // [num_rows]
    std::vector<std::int32_t> kv_indices;  // [pages of all items]
    std::optional<AttentionPlan> plan;
  };

  bool over_ = true;
  bool has_slots_ = false, has_plans_ = false;
  std::vector<Table> tables_;                   // [page tables of a sequence]
  std::vector<std::int32_t> qo_indptr_;         // [B + 1]
  std::vector<std::int32_t> kv_indptr_;         // [B + 1]
  std::vector<std::int32_t> kv_last_page_len_;  // [B]
};

}  // namespace pagedkv
