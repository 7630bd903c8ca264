// Fuzzes the C interface as a sequence of calls: live, stale and foreign handles, absurd numbers, arrays of any length.
//
// What must hold: a status that exists, results written on success only, closed handles refused, and no sanitizer
// report.
#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#include "fuzz/c_api_arguments.h"
#include "fuzz/fuzz_input.h"
#include "pagedkv/c/pagedkv.h"

using namespace pagedkv::fuzz;

namespace {

class Machine : Arguments {
 public:
  explicit Machine(Input& input) : Arguments(input) {}

  void run() {
    make(kCache);
    for (int calls = 0; calls < 120 && !input_.empty(); ++calls) call();
    close_all();
  }

 private:
  // Objects ----------------------------------------------------------------------------------------------------------

  void add(Kind kind, pagedkv_status status, Output<std::uint64_t>& made, bool is_new = true) {
    const std::uint64_t value = made.checked(status);
    if (status != PAGEDKV_OK) return;
    check(value != 0 && value != kUntouched, "a new object has a handle");
    live_[kind].push_back(value);
    // A new pool may lie where a closed one lay.
    std::uint64_t pool = kind == kPool && is_new ? value : 0;
    if (kind == kCache && pagedkv_cache_pool(value, &pool) != PAGEDKV_OK) return;
    std::erase_if(owned_, [&](const auto& reference) { return reference.first == base_of(pool); });
    if (kind == kCache) pagedkv_pool_close(pool);
  }

  void make(Kind kind) {
    if (live_[kind].size() >= 6) return close_one(kind);
    Output<std::uint64_t> made;
    switch (kind) {
      case kCache: return add(kind, make_cache(made.to()), made);
      case kSequence:
        if (input_.rarely(6)) return add(kind, pagedkv_store_open(handle(kStore), made.to()), made);
        return add(kind, open_sequence(made.to()), made);
      case kStep: return add(kind, begin_step(made.to()), made);
      case kPool: {
        pagedkv_pool_options options{};
        options.page_bytes = input_.rarely(8) ? count(300) : 64;
        options.capacity_pages = count(20);
        options.max_capacity_pages = input_.rarely(4) ? count(40) : 0;
        options.watermark_pages = input_.rarely(4) ? count(4) : 0;
        options.no_huge_pages = 1;
        return add(kind, pagedkv_pool_create(sized(options), made.to()), made);
      }
      case kStore: {
        const std::size_t groups = input_.below(3);
        auto* const layers = array<pagedkv_store_group>(groups);
        for (std::size_t i = 0; i < groups; ++i) layers[i] = {count32(30), input_.rarely(3) ? count32(9) : 0};
        return add(kind, pagedkv_store_create(handle(kPool), count32(9), layers, groups, made.to()), made);
      }
      case kPlan: return add(kind, make_plan(made.to()), made);
      default: return add(kind, make_dense(made.to()), made);
    }
  }

