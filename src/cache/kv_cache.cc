// KvCache: creates the pool and the store of sequences, begins steps, and answers what a scheduler asks.
#include "pagedkv/kv_cache.h"

#include <algorithm>
#include <cstddef>
#include <mutex>
#include <new>
#include <utility>

#include "cache/kv_cache_impl.h"
#include "cache/step_impl.h"
#include "cache/tenant_cleaner.h"
#include "core/align.h"
#include "sequence/control.h"
#include "sequence/sequence_store.h"

namespace pagedkv {
namespace {

constexpr Error kMovedFrom{Errc::kClosed, "the cache was moved from"};
constexpr Error kTooManyTokens{Errc::kInvalidArgument, "a prompt has more than 2^30 tokens"};
constexpr Error kNoPrefixCache{Errc::kUnsupported, "the cache was made without a prefix cache"};
constexpr Error kBadLayer{Errc::kInvalidArgument, "layer is out of range"};

/// Copies the held rows alone: an almost empty page of 2 MiB costs some kilobytes.
class RowCopier final : public sequence::PageCopier {
 public:
  explicit RowCopier(const cache::PageLayout& layout) noexcept : layout_(layout) {}
  void copy(std::byte* to, const std::byte* from, std::uint32_t num_tokens) const noexcept override {
    layout_.copy_rows(to, from, num_tokens);
  }

