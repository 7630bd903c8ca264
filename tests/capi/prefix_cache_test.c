// The prefix cache from C: policies of one's own, hash and clock, retention, pins, events, what a cache says of itself.
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "check.h"
#include "pagedkv/c/pagedkv.h"

enum { kDim = 2, kPageSize = 2, kMaxPages = 8 };

// A cache of one layer and one head whose pages hold two tokens.
static pagedkv_cache_options two_token_pages(uint64_t capacity) {
  return (pagedkv_cache_options){.struct_size = sizeof(pagedkv_cache_options),
                                 .num_layers = 1,
                                 .num_q_heads = 1,
                                 .num_kv_heads = 1,
                                 .head_dim = kDim,
                                 .dtype = PAGEDKV_F32,
                                 .page_size = kPageSize,
                                 .capacity_pages = capacity};
}

// Opens a sequence for the tokens first, first + 1, ..., computes what is not cached, and closes it.
static uint64_t visit(pagedkv_cache cache, int32_t first, uint32_t count, const pagedkv_open_options* options) {
  int32_t tokens[16];
  for (uint32_t i = 0; i < count; ++i) tokens[i] = first + (int32_t)i;
  pagedkv_sequence sequence = 0;
  uint64_t cached = 0;
  OK(pagedkv_cache_open(cache, tokens, count, options, &sequence));
  OK(pagedkv_sequence_cached_tokens(sequence, &cached));
  const pagedkv_step_item item = {.sequence = sequence, .num_new_tokens = count - (uint32_t)cached};
  pagedkv_step step = 0;
  float rows[16 * kDim] = {0};
  OK(pagedkv_cache_begin_step(cache, &item, 1, &step));
  const size_t size = item.num_new_tokens * kDim;
  OK(pagedkv_step_write(step, 0, in(rows, size), in(rows, size)));
  OK(pagedkv_step_commit(step));
  OK(pagedkv_step_close(step));
  OK(pagedkv_sequence_close(sequence));
  return cached;
}

// Most recently used first; remembers what it was told.
typedef struct {
  int32_t candidates[kMaxPages];
  int num_candidates, num_published, num_hits, num_chosen, num_destroyed;
  uint64_t num_pages, hash_of_first, last_index;
  int32_t lie;  // what choose answers, if not 0
  pagedkv_status attach_says;
} mru;

static pagedkv_status mru_attach(void* user, uint64_t num_pages) {
  mru* policy = user;
  policy->num_pages = num_pages;
  return policy->attach_says;
}
static void mru_published(void* user, int32_t page, uint64_t hash, uint64_t index) {
  mru* policy = user;
  CHECK(page >= 0);
  if (policy->num_published++ == 0) policy->hash_of_first = hash;
  policy->last_index = index;
}
static void mru_hit(void* user, int32_t page) {
  mru* policy = user;
  CHECK(page >= 0);
  ++policy->num_hits;
}
static void mru_evictable(void* user, int32_t page) {
  mru* policy = user;
  CHECK(policy->num_candidates < kMaxPages);
  policy->candidates[policy->num_candidates++] = page;
}
static void mru_withdrawn(void* user, int32_t page) {
  mru* policy = user;
  int kept = 0;
  for (int i = 0; i < policy->num_candidates; ++i) {
    if (policy->candidates[i] != page) policy->candidates[kept++] = policy->candidates[i];
  }
  policy->num_candidates = kept;
}
static int32_t mru_choose(void* user) {
  mru* policy = user;
  ++policy->num_chosen;
  return policy->lie != 0 ? policy->lie : policy->candidates[--policy->num_candidates];
}
static void mru_destroy(void* user) {
  mru* policy = user;
  ++policy->num_destroyed;
}

static pagedkv_eviction_policy policy_of(mru* state) {
  return (pagedkv_eviction_policy){.struct_size = sizeof(pagedkv_eviction_policy),
                                   .user = state,
                                   .attach = mru_attach,
                                   .on_published = mru_published,
                                   .on_hit = mru_hit,
                                   .on_evictable = mru_evictable,
                                   .on_withdrawn = mru_withdrawn,
                                   .choose = mru_choose,
                                   .destroy = mru_destroy};
}

