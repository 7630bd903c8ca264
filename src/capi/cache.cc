// The C functions of KvCache.
#include <memory>
#include <new>
#include <vector>

#include "capi/callback_policy.h"
#include "capi/convert.h"
#include "capi/handles.h"

using namespace pagedkv;
using namespace pagedkv::capi;

namespace {

/// OpenOptions and the memory that they borrow. Throws std::bad_alloc.
struct OpenArguments {
  OpenOptions options;
  std::vector<RetentionRange> retention;
};

Result<void> read_open(const pagedkv_open_options* given, OpenArguments& arguments) {
  if (given == nullptr) return {};
  const Result<pagedkv_open_options> known = read_sized(given);
  if (!known) return known.error();
  Checks checks;
  arguments.options.cache_salt = checks.text(known->cache_salt);
  arguments.options.extra_key = checks.text(known->extra_key);
  for (const pagedkv_retention& range : checks.span(known->retention, known->num_retention)) {
    arguments.retention.push_back({range.begin_token, range.end_token, range.priority, range.duration_ms});
  }
  arguments.options.retention = arguments.retention;
  return checks.error();
}

/// use(object, ids, options) with the tokens and options that opening and pinning take.
template <class Use>
pagedkv_status with_open_arguments(pagedkv_cache cache, const int32_t* tokens, size_t num_tokens,
                                   const pagedkv_open_options* options, const Use& use) {
  return with<CacheTable>(cache, [&](KvCache& object) -> Result<void> {
    const Result<std::span<const Token>> ids = span_of(tokens, num_tokens);
    if (!ids) return ids.error();
    OpenArguments arguments;
    if (Result<void> read = read_open(options, arguments); !read) return read;
    return use(object, *ids, arguments.options);
  });
}

/// Items of a step whose sequences are in this call until they go out of scope. Throws std::bad_alloc.
struct StepArguments {
  std::vector<SequenceTable::Use> uses;
  std::vector<StepItem> items;
};

Result<void> read_items(const pagedkv_step_item* given, size_t num_items, StepArguments& arguments) {
  const Result<std::span<const pagedkv_step_item>> all = span_of(given, num_items);
  if (!all) return all.error();
  arguments.uses.reserve(num_items);
  arguments.items.reserve(num_items);
  for (size_t i = 0; i < num_items; ++i) {
    const pagedkv_step_item& item = (*all)[i];
    const Result<std::span<const Token>> tokens = span_of(item.tokens, item.num_tokens);
    if (!tokens) return tokens.error();
    Result<SequenceTable::Use> use = table<SequenceTable>().use(item.sequence);
    if (!use) {
      for (size_t earlier = 0; earlier < i; ++earlier) {
        if ((*all)[earlier].sequence == item.sequence) {
          return Error{Errc::kInvalidArgument, "a sequence is listed twice"};
        }
      }
      return use.error();
    }
    arguments.items.push_back({&**use, item.num_new_tokens, *tokens});
    arguments.uses.push_back(std::move(*use));
  }
  return {};
}

/// The policy that the options ask for: null = LRU. A caller's own also goes to `own`. Throws std::bad_alloc.
Result<std::shared_ptr<EvictionPolicy>> read_policy(const pagedkv_cache_options& given,
                                                    std::shared_ptr<CallbackPolicy>& own) {
  if (given.policy != nullptr) {
    const Result<pagedkv_eviction_policy> known = read_sized(given.policy);
    if (!known) return known.error();
    if (known->on_evictable == nullptr || known->on_withdrawn == nullptr || known->choose == nullptr) {
      return Error{Errc::kInvalidArgument, "a policy needs on_evictable, on_withdrawn and choose"};
    }
    own = std::make_shared<CallbackPolicy>(*known);
    return std::shared_ptr<EvictionPolicy>(own);
  }
  switch (given.eviction_policy) {
    case PAGEDKV_LRU: return std::shared_ptr<EvictionPolicy>();
    case PAGEDKV_S3FIFO: return make_s3fifo_policy();
    case PAGEDKV_ARC: return make_arc_policy();
    default: return Error{Errc::kInvalidArgument, "eviction_policy is unknown"};
  }
}

Result<KvCache> create_cache(const pagedkv_cache_options* given, std::shared_ptr<CallbackPolicy>& own) noexcept try {
  const Result<pagedkv_cache_options> known = read_sized(given);
  if (!known) return known.error();
  Checks checks;
  KvCacheOptions options;
  options.shape = {.num_layers = known->num_layers,
                   .num_q_heads = known->num_q_heads,
                   .num_kv_heads = known->num_kv_heads,
                   .head_dim = known->head_dim,
                   .v_head_dim = known->v_head_dim,
                   .dtype = checks.dtype(known->dtype)};
  if (known->page_size != 0) options.page_size = known->page_size;
  options.capacity_bytes = known->capacity_bytes;
  options.capacity_pages = known->capacity_pages;
  options.max_capacity_pages = known->max_capacity_pages;
  options.watermark_pages = known->watermark_pages;
  options.huge_pages = known->no_huge_pages != 0 ? HugePages::kNever : HugePages::kTransparent;
  options.prefix_cache = known->no_prefix_cache == 0;
  options.prefix.event_capacity = known->event_capacity;
  options.prefix.hash = known->hash;
  options.prefix.now_ms = known->now_ms;
  options.attention = checks.variant(known->attention, known->attention_flags);
  options.cascade = (known->attention_flags & PAGEDKV_CASCADE) != 0;
  options.layers_per_page = known->layers_per_page;
  options.target = checks.text(known->target);
  std::vector<KvLayerGroup> groups;
  for (const pagedkv_layer_group& group : checks.span(known->layer_groups, known->num_layer_groups)) {
    groups.push_back({checks.span(group.layers, group.num_layers), window_left_of(group.window), group.sink_tokens});
  }
  options.layer_groups = groups;
  if (known->zero_pages_between_tenants > 1) {
    checks.fail({Errc::kInvalidArgument, "zero_pages_between_tenants is neither 0 nor 1"});
  }
  options.zero_pages_between_tenants = known->zero_pages_between_tenants != 0;
  if (checks.failed()) return checks.error();
  Result<std::shared_ptr<EvictionPolicy>> policy = read_policy(*known, own);
  if (!policy) return policy.error();
  options.prefix.policy = std::move(*policy);
  return KvCache::create(options);
} catch (const std::bad_alloc&) {
  return Error{Errc::kOutOfMemory, "no memory for the options of the cache"};
}

}  // namespace