 private:
  const cache::PageLayout layout_;
};

}  // namespace

// The inside ---------------------------------------------------------------------------------------------------------

Result<std::shared_ptr<KvCache::Impl>> KvCache::Impl::create(const KvCacheOptions& options) noexcept try {
  auto config = std::make_unique<cache::Config>();
  if (Result<void> checked = config->assign(options); !checked) return checked.error();
  Result<PagePool> pool = PagePool::create({.page_bytes = config->layout().page_bytes,
                                            .capacity_pages = config->capacity_pages(),
                                            .max_capacity_pages = options.max_capacity_pages,
                                            .watermark_pages = options.watermark_pages,
                                            .huge_pages = options.huge_pages});
  if (!pool) return pool.error();
  Result<SequenceStore> store = SequenceStore::create(*pool, options.page_size, config->layers().tables());
  if (!store) return store.error();
  store->impl()->copier = std::make_unique<const RowCopier>(config->layout());
  if (options.zero_pages_between_tenants) {
    auto cleaner = cache::TenantCleaner::create(pool->impl());
    if (!cleaner) return cleaner.error();
    store->impl()->cleaner = std::move(*cleaner);
  }
  std::unique_ptr<cache::PrefixSharing> prefixes;
  if (options.prefix_cache) {
    auto made = cache::PrefixSharing::create(*store->impl(), config->layout(), options.prefix);
    if (!made) return made.error();
    prefixes = std::move(*made);
  }
  return std::make_shared<Impl>(std::move(config), std::move(*pool), std::move(*store), std::move(prefixes));
} catch (const std::bad_alloc&) {
  return Error{Errc::kOutOfMemory, "no memory for the cache"};
}

KvCache::Impl::Impl(std::unique_ptr<const cache::Config> checked, PagePool page_pool, SequenceStore sequence_store,
                    std::unique_ptr<cache::PrefixSharing> prefix_sharing) noexcept
    : config(std::move(checked)),
      pool(std::move(page_pool)),
      store(std::move(sequence_store)),
      prefixes(std::move(prefix_sharing)) {}
std::byte* KvCache::Impl::base() const noexcept { return store.impl()->pool->base(); }

KvCache::Impl::~Impl() = default;

std::unique_ptr<Step::Impl> KvCache::Impl::take_step() noexcept {
  {
    const std::scoped_lock guard(idle_steps_lock_);
    if (num_idle_steps_ > 0) return std::move(idle_steps_[--num_idle_steps_]);
  }
  return std::unique_ptr<Step::Impl>(new (std::nothrow) Step::Impl);
}

void KvCache::Impl::put_step(std::unique_ptr<Step::Impl> step) noexcept {
  const std::scoped_lock guard(idle_steps_lock_);
  if (num_idle_steps_ < kMaxIdleSteps) idle_steps_[num_idle_steps_++] = std::move(step);
}

void KvCache::Impl::drop_idle_steps() noexcept {
  std::array<std::unique_ptr<Step::Impl>, kMaxIdleSteps> dropped;
  const std::scoped_lock guard(idle_steps_lock_);
  dropped.swap(idle_steps_);
  num_idle_steps_ = 0;
}

// The public face ----------------------------------------------------------------------------------------------------

Result<KvCache> KvCache::create(const KvCacheOptions& options) noexcept {
  Result<std::shared_ptr<Impl>> impl = Impl::create(options);
  if (!impl) return impl.error();
  return KvCache(std::move(*impl));
}

Result<Sequence> KvCache::open(std::span<const Token> tokens, const OpenOptions& options) noexcept {
  if (!impl_) return kMovedFrom;
  if (tokens.size() > kMaxSequenceTokens) return kTooManyTokens;
  Result<Sequence> opened = impl_->store.open();
  if (!opened) return opened;
  if (impl_->prefixes) {
    Result<void> adopted = impl_->prefixes->adopt(*opened->control(), tokens, options);
    if (!adopted) return adopted.error();
    return opened;
  }
  try {
    opened->control()->token_ids.assign(tokens.begin(), tokens.end());
  } catch (const std::bad_alloc&) {
    return Error{Errc::kOutOfMemory, "no memory for the ids of the prompt"};
  }
  return opened;
}

Result<Step> KvCache::begin_step(std::span<const StepItem> items) noexcept {
  if (!impl_) return kMovedFrom;
  std::unique_ptr<Step::Impl> step = impl_->take_step();
  if (!step) return Error{Errc::kOutOfMemory, "no memory for the step"};
  Result<void> begun = step->begin(impl_, items);
  if (!begun) {
    impl_->put_step(std::move(step));
    return begun.error();
  }
  return Step(std::move(step));
}

std::uint64_t KvCache::pages_available() const noexcept { return impl_ ? impl_->pool.available_pages() : 0; }

std::uint64_t KvCache::pages_for_tokens(std::uint64_t num_tokens, std::uint64_t step_tokens) const noexcept {
  if (!impl_) return 0;
  const std::uint64_t page_size = impl_->config->layout().page_size;
  const std::uint64_t all = ceil_div(num_tokens, page_size);
  std::uint64_t num_pages = 0;
  for (const LayerGroup& table : impl_->config->layers().tables()) {
    std::uint64_t held = all;
    if (table.window_left >= 0 && step_tokens != 0 && step_tokens < num_tokens) {
      // The window and the new tokens, two more pages that they may only touch, and those of the sinks.
      std::uint64_t seen = 0;
      if (checked_add(static_cast<std::uint64_t>(table.window_left), step_tokens, seen)) {
        held = std::min(all, seen / page_size + 2 + ceil_div(table.sink_tokens, page_size));
      }
    }
    if (!checked_add(num_pages, held, num_pages)) return UINT64_MAX;
  }
  return num_pages;
}

Result<std::uint64_t> KvCache::pages_needed(std::span<const StepItem> items) const noexcept try {
  if (!impl_) return kMovedFrom;
  std::vector<sequence::ReserveItem> wanted;
  wanted.reserve(items.size());
  for (const StepItem& item : items) {
    if (item.sequence == nullptr) return Error{Errc::kInvalidArgument, "a sequence is null"};
    wanted.push_back({item.sequence->control(), item.num_new_tokens, item.tokens});
  }
  return sequence::count_pages(*impl_->store.impl(), wanted);
} catch (const std::bad_alloc&) {
  return Error{Errc::kOutOfMemory, "no memory to count pages"};
}

bool KvCache::can_admit(std::uint64_t prompt_tokens, std::uint64_t max_new_tokens,
                        std::uint64_t step_tokens) const noexcept {
  std::uint64_t num_tokens = 0;
  if (!impl_ || !checked_add(prompt_tokens, max_new_tokens, num_tokens)) return false;
  return num_tokens <= kMaxSequenceTokens && impl_->pool.can_allocate(pages_for_tokens(num_tokens, step_tokens));
}

CacheStats KvCache::stats() const noexcept {
  if (!impl_) return {};
  const auto load = [](const std::atomic<std::uint64_t>& counter) { return counter.load(std::memory_order_relaxed); };
  const cache::Config& config = *impl_->config;
  const cache::PageLayout& layout = config.layout();
  const double bytes_per_token =
      static_cast<double>(layout.page_bytes * config.layers().tables().size()) / static_cast<double>(layout.page_size);
  const double row_bytes = static_cast<double>(config.layers().places().size() * layout.num_kv_heads *
                                               (layout.k_row_bytes + layout.v_row_bytes));
  return {.pool = impl_->pool.stats(),
          .open_sequences = impl_->store.open_sequences(),
          .steps_begun = load(impl_->steps_begun),
          .steps_committed = load(impl_->steps_committed),
          .steps_rolled_back = load(impl_->steps_rolled_back),
          .tokens_committed = load(impl_->tokens_committed),
          .copied_pages = load(impl_->store.impl()->copied_pages),
          .prefix = impl_->prefixes ? impl_->prefixes->stats() : PrefixStats{},
          .bytes_per_token = bytes_per_token,
          .padding_bytes_per_token = bytes_per_token - row_bytes};
}

const KvCacheOptions& KvCache::options() const noexcept {
  static const KvCacheOptions kNone = {};
  return impl_ ? impl_->config->options() : kNone;
}

std::uint64_t KvCache::page_bytes() const noexcept { return impl_ ? impl_->config->layout().page_bytes : 0; }

Result<KvView> KvCache::view(std::uint32_t layer) const noexcept {
  if (!impl_) return kMovedFrom;
  const cache::Config& config = *impl_->config;
  if (layer >= config.layers().places().size()) return kBadLayer;
  return config.layout().view(impl_->base(), config.layers().places()[layer].index, config.max_pages());
}

Result<std::size_t> KvCache::page_table_of(std::uint32_t layer) const noexcept {
  if (!impl_) return kMovedFrom;
  const auto& places = impl_->config->layers().places();
  if (layer >= places.size()) return kBadLayer;
  return std::size_t{places[layer].table};
}

PagePool& KvCache::pool() noexcept {
  static thread_local PagePool closed;
  if (impl_) return impl_->pool;
  closed = PagePool();  // whatever the caller made of it
  return closed;
}

Result<std::uint64_t> KvCache::trim() noexcept {
  if (!impl_) return kMovedFrom;
  impl_->drop_idle_steps();
  return impl_->pool.trim();
}

Result<void> KvCache::set_capacity(std::uint64_t num_pages) noexcept {
  return impl_ ? impl_->pool.set_capacity(num_pages) : kMovedFrom;
}

// The prefix cache ----------------------------------------------------------------------------------------------------

Result<PinId> KvCache::pin(std::span<const Token> tokens, const OpenOptions& options) noexcept {
  if (!impl_) return kMovedFrom;
  if (!impl_->prefixes) return kNoPrefixCache;
  if (tokens.size() > kMaxSequenceTokens) return kTooManyTokens;
  return impl_->prefixes->pin(tokens, options);
}

Result<void> KvCache::unpin(PinId pin) noexcept {
  if (!impl_) return kMovedFrom;
  return impl_->prefixes ? impl_->prefixes->unpin(pin) : kNoPrefixCache;
}

void KvCache::clear_prefix_cache() noexcept {
  if (impl_ && impl_->prefixes) impl_->prefixes->clear();
}

std::uint64_t KvCache::poll_events(CacheEventCallback callback, void* user) noexcept {
  return impl_ && impl_->prefixes && callback != nullptr ? impl_->prefixes->poll_events(callback, user) : 0;
}

KvCache::KvCache(std::shared_ptr<Impl> impl) noexcept : impl_(std::move(impl)) {}
KvCache::KvCache(KvCache&&) noexcept = default;
KvCache& KvCache::operator=(KvCache&&) noexcept = default;
KvCache::~KvCache() = default;

}  // namespace pagedkv
