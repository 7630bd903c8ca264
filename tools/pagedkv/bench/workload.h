// Pages full of random keys and values, page tables over them, and queries: what an attention benchmark runs on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "pagedkv/attention.h"
#include "pagedkv/page_pool.h"

namespace pagedkv::tool {

/// Most copies of a batch, and most rounds of a measurement: no round would come to a copy beyond them.
inline constexpr std::size_t kMaxCopies = 20'000;

struct WorkloadShape {
  AttentionConfig config;              ///< Spans in its variant are not owned here.
  std::vector<std::int64_t> contexts;  ///< [B] tokens of each sequence, new ones included; 1..2^30.
  std::int64_t query_len = 1;          ///< Query rows of each sequence.
  std::int64_t shared_prefix = 0;      ///< Leading tokens whose pages all sequences share; whole pages.
  bool values_in_keys = false;         ///< MLA: a value is the first v_head_dim elements of its key.
  MaskKind mask = MaskKind::kNone;     ///< One for all heads, that hides one pair in 16 at random.
  bool random_order = true;            ///< Else page tables ascend, and sequences follow each other.
  HugePages huge_pages = HugePages::kTransparent;
  DType q_dtype = DType::bf16;          ///< Of queries and outputs.
  std::uint64_t working_set_bytes = 0;  ///< Copies of the batch, kMaxCopies at most, are made until they fill this.
  std::uint64_t seed = 1;
};

/// Memory for a batch, and for as many copies of it as fill the working set: the caches of the CPU hold none of it
/// when the copies are used in turn. All elements are random; magnitudes from 0.5 to 2, any sign.
class Workload {
 public:
  /// Throws BadInput if the shape is refused or the memory is not to be had.
  explicit Workload(const WorkloadShape& shape);

  [[nodiscard]] std::size_t num_copies() const noexcept { return copies_.size(); }
  [[nodiscard]] std::size_t num_rows() const noexcept { return static_cast<std::size_t>(qo_indptr_.back()); }
  /// The batch over the pages of one copy; borrowed from this object.
  [[nodiscard]] AttentionBatch batch(std::size_t copy) const noexcept;
  [[nodiscard]] KvView view() const noexcept { return view_; }
  [[nodiscard]] ConstTensor q() const noexcept;
  [[nodiscard]] Tensor out() noexcept;
  [[nodiscard]] std::span<float> lse() noexcept { return lse_; }
  /// Memory as large as all copies, apart from them, in one run: for reads to compare with.
  [[nodiscard]] std::span<const std::byte> contiguous() const noexcept { return contiguous_; }
  [[nodiscard]] bool huge_pages() const noexcept { return pool_->stats().huge_pages; }

 private:
  void lay_out(const WorkloadShape& shape);
  void build_tables(const WorkloadShape& shape);
  void make_queries(const WorkloadShape& shape);
  void make_mask(const WorkloadShape& shape);

  std::optional<PagePool> pool_, contiguous_pool_;
  KvView view_;
  DType q_dtype_;
  std::vector<std::vector<std::int32_t>> copies_;  ///< [copy][kv_indptr[B]] page ids.
  std::vector<std::int32_t> qo_indptr_, kv_indptr_, last_page_len_;
  std::uint64_t pages_a_copy_ = 0;  ///< Distinct ones.
  MaskKind mask_kind_ = MaskKind::kNone;
  std::vector<std::byte> mask_;             ///< [B] times [query_len][context] entries.
  std::vector<std::int64_t> mask_offsets_;  ///< [B].
  std::vector<std::byte> q_, out_;          ///< [rows][num_q_heads][head_dim or v_head_dim].
  std::vector<float> lse_;                  ///< [rows][num_q_heads].
  std::span<const std::byte> contiguous_;
};

/// Fills memory with random elements: any sign, magnitudes from 0.5 to 2. Parallel in the caller's arena.
void fill_random(std::span<std::byte> memory, DType dtype, std::uint64_t seed);

}  // namespace pagedkv::tool
