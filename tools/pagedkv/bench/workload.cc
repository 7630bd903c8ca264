// Lays out pages as the library's cache does: [kv_head][K, V][token][dim].
#include "bench/workload.h"

#include <tbb/blocked_range.h>
#include <tbb/parallel_for.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>

#include "tool.h"

namespace pagedkv::tool {
namespace {

constexpr std::uint64_t kContiguousPageBytes = std::uint64_t{2} << 20;

/// Sign, lowest exponent bit and mantissa are random, the rest of the exponent is fixed: 0.5 <= |x| < 2.
struct Pattern {
  std::uint64_t random_bits, fixed_bits;
};
Pattern pattern_of(DType dtype) {
  switch (dtype) {
    case DType::f32: return {0x80FFFFFF80FFFFFFULL, 0x3F0000003F000000ULL};
    case DType::f16: return {0x87FF87FF87FF87FFULL, 0x3800380038003800ULL};
    case DType::bf16: break;
  }
  return {0x80FF80FF80FF80FFULL, 0x3F003F003F003F00ULL};
}

std::uint64_t splitmix(std::uint64_t x) {
  x += 0x9E3779B97F4A7C15ULL;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
  return x ^ (x >> 31);
}

/// All pages of a new pool, in memory and full of random elements.
PagePool make_filled_pool(std::uint64_t page_bytes, std::uint64_t pages, HugePages huge_pages, DType dtype,
                          std::uint64_t seed) {
  PagePool pool = value_or_bad_input(
      PagePool::create({.page_bytes = page_bytes, .capacity_pages = pages, .huge_pages = huge_pages}),
      "creating a pool");
  std::vector<PageId> all(static_cast<std::size_t>(pages));
  value_or_bad_input(pool.allocate(all), "allocating pages");
  fill_random({pool.base(), static_cast<std::size_t>(page_bytes * pages)}, dtype, seed);
  return pool;
}

}  // namespace

void fill_random(std::span<std::byte> memory, DType dtype, std::uint64_t seed) {
  const Pattern pattern = pattern_of(dtype);
  const std::size_t words = memory.size() / sizeof(std::uint64_t);
  tbb::parallel_for(tbb::blocked_range<std::size_t>(0, words, std::size_t{1} << 16),
                    [&](const tbb::blocked_range<std::size_t>& range) {
                      for (std::size_t i = range.begin(); i < range.end(); ++i) {
                        const std::uint64_t word = (splitmix(seed + i) & pattern.random_bits) | pattern.fixed_bits;
                        std::memcpy(memory.data() + i * sizeof word, &word, sizeof word);
                      }
                    });
  const std::uint64_t last = pattern.fixed_bits;
  std::memcpy(memory.data() + words * sizeof last, &last, memory.size() - words * sizeof last);
}

Workload::Workload(const WorkloadShape& shape) : q_dtype_(shape.q_dtype) {
  build_tables(shape);
  lay_out(shape);
  make_queries(shape);
  if (shape.mask != MaskKind::kNone) make_mask(shape);
}

/// Page tables with ids of a perfect order: shared pages first, then each sequence's own. `lay_out` renames them.
void Workload::build_tables(const WorkloadShape& shape) {
  const std::int64_t page_size = shape.config.page_size;
  const std::int64_t shared_pages = shape.shared_prefix / page_size;
  std::vector<std::int32_t> table;
  std::int64_t next = shared_pages;
  qo_indptr_ = {0};
  kv_indptr_ = {0};
  for (const std::int64_t context : shape.contexts) {
    const std::int64_t pages = (context + page_size - 1) / page_size;
    for (std::int64_t p = 0; p < pages; ++p) {
      table.push_back(static_cast<std::int32_t>(p < shared_pages ? p : next++));
    }
    qo_indptr_.push_back(qo_indptr_.back() + static_cast<std::int32_t>(shape.query_len));
    kv_indptr_.push_back(static_cast<std::int32_t>(table.size()));
    last_page_len_.push_back(static_cast<std::int32_t>(context - (pages - 1) * page_size));
  }
  pages_a_copy_ = static_cast<std::uint64_t>(next);
  copies_.push_back(std::move(table));
}

void Workload::lay_out(const WorkloadShape& shape) {
  const AttentionConfig& config = shape.config;
  const std::uint64_t element_bytes = size_of(config.kv_dtype);
  const std::uint64_t v_dim = config.v_head_dim == 0 ? config.head_dim : config.v_head_dim;
  const std::uint64_t row_bytes = (config.head_dim + (shape.values_in_keys ? 0 : v_dim)) * element_bytes;
  const std::uint64_t head_bytes = row_bytes * config.page_size;
  const std::uint64_t page_bytes = (head_bytes * config.num_kv_heads + 63) / 64 * 64;
  const std::uint64_t num_copies =
      std::clamp<std::uint64_t>(shape.working_set_bytes / (pages_a_copy_ * page_bytes), 1, kMaxCopies);
  const std::uint64_t num_pages = num_copies * pages_a_copy_;
  if (num_pages > std::uint64_t{1} << 30) throw BadInput("the working set needs more pages than a page table can name");

  pool_.emplace(make_filled_pool(page_bytes, num_pages, shape.huge_pages, config.kv_dtype, shape.seed));
  const std::uint64_t contiguous_pages = (num_pages * page_bytes + kContiguousPageBytes - 1) / kContiguousPageBytes;
  contiguous_pool_.emplace(
      make_filled_pool(kContiguousPageBytes, contiguous_pages, shape.huge_pages, config.kv_dtype, shape.seed + 1));
  contiguous_ = {contiguous_pool_->base(), static_cast<std::size_t>(num_pages * page_bytes)};

  std::vector<std::int32_t> names(static_cast<std::size_t>(num_pages));
  std::iota(names.begin(), names.end(), 0);
  if (shape.random_order) std::shuffle(names.begin(), names.end(), std::mt19937_64(shape.seed));
  copies_.resize(static_cast<std::size_t>(num_copies), copies_[0]);
  for (std::size_t copy = 0; copy < copies_.size(); ++copy) {
    for (std::int32_t& page : copies_[copy]) page = names[copy * pages_a_copy_ + static_cast<std::size_t>(page)];
  }

  const auto page_stride = static_cast<std::int64_t>(page_bytes);
  const auto k_token_stride = static_cast<std::int64_t>(config.head_dim * element_bytes);
  const std::uint64_t v_offset = shape.values_in_keys ? 0 : config.head_dim * element_bytes * config.page_size;
  view_ = {.k = pool_->base(),
           .v = pool_->base() + v_offset,
           .k_page_stride = page_stride,
           .k_head_stride = static_cast<std::int64_t>(head_bytes),
           .k_token_stride = k_token_stride,
           .v_page_stride = page_stride,
           .v_head_stride = static_cast<std::int64_t>(head_bytes),
           .v_token_stride = shape.values_in_keys ? k_token_stride : static_cast<std::int64_t>(v_dim * element_bytes),
           .num_pages = static_cast<std::int64_t>(num_pages)};
}

void Workload::make_queries(const WorkloadShape& shape) {
  const AttentionConfig& config = shape.config;
  const std::size_t row_heads = num_rows() * config.num_q_heads;
  const std::size_t v_dim = config.v_head_dim == 0 ? config.head_dim : config.v_head_dim;
  q_.resize(row_heads * config.head_dim * size_of(q_dtype_));
  out_.resize(row_heads * v_dim * size_of(q_dtype_));
  lse_.resize(row_heads);
  fill_random(q_, q_dtype_, shape.seed + 2);
}

void Workload::make_mask(const WorkloadShape& shape) {
  mask_kind_ = shape.mask;
  std::int64_t entries = 0;
  for (const std::int64_t context : shape.contexts) {
    mask_offsets_.push_back(entries);
    entries += shape.query_len * context;
  }
  const auto count = static_cast<std::size_t>(entries);
  const std::size_t entry_bytes = shape.mask == MaskKind::kAdditive ? sizeof(float) : 1;
  mask_.assign(shape.mask == MaskKind::kBits ? (count + 7) / 8 : count * entry_bytes, std::byte{0});
  for (std::size_t i = 0; i < count; ++i) {
    const bool is_visible = splitmix(shape.seed + i) % 16 != 0;
    if (shape.mask == MaskKind::kAdditive) {
      const float entry = is_visible ? 0.5F : -std::numeric_limits<float>::infinity();
      std::memcpy(mask_.data() + i * sizeof entry, &entry, sizeof entry);
    } else if (is_visible) {
      mask_[shape.mask == MaskKind::kBits ? i / 8 : i] |= std::byte{1} << (shape.mask == MaskKind::kBits ? i % 8 : 0);
    }
  }
}

AttentionBatch Workload::batch(std::size_t copy) const noexcept {
  return {.qo_indptr = qo_indptr_,
          .kv_indptr = kv_indptr_,
          .kv_indices = copies_[copy],
          .kv_last_page_len = last_page_len_,
          .mask = {.kind = mask_kind_, .bytes = mask_, .offsets = mask_offsets_}};
}

ConstTensor Workload::q() const noexcept { return {q_.data(), q_.size() / size_of(q_dtype_), q_dtype_}; }
Tensor Workload::out() noexcept { return {out_.data(), out_.size() / size_of(q_dtype_), q_dtype_}; }

}  // namespace pagedkv::tool
