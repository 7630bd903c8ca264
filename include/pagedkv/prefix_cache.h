// What a user may choose and watch of the prefix cache: retention, eviction policies, events, counts.
//
// Layer: prefix. Pages that hold full runs of published tokens stay findable by these tokens, also when nobody refers
// to them, until the pool needs them for something else.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "pagedkv/export.h"
#include "pagedkv/result.h"
#include "pagedkv/types.h"

namespace pagedkv {

namespace prefix {
class EvictionOrder;
}

/// How long the pages of a range of tokens stay. Lower priorities are evicted first; among pages of
/// `kDefaultRetentionPriority` the eviction policy decides, among all others the least recently used goes first.
struct RetentionRange {
  std::uint64_t begin_token = 0;
  std::uint64_t end_token = ~std::uint64_t{0};  ///< Exclusive. A page that overlaps the range is in it.
  std::uint32_t priority = 35;                  ///< 0..100.
  std::uint64_t duration_ms = 0;                ///< From publication or reuse; then the default. 0 = for ever.
};
inline constexpr std::uint32_t kDefaultRetentionPriority = 35;
inline constexpr std::uint32_t kMaxRetentionPriority = 100;
inline constexpr std::size_t kMaxRetentionRanges = 256;  ///< Of one sequence: every page is held against all of them.

/// What a policy may know of a page.
struct PublishedPage {
  PageId page = kNullPage;
  std::uint64_t hash = 0;   ///< Of its tokens and all before them; the same whenever the same prefix is published.
  std::uint64_t index = 0;  ///< Its position in the prefix, in pages.
};

/// Chooses which unreferenced published page is taken next. Implement it to bring a policy of your own.
///
/// Calls come under the pool's lock, from any thread: be quick, never throw, never call the pool or the cache.
/// Pages are only taken when none that continues them is published: a page that is chosen too early is set aside by the
/// caller until then. A released prefix becomes evictable last page first.
class EvictionPolicy {
 public:
  virtual ~EvictionPolicy() = default;
  /// Called once it serves a cache, before anything else; again only after it failed. Ids are below `num_pages`.
  /// Allocate here.
  virtual Result<void> attach(std::uint64_t num_pages) noexcept = 0;
  /// A page can be found from now on; it is referenced.
  virtual void on_published(const PublishedPage& page) noexcept { static_cast<void>(page); }
  /// A page was found by its tokens, or computed a second time. It is referenced: no candidate.
  virtual void on_hit(PageId page) noexcept { static_cast<void>(page); }
  /// A page became a candidate: nobody refers to it.
  virtual void on_evictable(PageId page) noexcept = 0;
  /// A candidate is none any more: it was referenced again or dropped.
  virtual void on_withdrawn(PageId page) noexcept = 0;
  /// Chooses one of the candidates (there is one), which is none from then on. A choice that is no candidate is
  /// replaced by one that is, which `on_withdrawn` tells; this takes a look at all pages.
  virtual PageId choose() noexcept = 0;
  [[nodiscard]] virtual const char* name() const noexcept = 0;

 private:
  friend class prefix::EvictionOrder;
  std::atomic<bool> is_attached_ = false;  // to one cache, for good
};

/// Least recently used first. The default. O(1).
PAGEDKV_API Result<std::shared_ptr<EvictionPolicy>> make_lru_policy() noexcept;
/// Pages seen once and pages seen again, each least recently used first, in shares that follow the load. O(1).
///
/// Source: Megiddo, Modha, "ARC: A self-tuning, low overhead replacement cache", FAST 2003
PAGEDKV_API Result<std::shared_ptr<EvictionPolicy>> make_arc_policy() noexcept;
/// Pages that were found again outlive those used once; for caches far smaller than what is reused. O(1).
///
/// Source: Yang et al., "FIFO queues are all you need for cache eviction" (S3-FIFO), SOSP 2023
PAGEDKV_API Result<std::shared_ptr<EvictionPolicy>> make_s3fifo_policy() noexcept;

enum class CacheEventKind : std::uint8_t {
  kStored = 0,   ///< A page was published.
  kEvicted = 1,  ///< A page cannot be found any more.
  kCleared = 2,  ///< All pages were dropped.
};

/// One change of what can be found, for routers that direct requests to where their prefix is.
struct CacheEvent {
  CacheEventKind kind = CacheEventKind::kStored;
  PageId page = kNullPage;
  std::uint64_t sequence_number = 0;   ///< From 0, without gaps; a gap means that the ring overflowed.
  std::uint64_t hash = 0;              ///< As PublishedPage::hash.
  std::uint64_t parent_hash = 0;       ///< Hash of the page before; of the namespace for a first page.
  std::span<const Token> tokens = {};  ///< [page_size] of a stored page; valid during the callback.
};

/// Receives events in order; called by `poll_events` in its caller's thread.
using CacheEventCallback = void (*)(void* user, const CacheEvent& event) noexcept;

/// Exact counts since creation.
struct PrefixStats {
  std::uint64_t lookups = 0;          ///< Prompts looked up.
  std::uint64_t lookup_tokens = 0;    ///< Their tokens but the last of each, which is always computed.
  std::uint64_t hit_tokens = 0;       ///< Of those, found in full pages or copied from a partial one.
  std::uint64_t published_pages = 0;  ///< Pages that can be found now.
  std::uint64_t merged_pages = 0;     ///< Computed although they were there; freed when published.
  std::uint64_t pinned_pages = 0;     ///< Kept by pins now; they count as used in PoolStats.
  std::uint64_t namespaces = 0;       ///< Tenants with pages or open sequences.
  std::uint64_t lost_events = 0;      ///< Overwritten before they were polled.
  std::uint64_t metadata_bytes = 0;   ///< Bookkeeping of the index and the eviction order, without what a policy keeps.
};

/// A pinned prefix.
enum class PinId : std::uint64_t {};

struct PrefixCacheOptions {
  std::shared_ptr<EvictionPolicy> policy = nullptr;  ///< Null: LRU. A policy serves one cache, for good.
  std::uint64_t event_capacity = 0;                  ///< Events that the ring holds, at most 2^24; 0 = no events.
  /// Hash of tokens after a prefix with hash `seed`; null = XXH3. It finds candidates only: tokens are always compared.
  /// Of pages with equal hashes 256 are kept: more are not published.
  std::uint64_t (*hash)(const Token* tokens, std::size_t count, std::uint64_t seed) noexcept = nullptr;
  /// Clock of retention durations; null = the steady clock. Called as a policy is: under the pool's lock, from any
  /// thread; be quick, never call the pool or the cache.
  std::uint64_t (*now_ms)() noexcept = nullptr;
};

inline constexpr std::size_t kMaxCacheKeyBytes = 4096;  ///< Of cache_salt and extra_key each.

}  // namespace pagedkv