pagedkv_status pagedkv_cache_create(const pagedkv_cache_options* options, pagedkv_cache* cache) {
  if (cache == nullptr) return report(kNullArgument);
  std::shared_ptr<CallbackPolicy> own;
  const Result<void> given = give<CacheTable>(cache, [&] { return create_cache(options, own); });
  if (given && own != nullptr) own->take_user();
  return report(given);
}

pagedkv_status pagedkv_cache_close(pagedkv_cache cache) { return capi::close<CacheTable>(cache); }

pagedkv_status pagedkv_cache_open(pagedkv_cache cache, const int32_t* tokens, size_t num_tokens,
                                  const pagedkv_open_options* options, pagedkv_sequence* sequence) {
  if (sequence == nullptr) return report(kNullArgument);
  const auto open = [&](KvCache& object, std::span<const Token> ids, const OpenOptions& how) {
    return give<SequenceTable>(sequence, [&] { return object.open(ids, how); });
  };
  return with_open_arguments(cache, tokens, num_tokens, options, open);
}

pagedkv_status pagedkv_cache_begin_step(pagedkv_cache cache, const pagedkv_step_item* items, size_t num_items,
                                        pagedkv_step* step) {
  if (step == nullptr) return report(kNullArgument);
  return with<CacheTable>(cache, [&](KvCache& object) -> Result<void> {
    StepArguments arguments;
    if (Result<void> read = read_items(items, num_items, arguments); !read) return read;
    HeldStep held;
    held.sequences.reserve(num_items);
    held.in_use.reserve(num_items);
    for (size_t i = 0; i < num_items; ++i) held.sequences.push_back(items[i].sequence);
    return give<StepTable>(step, [&]() -> Result<HeldStep> {
      Result<Step> begun = object.begin_step(arguments.items);
      if (!begun) return begun.error();
      held.step = std::move(*begun);
      return std::move(held);
    });
  });
}

pagedkv_status pagedkv_cache_pages_available(pagedkv_cache cache, uint64_t* pages) {
  return ask<CacheTable>(cache, pages, [](KvCache& object) { return object.pages_available(); });
}