static void test_own_policy(void) {
  mru state = {0};
  const pagedkv_eviction_policy policy = policy_of(&state);
  pagedkv_cache_options options = two_token_pages(4);
  options.policy = &policy;
  pagedkv_cache cache = 0;
  OK(pagedkv_cache_create(&options, &cache));
  CHECK(state.num_pages == 4);
  CHECK(visit(cache, 100, 4, NULL) == 0);  // two pages
  CHECK(visit(cache, 200, 4, NULL) == 0);  // two more: now the pool is full
  CHECK(state.num_published == 4 && state.last_index == 1 && state.num_candidates == 4);
  CHECK(visit(cache, 300, 2, NULL) == 0);  // takes the youngest page that nothing continues
  CHECK(state.num_chosen >= 1);
  CHECK(visit(cache, 100, 5, NULL) == 4);  // the older prompt is all there
  CHECK(state.num_hits == 2);
  OK(pagedkv_cache_close(cache));
  CHECK(state.num_destroyed == 1);

  // One that answers nonsense costs its owner the order, nobody the cache.
  const int32_t lies[] = {-1, 1 << 30, INT32_MIN, 3};
  for (size_t i = 0; i < sizeof lies / sizeof *lies; ++i) {
    mru liar = {.lie = lies[i]};
    const pagedkv_eviction_policy bad = policy_of(&liar);
    options.policy = &bad;
    OK(pagedkv_cache_create(&options, &cache));
    for (int32_t prompt = 0; prompt < 6; ++prompt) CHECK(visit(cache, 100 * prompt, 4, NULL) == 0);
    pagedkv_cache_stats stats = {.struct_size = sizeof stats};
    OK(pagedkv_cache_get_stats(cache, &stats));
    CHECK(stats.evictions == 8 && stats.published_pages == 4);
    OK(pagedkv_cache_close(cache));
  }
}

static void test_refused_policies(void) {
  mru state = {.attach_says = PAGEDKV_OUT_OF_MEMORY};
  pagedkv_eviction_policy policy = policy_of(&state);
  pagedkv_cache_options options = two_token_pages(4);
  options.policy = &policy;
  pagedkv_cache cache = 0;
  CHECK_STATUS(pagedkv_cache_create(&options, &cache), PAGEDKV_INVALID_ARGUMENT);
  CHECK(cache == 0 && state.num_destroyed == 0);  // still the caller's
  policy.choose = NULL;
  CHECK_STATUS(pagedkv_cache_create(&options, &cache), PAGEDKV_INVALID_ARGUMENT);
  policy = policy_of(&state);
  policy.struct_size = 8;
  CHECK_STATUS(pagedkv_cache_create(&options, &cache), PAGEDKV_INVALID_ARGUMENT);
  state.attach_says = PAGEDKV_OK;
  policy = policy_of(&state);
  policy.attach = NULL;
  policy.on_published = NULL;
  policy.on_hit = NULL;
  policy.destroy = NULL;
  OK(pagedkv_cache_create(&options, &cache));
  visit(cache, 1, 4, NULL);
  OK(pagedkv_cache_close(cache));
  CHECK(state.num_destroyed == 0);
}

static void test_built_in_policies(void) {
  for (uint32_t kind = PAGEDKV_LRU; kind <= PAGEDKV_ARC; ++kind) {
    pagedkv_cache_options options = two_token_pages(4);
    options.eviction_policy = kind;
    pagedkv_cache cache = 0;
    OK(pagedkv_cache_create(&options, &cache));
    for (int32_t prompt = 0; prompt < 6; ++prompt) visit(cache, 100 * prompt, 4, NULL);
    CHECK(visit(cache, 500, 5, NULL) == 4);
    OK(pagedkv_cache_close(cache));
  }
}

static uint64_t one_for_all(const int32_t* tokens, size_t count, uint64_t seed) {
  (void)tokens, (void)count, (void)seed;
  return 42;
}
static uint64_t clock_ms = 1000;
static uint64_t fake_clock(void) { return clock_ms; }

static void test_hash_clock_and_retention(void) {
  pagedkv_cache_options options = two_token_pages(4);
  options.hash = one_for_all;  // every prefix collides; none is taken for another
  options.now_ms = fake_clock;
  pagedkv_cache cache = 0;
  OK(pagedkv_cache_create(&options, &cache));
  CHECK(visit(cache, 100, 4, NULL) == 0);
  CHECK(visit(cache, 200, 3, NULL) == 0);
  CHECK(visit(cache, 100, 5, NULL) == 4);
  OK(pagedkv_cache_close(cache));

  options.hash = NULL;
  OK(pagedkv_cache_create(&options, &cache));
  const pagedkv_retention high = {.end_token = UINT64_MAX, .priority = 90, .duration_ms = 500};
  const pagedkv_open_options kept = {.struct_size = sizeof kept, .retention = &high, .num_retention = 1};
  visit(cache, 100, 4, &kept);
  for (int32_t prompt = 2; prompt < 9; ++prompt) visit(cache, 100 * prompt, 4, NULL);
  CHECK(visit(cache, 100, 5, &kept) == 4);  // outlived seven others
  clock_ms += 501;
  for (int32_t prompt = 2; prompt < 9; ++prompt) visit(cache, 100 * prompt, 4, NULL);
  CHECK(visit(cache, 100, 5, NULL) == 0);  // its time was over

  const pagedkv_retention absurd[] = {{.begin_token = 5, .end_token = 2, .priority = 1},
                                      {.end_token = 1, .priority = 101}};
  pagedkv_sequence sequence = 0;
  for (size_t i = 0; i < 2; ++i) {
    const pagedkv_open_options bad = {.struct_size = sizeof bad, .retention = &absurd[i], .num_retention = 1};
    CHECK_STATUS(pagedkv_cache_open(cache, NULL, 0, &bad, &sequence), PAGEDKV_INVALID_ARGUMENT);
  }
  const pagedkv_open_options null_list = {.struct_size = sizeof null_list, .num_retention = 1};
  CHECK_STATUS(pagedkv_cache_open(cache, NULL, 0, &null_list, &sequence), PAGEDKV_INVALID_ARGUMENT);
  OK(pagedkv_cache_close(cache));
}

