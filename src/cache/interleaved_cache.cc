// The interleaved cache: pages of a pool of its own, taken in order, so that all rows are one run of memory.
#include "pagedkv/interleaved_cache.h"

#include <algorithm>
#include <new>
#include <utility>
#include <vector>

#include "core/align.h"
#include "pagedkv/attention.h"
#include "pagedkv/page_pool.h"

namespace pagedkv {
namespace {

constexpr std::uint32_t kPageSize = 64;  // tokens; 64 * 2 * 4 bytes a dim, a multiple of 64: pages leave no gap
constexpr Error kMovedFrom{Errc::kClosed, "the interleaved cache was moved from"};

Error invalid(const char* what) noexcept { return {Errc::kInvalidArgument, what}; }

}  // namespace

struct InterleavedCache::Impl {
  PagePool pool;
  std::uint64_t capacity_tokens = 0;
  std::uint32_t head_dim = 0;
  std::uint64_t num_tokens = 0;
  std::vector<std::int32_t> pages;  // [taken] 0, 1, 2, ...

  explicit Impl(PagePool own) noexcept : pool(std::move(own)) {}
  [[nodiscard]] float* row(std::uint64_t token) const noexcept {
    return reinterpret_cast<float*>(pool.base()) + token * 2 * head_dim;
  }
  Result<void> grow(std::uint64_t wanted_tokens);
  Result<void> run(std::span<const float> q, std::span<float> out) const noexcept;
};

/// A pool that never gets a page back hands out ids in order; this is checked, since all rows rely on it.
Result<void> InterleavedCache::Impl::grow(std::uint64_t wanted_tokens) {
  const std::uint64_t wanted_pages = ceil_div(wanted_tokens, kPageSize);
  if (wanted_pages > pages.capacity()) pages.reserve(std::max(wanted_pages, 2 * std::uint64_t{pages.capacity()}));
  while (pages.size() < wanted_pages) {
    const Result<PageId> page = pool.allocate();
    if (!page) return page.error();
    if (static_cast<std::size_t>(to_index(*page)) != pages.size()) {
      return Error{Errc::kUnsupported, "the pool does not hand out its pages in order"};
    }
    pages.push_back(to_index(*page));
  }
  return {};
}

/// Queries of the last rows, all of which see keys up to their own.
Result<void> InterleavedCache::Impl::run(std::span<const float> q, std::span<float> out) const noexcept {
  const std::int32_t qo_indptr[] = {0, static_cast<std::int32_t>(q.size() / head_dim)};
  const std::int32_t seq_lens[] = {static_cast<std::int32_t>(num_tokens)};
  const AttentionConfig config{
      .num_q_heads = 1, .num_kv_heads = 1, .head_dim = head_dim, .page_size = kPageSize, .kv_dtype = DType::f32};
  const Result<AttentionPlan> plan =
      AttentionPlan::create(config, {.qo_indptr = qo_indptr,
                                     .block_table = pages,
                                     .block_table_stride = static_cast<std::int64_t>(pages.size()),
                                     .seq_lens = seq_lens});
  if (!plan) return plan.error();
  const auto token_stride = static_cast<std::int64_t>(2 * sizeof(float) * head_dim);
  KvView view;
  view.k = row(0);
  view.v = row(0) + head_dim;
  view.k_page_stride = view.v_page_stride = token_stride * kPageSize;
  view.k_head_stride = view.v_head_stride = token_stride * kPageSize;
  view.k_token_stride = view.v_token_stride = token_stride;
  view.num_pages = static_cast<std::int64_t>(pool.capacity_pages());
  return plan->run(view, q, out);
}

Result<InterleavedCache> InterleavedCache::create(std::uint64_t capacity_tokens, std::uint32_t head_dim) noexcept try {
  if (capacity_tokens == 0 || capacity_tokens > kMaxSequenceTokens)
    return invalid("the capacity must be 1..2^30 tokens");
  if (head_dim == 0 || head_dim > 1024) return invalid("head_dim must be 1..1024");
  const std::uint64_t num_pages = ceil_div(capacity_tokens, kPageSize);
  Result<PagePool> pool = PagePool::create({.page_bytes = std::uint64_t{kPageSize} * 2 * sizeof(float) * head_dim,
                                            .capacity_pages = num_pages,
                                            .huge_pages = HugePages::kNever});
  if (!pool) return pool.error();
  auto impl = std::make_unique<Impl>(std::move(*pool));
  impl->capacity_tokens = capacity_tokens;
  impl->head_dim = head_dim;
  return InterleavedCache(std::move(impl));
} catch (const std::bad_alloc&) {
  return Error{Errc::kOutOfMemory, "no memory for the interleaved cache"};
}

Result<void> InterleavedCache::append(std::span<const float> k, std::span<const float> v) noexcept try {
  if (!impl_) return kMovedFrom;
  const std::size_t head_dim = impl_->head_dim;
  if (k.empty() || k.size() % head_dim != 0 || v.size() != k.size()) {
    return invalid("k and v must be one or more rows of head_dim each, equally many");
  }
  const std::uint64_t num_rows = k.size() / head_dim;
  if (num_rows > impl_->capacity_tokens - impl_->num_tokens) return invalid("more tokens than the cache has room for");
  if (Result<void> grown = impl_->grow(impl_->num_tokens + num_rows); !grown) return grown;
  for (std::uint64_t i = 0; i < num_rows; ++i) {
    float* row = impl_->row(impl_->num_tokens + i);
    std::copy_n(&k[i * head_dim], head_dim, row);
    std::copy_n(&v[i * head_dim], head_dim, row + head_dim);
  }
  impl_->num_tokens += num_rows;
  return {};
} catch (const std::bad_alloc&) {
  return Error{Errc::kOutOfMemory, "no memory to append to the interleaved cache"};
}

Result<void> InterleavedCache::attend(std::span<const float> q, std::span<float> out) const noexcept {
  if (!impl_) return kMovedFrom;
  if (q.size() != impl_->head_dim || out.size() != q.size()) return invalid("q and out must be one row of head_dim");
  if (impl_->num_tokens == 0) {
    std::fill(out.begin(), out.end(), 0.0F);
    return {};
  }
  return impl_->run(q, out);
}

Result<void> InterleavedCache::attend_last(std::span<const float> q, std::span<float> out) const noexcept {
  if (!impl_) return kMovedFrom;
  const std::size_t head_dim = impl_->head_dim;
  if (q.empty() || q.size() % head_dim != 0 || out.size() != q.size() || q.size() / head_dim > impl_->num_tokens) {
    return invalid("q and out must be rows of head_dim, at most as many as there are tokens");
  }
  return impl_->run(q, out);
}

void InterleavedCache::reset() noexcept {
  if (impl_) impl_->num_tokens = 0;
}
std::uint64_t InterleavedCache::num_tokens() const noexcept { return impl_ ? impl_->num_tokens : 0; }
std::uint64_t InterleavedCache::capacity_tokens() const noexcept { return impl_ ? impl_->capacity_tokens : 0; }
std::uint32_t InterleavedCache::head_dim() const noexcept { return impl_ ? impl_->head_dim : 0; }
std::span<const float> InterleavedCache::rows() const noexcept {
  if (!impl_) return {};
  return {impl_->row(0), impl_->num_tokens * 2 * impl_->head_dim};
}

InterleavedCache::InterleavedCache(std::unique_ptr<Impl> impl) noexcept : impl_(std::move(impl)) {}
InterleavedCache::InterleavedCache(InterleavedCache&&) noexcept = default;
InterleavedCache& InterleavedCache::operator=(InterleavedCache&&) noexcept = default;
InterleavedCache::~InterleavedCache() = default;

}  // namespace pagedkv