pagedkv_status pagedkv_cache_pages_for_tokens(pagedkv_cache cache, uint64_t num_tokens, uint64_t step_tokens,
                                              uint64_t* pages) {
  return ask<CacheTable>(cache, pages,
                         [&](KvCache& object) { return object.pages_for_tokens(num_tokens, step_tokens); });
}

pagedkv_status pagedkv_cache_pages_needed(pagedkv_cache cache, const pagedkv_step_item* items, size_t num_items,
                                          uint64_t* pages) {
  if (pages == nullptr) return report(kNullArgument);
  return with<CacheTable>(cache, [&](KvCache& object) -> Result<void> {
    StepArguments arguments;
    if (Result<void> read = read_items(items, num_items, arguments); !read) return read;
    const Result<std::uint64_t> needed = object.pages_needed(arguments.items);
    if (!needed) return needed.error();
    *pages = *needed;
    return {};
  });
}

pagedkv_status pagedkv_cache_can_admit(pagedkv_cache cache, uint64_t prompt_tokens, uint64_t max_new_tokens,
                                       uint64_t step_tokens, int32_t* fits) {
  return ask<CacheTable>(cache, fits,
                         [&](KvCache& object) { return object.can_admit(prompt_tokens, max_new_tokens, step_tokens); });
}

pagedkv_status pagedkv_cache_get_stats(pagedkv_cache cache, pagedkv_cache_stats* stats) {
  return with<CacheTable>(cache, [&](KvCache& object) -> Result<void> {
    const CacheStats now = object.stats();
    pagedkv_cache_stats out{};
    out.page_bytes = now.pool.page_bytes;
    out.capacity_pages = now.pool.capacity_pages;
    out.used_pages = now.pool.used_pages;
    out.evictable_pages = now.pool.evictable_pages;
    out.free_pages = now.pool.free_pages;
    out.shared_pages = now.pool.shared_pages;
    out.committed_bytes = now.pool.committed_bytes;
    out.metadata_bytes = now.pool.metadata_bytes;
    out.peak_used_pages = now.pool.peak_used_pages;
    out.allocations = now.pool.allocations;
    out.failed_allocations = now.pool.failed_allocations;
    out.evictions = now.pool.evictions;
    out.huge_pages = now.pool.huge_pages ? 1 : 0;
    out.open_sequences = now.open_sequences;
    out.steps_begun = now.steps_begun;
    out.steps_committed = now.steps_committed;
    out.steps_rolled_back = now.steps_rolled_back;
    out.tokens_committed = now.tokens_committed;
    out.copied_pages = now.copied_pages;
    out.prefix_lookups = now.prefix.lookups;
    out.prefix_lookup_tokens = now.prefix.lookup_tokens;
    out.prefix_hit_tokens = now.prefix.hit_tokens;
    out.published_pages = now.prefix.published_pages;
    out.merged_pages = now.prefix.merged_pages;
    out.pinned_pages = now.prefix.pinned_pages;
    out.namespaces = now.prefix.namespaces;
    out.lost_events = now.prefix.lost_events;
    out.prefix_metadata_bytes = now.prefix.metadata_bytes;
    out.bytes_per_token = now.bytes_per_token;
    out.padding_bytes_per_token = now.padding_bytes_per_token;
    return write_sized(out, stats);
  });
}

pagedkv_status pagedkv_cache_get_info(pagedkv_cache cache, pagedkv_cache_info* info) {
  return with<CacheTable>(cache, [&](KvCache& object) -> Result<void> {
    const KvCacheOptions& options = object.options();
    pagedkv_cache_info out{};
    out.num_layers = options.shape.num_layers;
    out.num_q_heads = options.shape.num_q_heads;
    out.num_kv_heads = options.shape.num_kv_heads;
    out.head_dim = options.shape.head_dim;
    out.v_head_dim = options.shape.v_head_dim != 0 ? options.shape.v_head_dim : options.shape.head_dim;
    out.dtype = static_cast<pagedkv_dtype>(options.shape.dtype);
    out.page_size = options.page_size;
    out.has_prefix_cache = options.prefix_cache ? 1 : 0;
    out.page_bytes = object.page_bytes();
    out.capacity_pages = object.pool().capacity_pages();
    out.max_capacity_pages = object.pool().max_capacity_pages();
    out.watermark_pages = options.watermark_pages;
    out.attention = variant_of(options.attention);
    out.target = {options.target.data(), options.target.size()};
    out.attention_flags = attention_flags_of(options.attention, options.cascade);
    return write_sized(out, info);
  });
}