static void test_pins_and_pool(void) {
  const pagedkv_cache_options options = two_token_pages(4);
  pagedkv_cache cache = 0;
  pagedkv_pool pool = 0;
  OK(pagedkv_cache_create(&options, &cache));
  visit(cache, 100, 4, NULL);
  const int32_t prompt[] = {100, 101, 102, 103};
  uint64_t pin = 0, number = 0;
  int32_t evictable = -1;
  OK(pagedkv_cache_pool(cache, &pool));
  OK(pagedkv_pool_is_evictable(pool, 0, &evictable));
  CHECK(evictable == 1);
  OK(pagedkv_pool_is_evictable(pool, -7, &evictable));
  CHECK(evictable == 0);
  OK(pagedkv_cache_pin(cache, prompt, 4, NULL, &pin));
  OK(pagedkv_pool_is_evictable(pool, 0, &evictable));
  CHECK(evictable == 0);
  for (int32_t other = 2; other < 9; ++other) visit(cache, 100 * other, 4, NULL);
  CHECK(visit(cache, 100, 5, NULL) == 4);
  OK(pagedkv_cache_unpin(cache, pin));
  const int32_t unknown[] = {7, 8, 9};
  CHECK_STATUS(pagedkv_cache_pin(cache, unknown, 3, NULL, &pin), PAGEDKV_NOT_FOUND);

  void *base = NULL, *second = NULL;
  uint64_t page_bytes = 0, max_pages = 0;
  OK(pagedkv_pool_memory(pool, &base, &page_bytes, &max_pages));
  OK(pagedkv_pool_memory(pool, NULL, NULL, NULL));
  OK(pagedkv_pool_page_data(pool, 1, &second));
  CHECK((char*)second == (char*)base + page_bytes && max_pages == 4);
  OK(pagedkv_cache_close(cache));
  OK(pagedkv_pool_available(pool, &number));  // the pool lives on
  CHECK(number == 4);
  OK(pagedkv_pool_close(pool));
  CHECK_STATUS(pagedkv_pool_close(pool), PAGEDKV_CLOSED);
}

static void test_info(void) {
  const float sinks[] = {0.5F};
  pagedkv_cache_options options = two_token_pages(4);
  options.attention.sinks = sinks;
  options.attention.num_sinks = 1;
  options.attention.window = 8;
  options.attention.sink_tokens = 3;
  options.attention_flags = PAGEDKV_F16_AS_BF16 | PAGEDKV_CASCADE;
  options.max_capacity_pages = 9;
  options.no_prefix_cache = 1;
  pagedkv_cache cache = 0;
  OK(pagedkv_cache_create(&options, &cache));
  pagedkv_cache_info info = {.struct_size = sizeof info};
  OK(pagedkv_cache_get_info(cache, &info));
  CHECK(info.struct_size == sizeof info && info.num_layers == 1 && info.v_head_dim == kDim);
  CHECK(info.page_size == kPageSize && info.capacity_pages == 4 && info.max_capacity_pages == 9);
  CHECK(info.attention.window == 8 && info.attention.sink_tokens == 3);
  CHECK(info.attention_flags == (PAGEDKV_F16_AS_BF16 | PAGEDKV_CASCADE));
  CHECK(info.attention.num_sinks == 1 && info.attention.sinks[0] == 0.5F);
  CHECK(info.attention.sinks != sinks && info.has_prefix_cache == 0 && info.target.size != 0);
  CHECK(info.page_bytes >= 2 * kPageSize * kDim * sizeof(float));
  info.struct_size = 1;
  CHECK_STATUS(pagedkv_cache_get_info(cache, &info), PAGEDKV_INVALID_ARGUMENT);
  uint64_t pin = 0;
  const int32_t prompt[] = {1, 2};
  CHECK_STATUS(pagedkv_cache_pin(cache, prompt, 2, NULL, &pin), PAGEDKV_UNSUPPORTED);
  OK(pagedkv_cache_close(cache));

  pagedkv_cpu_info cpu = {.struct_size = sizeof cpu};
  OK(pagedkv_get_cpu_info(&cpu));
  CHECK(cpu.num_cpus >= 1 && cpu.model != NULL);
  CHECK_STATUS(pagedkv_get_cpu_info(NULL), PAGEDKV_INVALID_ARGUMENT);
}

void test_prefix_cache(void) {
  test_own_policy();
  test_refused_policies();
  test_built_in_policies();
  test_hash_clock_and_retention();
  test_pins_and_pool();
  test_info();
}