  pagedkv_status make_cache(std::uint64_t* cache) {
    const Shape s = shape_ = shape();
    pagedkv_cache_options options{};
    options.num_layers = s.layers, options.num_q_heads = s.q_heads, options.num_kv_heads = s.kv_heads;
    options.head_dim = s.dim, options.v_head_dim = s.v_dim;
    options.dtype = input_.rarely(32) ? count32(9) : static_cast<std::uint32_t>(input_.below(3));
    options.page_size = input_.rarely(4) ? count32(20) : 4;
    options.layers_per_page = input_.rarely(6) ? count32(4) : 0;
    options.capacity_pages = input_.rarely(16) ? 0 : count(24);
    options.capacity_bytes = input_.rarely(16) ? count(60'000) : 0;
    options.max_capacity_pages = input_.rarely(4) ? count(50) : 0;
    options.watermark_pages = input_.rarely(4) ? count(4) : 0;
    options.no_huge_pages = 1;
    const std::size_t flags = input_.below(8);
    options.no_prefix_cache = flags % 4 == 3 ? 1 : 0;
    options.attention_flags = flags / 4;
    options.eviction_policy = input_.rarely(3) ? count32(3) : 0;
    options.event_capacity = input_.rarely(3) ? count(20) : 0;
    options.attention = variant(s.q_heads);
    const std::size_t groups = input_.rarely(4) ? input_.below(3) : 0;
    auto* const layer_groups = array<pagedkv_layer_group>(groups);
    for (std::size_t i = 0; i < groups; ++i) {
      const std::size_t layers = input_.below(3);
      layer_groups[i] = {reinterpret_cast<const std::uint32_t*>(numbers(layers, 3)), layers, count32(20),
                         input_.rarely(3) ? count32(6) : 0};
    }
    options.layer_groups = layer_groups, options.num_layer_groups = groups;
    options.target = target();
    if (input_.rarely(4))
      options.hash = [](const std::int32_t*, std::size_t count, std::uint64_t) noexcept {
        return std::uint64_t{count % 2};  // nearly everything collides
      };
    if (input_.rarely(8)) options.now_ms = []() noexcept { return std::uint64_t{1} << 63; };
    return pagedkv_cache_create(sized(options), cache);
  }

  const pagedkv_open_options* open_options() {
    pagedkv_open_options options{};
    options.cache_salt = text();
    options.extra_key = input_.rarely(4) ? text() : pagedkv_bytes{};
    const std::size_t ranges = input_.rarely(4) ? input_.below(3) : 0;
    auto* const retention = array<pagedkv_retention>(ranges);
    for (std::size_t i = 0; i < ranges; ++i) retention[i] = {count(20), count(40), count32(110), count(3)};
    options.retention = retention, options.num_retention = ranges;
    return sized(options);
  }
  pagedkv_status open_sequence(std::uint64_t* sequence) {
    const std::size_t length = input_.below(40);
    const pagedkv_open_options* const options = input_.rarely(4) ? nullptr : open_options();
    return pagedkv_cache_open(handle(kCache), tokens(length), length, options, sequence);
  }
  std::vector<pagedkv_step_item> items() {
    std::vector<pagedkv_step_item> made(input_.below(4));
    for (pagedkv_step_item& item : made) {
      item.sequence = handle(kSequence);
      item.num_new_tokens = count32(12);
      item.num_tokens = input_.rarely(3) ? input_.below(12) : std::min(item.num_new_tokens, 64U);
      item.tokens = input_.rarely(4) ? nullptr : tokens(item.num_tokens);
      if (item.tokens == nullptr && !input_.rarely(8)) item.num_tokens = 0;
    }
    made.shrink_to_fit();
    return made;
  }
  pagedkv_status begin_step(std::uint64_t* step) {
    const auto made = items();
    return pagedkv_cache_begin_step(handle(kCache), made.data(), made.size(), step);
  }

  const pagedkv_attention_config* config(const Shape& s) {
    pagedkv_attention_config made{};
    made.num_q_heads = s.q_heads, made.num_kv_heads = s.kv_heads, made.head_dim = s.dim, made.v_head_dim = s.v_dim;
    made.page_size = 4;
    made.kv_dtype = static_cast<std::uint32_t>(input_.below(3));
    made.variant = variant(s.q_heads);
    made.target = target();
    const std::size_t flags = input_.below(8);
    made.cascade = flags % 4 == 3 ? 1 : 0;
    made.attention_flags = flags / 4;
    return sized(made);
  }
  /// A batch of one sequence over any pages, as an engine of its own would make it, or any numbers.
  const pagedkv_attention_batch* batch() {
    pagedkv_attention_batch batch{};
    const std::size_t pages = input_.below(5), rows = input_.below(4);
    auto* const qo = array<std::int32_t>(2);
    auto* const kv = array<std::int32_t>(2);
    auto* const last = array<std::int32_t>(1);
    qo[1] = static_cast<std::int32_t>(input_.rarely(16) ? count32(3) : rows);
    kv[1] = static_cast<std::int32_t>(input_.rarely(16) ? count32(3) : pages);
    last[0] = pages == 0 ? 0 : static_cast<std::int32_t>(input_.rarely(16) ? count32(9) : 1 + input_.below(4));
    batch.qo_indptr = qo, batch.num_qo_indptr = 2, batch.kv_indptr = kv, batch.num_kv_indptr = 2;
    batch.kv_indices = numbers(pages, 8), batch.num_kv_indices = pages;
    batch.kv_last_page_len = last, batch.num_kv_last_page_len = 1;
    if (input_.rarely(6)) {
      batch.mask_kind = count32(5);
      batch.mask_bytes = input_.below(300);
      batch.mask = kept_.emplace_back(std::make_unique<std::byte[]>(batch.mask_bytes)).get();
      auto* const offsets = array<std::int64_t>(1);
      offsets[0] = static_cast<std::int64_t>(count(10));
      batch.mask_offsets = offsets, batch.num_mask_offsets = 1;
    }
    return sized(batch);
  }
  pagedkv_status make_plan(std::uint64_t* plan) {
    const pagedkv_attention_config* const layer = config(shape());
    const pagedkv_attention_batch* const ragged = batch();
    Output<std::size_t> bytes;
    bytes.checked(pagedkv_plan_workspace_bytes(layer, ragged, bytes.to()));
    return pagedkv_plan_create(layer, ragged, nullptr, 0, plan);
  }
  pagedkv_status make_dense(std::uint64_t* dense) {
    pagedkv_dense_options options{};
    options.batch_size = count32(3), options.num_layers = count32(3), options.num_heads = count32(3);
    options.head_dim = count32(9), options.max_seq_len = count32(30);
    // Page tables of gigabytes are had if asked for: no fault, but more than the six of a case may take.
    constexpr std::uint64_t kMaxEntries = 1 << 23;
    if (std::uint64_t{options.batch_size} * options.num_layers >
        kMaxEntries / (options.max_seq_len + std::uint64_t{1})) {
      options.batch_size = std::min(options.batch_size, 3U), options.num_layers = std::min(options.num_layers, 3U);
      options.max_seq_len = std::min(options.max_seq_len, std::uint32_t{1} << 20);
    }
    options.dtype = static_cast<std::uint32_t>(input_.below(3));
    options.page_size = input_.rarely(3) ? count32(9) : 0;
    options.new_tokens_see_later_ones = input_.rarely(3) ? 1 : 0;
    options.pool = input_.rarely(3) ? handle(kPool) : 0;
    options.target = target();
    Output<std::uint64_t> bytes;
    const pagedkv_dense_options* const given = sized(options);
    bytes.checked(pagedkv_dense_page_bytes(given, bytes.to()));
    return pagedkv_dense_create(given, dense);
  }

  void close_one(Kind kind) {
    const std::uint64_t closed = handle(kind);
    if (known(kClose[kind](closed)) != PAGEDKV_OK) return;
    check(std::erase(live_[kind], closed) == 1, "only a live handle closes");
    stale_.push_back(closed);
    check(kClose[kind](closed) == PAGEDKV_CLOSED, "a closed handle is refused");
  }
  /// Steps first: a sequence in a step is busy. In the end every handle has closed.
  void close_all() {
    for (const Kind kind : {kStep, kSequence, kPlan, kDense, kStore, kPool, kCache}) {
      for (const std::uint64_t closed : live_[kind]) check(kClose[kind](closed) == PAGEDKV_OK, "a live handle closes");
    }
  }

  // Calls ------------------------------------------------------------------------------------------------------------

  void call() {
    blocks_.clear();
    switch (input_.below(10)) {
      case 0: return make(static_cast<Kind>(input_.below(kNumKinds)));
      case 1: return close_one(static_cast<Kind>(input_.below(kNumKinds)));
      case 2: return make(input_.rarely(2) ? kStep : kSequence);
      case 3: return call_cache();
      case 4: return call_sequence();
      case 5: return call_pool();
      case 6: return call_plan();
      case 7: return call_dense();
      default: return call_step();
    }
  }

  void call_cache() {
    const std::uint64_t cache = handle(kCache);
    const std::size_t length = input_.below(40);
    Output<std::uint64_t> number;
    switch (input_.below(16)) {
      case 14: {
        pagedkv_cache_info* const info = sized(pagedkv_cache_info{});
        return void(known(pagedkv_cache_get_info(cache, info)));
      }
      case 15:
        if (live_[kPool].size() >= 6) return close_one(kPool);
        return add(kPool, pagedkv_cache_pool(cache, number.to()), number, /*is_new=*/false);
      case 0: return void(number.checked(pagedkv_cache_pages_available(cache, number.to())));
      case 1: return void(number.checked(pagedkv_cache_pages_for_tokens(cache, count(50), count(50), number.to())));
      case 2: {
        const auto made = items();
        return void(number.checked(pagedkv_cache_pages_needed(cache, made.data(), made.size(), number.to())));
      }
      case 3: {
        Output<std::int32_t> fits;
        return void(fits.checked(pagedkv_cache_can_admit(cache, count(50), count(50), count(50), fits.to())));
      }
      case 4: {
        pagedkv_cache_stats* const stats = sized(pagedkv_cache_stats{});
        if (known(pagedkv_cache_get_stats(cache, stats)) != PAGEDKV_OK) return;
        return check(stats->used_pages + stats->evictable_pages + stats->free_pages == stats->capacity_pages,
                     "used, evictable and free pages are the capacity");
      }
      case 5: return void(number.checked(pagedkv_cache_page_bytes(cache, number.to())));
      case 6: {
        Output<pagedkv_kv_view> view;
        return void(view.checked(pagedkv_cache_view(cache, count32(4), view.to())));
      }
      case 7: {
        Output<std::size_t> group;
        return void(group.checked(pagedkv_cache_page_table_of(cache, count32(4), group.to())));
      }
      case 8: return void(known(pagedkv_cache_trim(cache, input_.rarely(2) ? nullptr : number.to())));
      case 9: return void(known(pagedkv_cache_set_capacity(cache, count(60))));
      case 10: {
        const pagedkv_open_options* const options = open_options();
        return void(number.checked(pagedkv_cache_pin(cache, tokens(length), length, options, number.to())));
      }
      case 11: return void(known(pagedkv_cache_unpin(cache, count(6))));
      case 12: return void(known(pagedkv_cache_clear_prefixes(cache)));
      default: return void(known(pagedkv_cache_poll_events(cache, &look_at, nullptr, number.to())));
    }
  }
  static void look_at(void*, const pagedkv_event* event) noexcept {
    std::int64_t sum = 0;
    for (std::size_t i = 0; i < event->num_tokens; ++i) sum += event->tokens[i];
    check(event->kind <= PAGEDKV_EVENT_CLEARED && sum < 1 << 20, "an event is readable");
  }

  void call_sequence() {
    const std::uint64_t sequence = handle(kSequence);
    const std::size_t capacity = input_.below(20);
    Output<std::uint64_t> number;
    Output<std::size_t> size;
    switch (input_.below(11)) {
      case 10: {
        Output<std::uint32_t> page_size;
        return void(page_size.checked(pagedkv_sequence_page_size(sequence, page_size.to())));
      }
      case 0: return void(known(pagedkv_sequence_append(sequence, count32(20))));
      case 1: return void(known(pagedkv_sequence_truncate(sequence, count(40))));
      case 2: return void(number.checked(pagedkv_sequence_slide(sequence, count(20), count(6), count(2), number.to())));
      case 3:
        return live_[kSequence].size() < 6 ? add(kSequence, pagedkv_sequence_fork(sequence, number.to()), number)
                                           : close_one(kSequence);
      case 4: return void(number.checked(pagedkv_sequence_num_tokens(sequence, number.to())));
      case 5: return void(number.checked(pagedkv_sequence_cached_tokens(sequence, number.to())));
      case 6: return void(size.checked(pagedkv_sequence_num_groups(sequence, size.to())));
      case 7: return void(number.checked(pagedkv_sequence_pages_needed(sequence, count32(40), number.to())));
      case 8: {
        auto* const pages = array<std::int32_t>(capacity);
        return void(size.checked(pagedkv_sequence_pages(sequence, count(2), pages, capacity, size.to())));
      }
      default: {
        auto* const ids = array<std::int32_t>(capacity);
        return void(size.checked(pagedkv_sequence_tokens(sequence, ids, capacity, size.to())));
      }
    }
  }

  void call_step() {
    const std::uint64_t step = handle(kStep);
    Output<std::size_t> size;
    std::size_t rows = 0, num_items = 0;
    pagedkv_step_num_rows(step, &rows);
    pagedkv_step_num_items(step, &num_items);
    const std::uint32_t layer = count32(3), v_dim = shape_.v_dim != 0 ? shape_.v_dim : shape_.dim;
    switch (input_.below(8)) {
      case 0:
      case 1:
        return void(known(pagedkv_step_write(step, layer, const_tensor(rows * shape_.kv_heads * shape_.dim),
                                             const_tensor(rows * shape_.kv_heads * v_dim))));
      case 2:
      case 3: {
        const std::size_t heads = std::min<std::size_t>(rows * shape_.q_heads, 4096);
        const std::size_t num_lse = input_.rarely(3) ? 0 : heads + (input_.rarely(16) ? 1 : 0);
        const pagedkv_const_tensor q = const_tensor(heads * shape_.dim);
        const pagedkv_tensor out = tensor(heads * v_dim);
        return void(known(pagedkv_step_attend(step, layer, q, out, array<float>(num_lse), num_lse)));
      }
      case 4: return void(known(pagedkv_step_commit(step)));
      case 5: {
        if (input_.rarely(8)) num_items = input_.below(6);
        const auto* const accepted = reinterpret_cast<const std::uint32_t*>(numbers(num_items, 12));
        return void(known(pagedkv_step_commit_partial(step, accepted, num_items)));
      }
      case 6: return void(known(pagedkv_step_rollback(step)));
      default: return close_one(kStep);
    }
  }

  void call_pool() {
    const std::uint64_t pool = handle(kPool);
    const std::size_t length = input_.below(6);
    Output<std::uint64_t> number;
    switch (input_.below(12)) {
      case 10: {
        Output<std::int32_t> evictable;
        const auto page = static_cast<std::int32_t>(count32(20));
        return void(evictable.checked(pagedkv_pool_is_evictable(pool, page, evictable.to())));
      }
      case 11: {
        void* base = nullptr;
        return void(known(pagedkv_pool_memory(pool, &base, number.to(), input_.rarely(2) ? nullptr : number.to())));
      }
      case 0: {
        auto* const pages = array<std::int32_t>(length);
        if (known(pagedkv_pool_allocate(pool, pages, length)) == PAGEDKV_OK) own(pool, pages, length);
        return;
      }
      case 1: {
        const std::int32_t* const pages = numbers(length, 20);
        if (known(pagedkv_pool_retain(pool, pages, length)) == PAGEDKV_OK) own(pool, pages, length);
        return;
      }
      case 2: return release(pool, length);
      case 3: {
        Output<std::uint32_t> references;
        return void(
            references.checked(pagedkv_pool_ref_count(pool, static_cast<std::int32_t>(count32(20)), references.to())));
      }
      case 4: return void(number.checked(pagedkv_pool_available(pool, number.to())));
      case 5: {
        Output<std::int32_t> fits;
        return void(fits.checked(pagedkv_pool_can_allocate(pool, count(30), fits.to())));
      }
      case 6: {
        Output<void*> data;
        return void(data.checked(pagedkv_pool_page_data(pool, static_cast<std::int32_t>(count32(20)), data.to())));
      }
      case 7: {
        pagedkv_pool_stats* const stats = sized(pagedkv_pool_stats{});
        if (known(pagedkv_pool_get_stats(pool, stats)) != PAGEDKV_OK) return;
        return check(stats->used_pages + stats->evictable_pages + stats->free_pages == stats->capacity_pages,
                     "used, evictable and free pages are the capacity");
      }
      case 8: return void(known(pagedkv_pool_trim(pool, number.to())));
      default: return void(known(pagedkv_pool_set_capacity(pool, count(40))));
    }
  }

  // References that this caller has taken: it must not release those of sequences, and cannot be kept from it.
  void own(std::uint64_t pool, const std::int32_t* pages, std::size_t length) {
    for (std::size_t i = 0; i < length; ++i) owned_.emplace_back(base_of(pool), pages[i]);
  }
  static void* base_of(std::uint64_t pool) {
    void* base = nullptr;
    pagedkv_pool_memory(pool, &base, nullptr, nullptr);
    return base;
  }
  /// Own references, and now and then a page that nobody refers to: then none may be released.
  void release(std::uint64_t pool, std::size_t length) {
    auto* const pages = array<std::int32_t>(length);
    std::vector<std::pair<void*, std::int32_t>> left = owned_;
    for (std::size_t i = 0; i < length; ++i) {
      pages[i] = static_cast<std::int32_t>(count32(20));
      std::uint32_t references = 0;
      if (pagedkv_pool_ref_count(pool, pages[i], &references) == PAGEDKV_OK && references == 0) continue;
      const auto mine = std::find_if(left.begin(), left.end(), [&](const auto& o) { return o.first == base_of(pool); });
      if (mine == left.end()) return;
      pages[i] = mine->second;
      left.erase(mine);
    }
    if (known(pagedkv_pool_release(pool, pages, length)) == PAGEDKV_OK) owned_ = left;
  }

  void call_plan() {
    const std::uint64_t plan = handle(kPlan);
    const Shape s = shape();
    const std::uint32_t v_dim = s.v_dim != 0 ? s.v_dim : s.dim;
    const std::size_t head = std::min<std::size_t>(s.kv_heads, 64) * 4 * (std::min(s.dim, 64U) + std::min(v_dim, 64U));
    std::size_t rows = 0;
    pagedkv_plan_num_rows(plan, &rows);
    switch (input_.below(9)) {
      case 5: return void(known(pagedkv_plan_extend(plan, batch())));
      case 0: {
        const char* name = nullptr;
        return void(known(pagedkv_plan_target(plan, &name)));
      }
      case 1: {
        Output<std::uint64_t> bytes;
        return void(bytes.checked(pagedkv_plan_kv_bytes(plan, bytes.to())));
      }
      case 2: {
        Output<double> flops;
        return void(flops.checked(pagedkv_plan_flops(plan, flops.to())));
      }
      case 3: {
        const std::size_t sums = input_.below(6), dim = input_.below(5);
        return void(known(pagedkv_merge_states(array<float>(sums * dim), array<float>(sums), array<float>(sums * dim),
                                               array<float>(sums), sums, dim)));
      }
      case 4: {
        if (s.dim > 64 || v_dim > 64 || s.kv_heads > 64) return;
        // 8 pages of f32 slots: enough for every format.
        const pagedkv_kv_view view = pages_of(s, v_dim, array<std::byte>(8 * head * 4 + 64));
        const std::size_t slots = input_.below(5);
        auto* const places = array<std::int64_t>(slots);
        for (std::size_t i = 0; i < slots; ++i) places[i] = static_cast<std::int64_t>(count(34) - 1);
        const pagedkv_attention_config* const layer = config(s);
        return void(known(pagedkv_write_kv(layer, &view, places, slots, const_tensor(slots * s.kv_heads * s.dim),
                                           const_tensor(slots * s.kv_heads * v_dim))));
      }
      default: {
        // A view tells the truth about memory, whatever the plan's shape: one row for all pages, heads and tokens.
        pagedkv_kv_view view{};
        view.k = view.v = array<std::byte>(1024 * 4);
        view.num_pages = static_cast<std::int64_t>(count(12));
        const std::size_t heads = std::min<std::size_t>(rows * s.q_heads, 4096);
        const std::size_t num_lse = input_.rarely(3) ? 0 : heads;
        const pagedkv_const_tensor q = const_tensor(heads * s.dim);
        const pagedkv_tensor out = tensor(heads * v_dim);
        return void(known(pagedkv_plan_run(plan, &view, q, out, array<float>(num_lse), num_lse)));
      }
    }
  }
  static pagedkv_kv_view pages_of(const Shape& s, std::uint32_t v_dim, const std::byte* memory) {
    pagedkv_kv_view view{};
    view.k_token_stride = s.dim * 4, view.v_token_stride = v_dim * 4;
    view.k_head_stride = view.v_head_stride = 4 * (view.k_token_stride + view.v_token_stride);
    view.k_page_stride = view.v_page_stride = static_cast<std::int64_t>(s.kv_heads) * view.k_head_stride;
    view.k = memory, view.v = memory + 4 * view.k_token_stride;
    view.num_pages = 8;
    return view;
  }

  void call_dense() {
    const std::uint64_t dense = handle(kDense);
    const std::uint32_t layer = count32(3);
    pagedkv_dense_kv kv{};
    kv.struct_size = sizeof kv;
    if (known(pagedkv_dense_get(dense, 0, &kv)) != PAGEDKV_OK) kv = {};
    const std::size_t heads = std::size_t{std::min(kv.batch_size, 64U)} * std::min(kv.num_heads, 64U);
    const std::size_t fresh = heads * input_.below(6) * std::min(kv.head_dim, 64U);
    pagedkv_dense_kv* const given = sized(pagedkv_dense_kv{});
    Output<std::uint64_t> number;
    switch (input_.below(7)) {
      case 0:
      case 1:
        return void(known(pagedkv_dense_update(dense, layer, const_tensor(fresh), const_tensor(fresh),
                                               input_.rarely(2) ? nullptr : given)));
      case 2: return void(known(pagedkv_dense_get(dense, layer, given)));
      case 3: return void(known(pagedkv_dense_copy(dense, layer, tensor(fresh), tensor(fresh))));
      case 4: return void(number.checked(pagedkv_dense_seq_length(dense, layer, number.to())));
      case 5: return void(known(pagedkv_dense_reset(dense)));
      default:
        return void(known(pagedkv_dense_cached_attention(dense, layer, const_tensor(fresh), const_tensor(fresh),
                                                         const_tensor(fresh), tensor(fresh))));
    }
  }

  std::vector<std::unique_ptr<std::byte[]>> kept_;     // masks, which plans borrow
  std::vector<std::pair<void*, std::int32_t>> owned_;  // base of the pool, page
  Shape shape_{2, 4, 2, 8, 0};                         // of the newest cache
};

}  // namespace

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Input input(data, size);
  Machine(input).run();
  return 0;
}