pagedkv_status pagedkv_cache_pool(pagedkv_cache cache, pagedkv_pool* pool) {
  if (pool == nullptr) return report(kNullArgument);
  return with<CacheTable>(cache, [&](KvCache& object) {
    return give<PoolTable>(pool, [&]() -> Result<PagePool> { return object.pool().share(); });
  });
}

pagedkv_status pagedkv_cache_page_bytes(pagedkv_cache cache, uint64_t* bytes) {
  return ask<CacheTable>(cache, bytes, [](KvCache& object) { return object.page_bytes(); });
}

pagedkv_status pagedkv_cache_view(pagedkv_cache cache, uint32_t layer, pagedkv_kv_view* view) {
  if (view == nullptr) return report(kNullArgument);
  return with<CacheTable>(cache, [&](KvCache& object) -> Result<void> {
    const Result<KvView> pages = object.view(layer);
    if (!pages) return pages.error();
    *view = view_of(*pages);
    return {};
  });
}

pagedkv_status pagedkv_cache_page_table_of(pagedkv_cache cache, uint32_t layer, size_t* group) {
  if (group == nullptr) return report(kNullArgument);
  return with<CacheTable>(cache, [&](KvCache& object) -> Result<void> {
    const Result<std::size_t> found = object.page_table_of(layer);
    if (!found) return found.error();
    *group = *found;
    return {};
  });
}

pagedkv_status pagedkv_cache_trim(pagedkv_cache cache, uint64_t* given_bytes) {
  return with<CacheTable>(cache, [&](KvCache& object) -> Result<void> {
    const Result<std::uint64_t> given = object.trim();
    if (!given) return given.error();
    if (given_bytes != nullptr) *given_bytes = *given;
    return {};
  });
}

pagedkv_status pagedkv_cache_set_capacity(pagedkv_cache cache, uint64_t num_pages) {
  return with<CacheTable>(cache, [&](KvCache& object) { return object.set_capacity(num_pages); });
}

pagedkv_status pagedkv_cache_pin(pagedkv_cache cache, const int32_t* tokens, size_t num_tokens,
                                 const pagedkv_open_options* options, uint64_t* pin) {
  if (pin == nullptr) return report(kNullArgument);
  const auto take = [&](KvCache& object, std::span<const Token> ids, const OpenOptions& how) -> Result<void> {
    const Result<PinId> pinned = object.pin(ids, how);
    if (!pinned) return pinned.error();
    *pin = static_cast<std::uint64_t>(*pinned);
    return {};
  };
  return with_open_arguments(cache, tokens, num_tokens, options, take);
}

pagedkv_status pagedkv_cache_unpin(pagedkv_cache cache, uint64_t pin) {
  return with<CacheTable>(cache, [&](KvCache& object) { return object.unpin(PinId{pin}); });
}

pagedkv_status pagedkv_cache_clear_prefixes(pagedkv_cache cache) {
  return with<CacheTable>(cache, [](KvCache& object) -> Result<void> {
    object.clear_prefix_cache();
    return {};
  });
}

pagedkv_status pagedkv_cache_poll_events(pagedkv_cache cache, pagedkv_event_callback callback, void* user,
                                         uint64_t* num_events) {
  if (callback == nullptr) return report(kNullArgument);
  struct Receiver {
    pagedkv_event_callback callback;
    void* user;
  } receiver{callback, user};
  const auto forward = [](void* to, const CacheEvent& event) noexcept {
    const pagedkv_event out{.kind = static_cast<std::uint32_t>(event.kind),
                            .page = to_index(event.page),
                            .sequence_number = event.sequence_number,
                            .hash = event.hash,
                            .parent_hash = event.parent_hash,
                            .tokens = event.tokens.data(),
                            .num_tokens = event.tokens.size()};
    const Receiver& receives = *static_cast<const Receiver*>(to);
    receives.callback(receives.user, &out);
  };
  return with<CacheTable>(cache, [&](KvCache& object) -> Result<void> {
    const std::uint64_t count = object.poll_events(forward, &receiver);
    if (num_events != nullptr) *num_events = count;
    return {};
  });
}
