// The C interface from a C11 program: every function, and every kind of misuse that a handle can meet.
#include <math.h>
#include <pthread.h>  // not <threads.h>: the thread sanitizer does not know thrd_create
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "check.h"
#include "pagedkv/c/pagedkv.h"

int failures = 0;

enum { kLayers = 2, kHeads = 2, kDim = 4, kPageSize = 4 };

static pagedkv_cache_options small_options(void) {
  return (pagedkv_cache_options){.struct_size = sizeof(pagedkv_cache_options),
                                 .num_layers = kLayers,
                                 .num_q_heads = kHeads,
                                 .num_kv_heads = 1,
                                 .head_dim = kDim,
                                 .dtype = PAGEDKV_F32,
                                 .page_size = kPageSize,
                                 .capacity_pages = 16,
                                 .max_capacity_pages = 32,
                                 .event_capacity = 16};
}

static pagedkv_cache small_cache(void) {
  const pagedkv_cache_options options = small_options();
  pagedkv_cache cache = 0;
  OK(pagedkv_cache_create(&options, &cache));
  return cache;
}

// Writes rows of `value` into all layers and checks that their attention is that value.
static void write_and_attend(pagedkv_step step, float value) {
  size_t rows = 0;
  OK(pagedkv_step_num_rows(step, &rows));
  float kv[64], q[128], result[128], lse[32];
  for (size_t i = 0; i < 64; ++i) kv[i] = value;
  for (size_t i = 0; i < 128; ++i) q[i] = 0.5F;
  for (uint32_t layer = 0; layer < kLayers; ++layer) {
    OK(pagedkv_step_write(step, layer, in(kv, rows * kDim), in(kv, rows * kDim)));
    OK(pagedkv_step_attend(step, layer, in(q, rows * kHeads * kDim), out(result, rows * kHeads * kDim), lse,
                           rows * kHeads));
    for (size_t i = 0; i < rows * kHeads * kDim; ++i) CHECK(fabsf(result[i] - value) < 1e-6F);
  }
}

static void feed(pagedkv_cache cache, pagedkv_sequence sequence, uint32_t count, float value) {
  const pagedkv_step_item item = {.sequence = sequence, .num_new_tokens = count};
  pagedkv_step step = 0;
  OK(pagedkv_cache_begin_step(cache, &item, 1, &step));
  write_and_attend(step, value);
  OK(pagedkv_step_commit(step));
  OK(pagedkv_step_close(step));
}

static void test_names(void) {
  CHECK(strcmp(pagedkv_status_name(PAGEDKV_OUT_OF_PAGES), "out_of_pages") == 0);
  CHECK(strcmp(pagedkv_status_name(PAGEDKV_OK), "ok") == 0);
  CHECK(strcmp(pagedkv_status_name(-5), "unknown") == 0);
  CHECK(strcmp(pagedkv_status_name(4711), "unknown") == 0);
  CHECK(strchr(pagedkv_version(), '.') != NULL);
  const char *name = NULL, *description = NULL;
  int32_t available = -1;
  size_t index = 99;
  CHECK(pagedkv_num_targets() > 0);
  OK(pagedkv_target_at(pagedkv_num_targets() - 1, &name, &description, &available));
  CHECK(name != NULL && strlen(description) > 0 && available == 1);
  OK(pagedkv_find_target((pagedkv_bytes){"SCALAR", 6}, &index));
  CHECK(index == pagedkv_num_targets() - 1);
  CHECK_STATUS(pagedkv_find_target((pagedkv_bytes){"abacus", 6}, &index), PAGEDKV_NOT_FOUND);
  CHECK_STATUS(pagedkv_find_target((pagedkv_bytes){NULL, 6}, &index), PAGEDKV_INVALID_ARGUMENT);
  CHECK_STATUS(pagedkv_target_at(pagedkv_num_targets(), &name, NULL, NULL), PAGEDKV_INVALID_ARGUMENT);
  OK(pagedkv_active_target(&name));
}

// What a monitor asks of the cache of test_serving.
static void check_questions(pagedkv_cache cache, int32_t first_page) {
  const int32_t prompt[] = {1, 2, 3, 4, 5, 6};
  const pagedkv_open_options tenant = {.struct_size = sizeof tenant, .cache_salt = {"tenant", 6}};
  uint64_t number = 0;
  size_t count = 0;
  uint64_t pin = 0;
  OK(pagedkv_cache_pin(cache, prompt, 6, &tenant, &pin));
  OK(pagedkv_cache_unpin(cache, pin));
  CHECK_STATUS(pagedkv_cache_unpin(cache, pin), PAGEDKV_NOT_FOUND);

  pagedkv_cache_stats stats = {.struct_size = sizeof stats};
  OK(pagedkv_cache_get_stats(cache, &stats));
  CHECK(stats.open_sequences == 3 && stats.prefix_hit_tokens == 4 && stats.copied_pages >= 1);
  CHECK(stats.used_pages + stats.evictable_pages + stats.free_pages == stats.capacity_pages);
  OK(pagedkv_cache_set_capacity(cache, 20));
  OK(pagedkv_cache_pages_available(cache, &number));
  OK(pagedkv_cache_pages_for_tokens(cache, 9, 0, &number));
  CHECK(number == 3);
  OK(pagedkv_cache_page_bytes(cache, &number));
  CHECK(number >= kLayers * 2 * kPageSize * kDim * sizeof(float));
  OK(pagedkv_cache_trim(cache, NULL));
  OK(pagedkv_cache_page_table_of(cache, 1, &count));
  CHECK(count == 0);
  pagedkv_kv_view view;
  OK(pagedkv_cache_view(cache, 1, &view));
  const char* row = (const char*)view.k + first_page * view.k_page_stride + 3 * view.k_token_stride;
  float first = 0;
  memcpy(&first, row, sizeof first);
  CHECK(first == 2);
  CHECK_STATUS(pagedkv_cache_view(cache, kLayers, &view), PAGEDKV_INVALID_ARGUMENT);
}

static void test_serving(void) {
  pagedkv_cache cache = small_cache();
  const int32_t prompt[] = {1, 2, 3, 4, 5, 6};
  const pagedkv_open_options tenant = {.struct_size = sizeof tenant, .cache_salt = {"tenant", 6}};
  pagedkv_sequence chat = 0, branch = 0, again = 0;
  uint64_t number = 0;
  int32_t fits = 0;
  size_t count = 0;

  OK(pagedkv_cache_can_admit(cache, 6, 10, 0, &fits));
  CHECK(fits == 1);
  OK(pagedkv_cache_can_admit(cache, 1000, 0, 0, &fits));
  CHECK(fits == 0);
  OK(pagedkv_cache_open(cache, prompt, 6, &tenant, &chat));
  const pagedkv_step_item items[] = {{.sequence = chat, .num_new_tokens = 6}};
  OK(pagedkv_cache_pages_needed(cache, items, 1, &number));
  CHECK(number == 2);
  feed(cache, chat, 6, 2);
  OK(pagedkv_sequence_num_tokens(chat, &number));
  CHECK(number == 6);

  OK(pagedkv_cache_open(cache, prompt, 6, &tenant, &again));
  OK(pagedkv_sequence_cached_tokens(again, &number));
  CHECK(number == 4);
  OK(pagedkv_sequence_close(again));
  OK(pagedkv_cache_open(cache, prompt, 6, NULL, &again));
  OK(pagedkv_sequence_cached_tokens(again, &number));
  CHECK(number == 0);

  OK(pagedkv_sequence_fork(chat, &branch));
  feed(cache, branch, 1, 2);
  int32_t pages[8], mine[8], ids[8];
  OK(pagedkv_sequence_pages(chat, 0, pages, 8, &count));
  CHECK(count == 2);
  OK(pagedkv_sequence_pages(branch, 0, mine, 8, &count));
  CHECK(pages[0] == mine[0] && pages[1] != mine[1]);
  OK(pagedkv_sequence_pages(branch, 0, NULL, 0, &count));
  CHECK(count == 2);
  CHECK_STATUS(pagedkv_sequence_pages(branch, 1, mine, 8, &count), PAGEDKV_INVALID_ARGUMENT);
  OK(pagedkv_sequence_tokens(chat, ids, 3, &count));
  CHECK(count == 6 && ids[2] == 3);
  OK(pagedkv_sequence_num_groups(chat, &count));
  CHECK(count == 1);
  uint32_t page_size = 0;
  OK(pagedkv_sequence_page_size(chat, &page_size));
  CHECK(page_size == kPageSize);
  OK(pagedkv_sequence_pages_needed(chat, 3, &number));
  CHECK(number == 1);
  OK(pagedkv_sequence_truncate(branch, 5));
  CHECK_STATUS(pagedkv_sequence_truncate(branch, 6), PAGEDKV_INVALID_ARGUMENT);
  OK(pagedkv_sequence_append(branch, 2));
  OK(pagedkv_sequence_slide(branch, 2, 0, 0, &number));
  CHECK(number == 1);

  check_questions(cache, pages[0]);
  OK(pagedkv_sequence_close(chat));
  OK(pagedkv_sequence_close(branch));
  OK(pagedkv_sequence_close(again));
  OK(pagedkv_cache_close(cache));
}

static void count_event(void* user, const pagedkv_event* event) {
  int* counts = user;
  CHECK(event->kind <= PAGEDKV_EVENT_CLEARED);
  ++counts[event->kind];
}

static void test_events(void) {
  pagedkv_cache cache = small_cache();
  const int32_t prompt[] = {1, 2, 3, 4};
  pagedkv_sequence chat = 0;
  OK(pagedkv_cache_open(cache, prompt, 4, NULL, &chat));
  feed(cache, chat, 4, 1);
  OK(pagedkv_cache_clear_prefixes(cache));
  int counts[3] = {0};
  uint64_t total = 0;
  OK(pagedkv_cache_poll_events(cache, count_event, counts, &total));
  CHECK(total == 2 && counts[PAGEDKV_EVENT_STORED] == 1 && counts[PAGEDKV_EVENT_CLEARED] == 1);
  CHECK_STATUS(pagedkv_cache_poll_events(cache, NULL, NULL, NULL), PAGEDKV_INVALID_ARGUMENT);
  OK(pagedkv_sequence_close(chat));
  OK(pagedkv_cache_close(cache));
}

static void test_steps(void) {
  pagedkv_cache cache = small_cache();
  pagedkv_sequence a = 0, b = 0;
  OK(pagedkv_cache_open(cache, NULL, 0, NULL, &a));
  OK(pagedkv_cache_open(cache, NULL, 0, NULL, &b));
  const pagedkv_step_item items[] = {{.sequence = a, .num_new_tokens = 3}, {.sequence = b, .num_new_tokens = 5}};
  pagedkv_step step = 0;
  uint64_t number = 0;
  size_t count = 0;
  OK(pagedkv_cache_begin_step(cache, items, 2, &step));
  OK(pagedkv_step_num_items(step, &count));
  CHECK(count == 2);
  CHECK_STATUS(pagedkv_sequence_close(a), PAGEDKV_BUSY);
  CHECK_STATUS(pagedkv_sequence_append(a, 1), PAGEDKV_BUSY);
  write_and_attend(step, 3);
  const uint32_t too_many[] = {4, 5}, accepted[] = {3, 1};
  CHECK_STATUS(pagedkv_step_commit_partial(step, too_many, 2), PAGEDKV_INVALID_ARGUMENT);
  OK(pagedkv_step_commit_partial(step, accepted, 2));
  CHECK_STATUS(pagedkv_step_commit(step), PAGEDKV_CLOSED);
  OK(pagedkv_sequence_num_tokens(b, &number));
  CHECK(number == 1);
  OK(pagedkv_step_close(step));
  CHECK_STATUS(pagedkv_step_commit(step), PAGEDKV_CLOSED);

  OK(pagedkv_cache_begin_step(cache, items, 2, &step));
  OK(pagedkv_step_rollback(step));
  OK(pagedkv_step_close(step));
  OK(pagedkv_cache_begin_step(cache, items, 2, &step));
  OK(pagedkv_step_close(step));  // rolls back
  OK(pagedkv_sequence_num_tokens(a, &number));
  CHECK(number == 3);

  const pagedkv_step_item huge = {.sequence = a, .num_new_tokens = 1000};
  CHECK_STATUS(pagedkv_cache_begin_step(cache, &huge, 1, &step), PAGEDKV_OUT_OF_PAGES);
  const pagedkv_step_item twice[] = {items[0], items[0]};
  CHECK_STATUS(pagedkv_cache_begin_step(cache, twice, 2, &step), PAGEDKV_INVALID_ARGUMENT);
  CHECK_STATUS(pagedkv_cache_begin_step(cache, items, 0, &step), PAGEDKV_INVALID_ARGUMENT);
  CHECK_STATUS(pagedkv_cache_begin_step(cache, NULL, 2, &step), PAGEDKV_INVALID_ARGUMENT);
  CHECK_STATUS(pagedkv_cache_begin_step(cache, items, 2, NULL), PAGEDKV_INVALID_ARGUMENT);

  OK(pagedkv_cache_begin_step(cache, items, 2, &step));
  OK(pagedkv_cache_close(cache));  // sequences and steps live on
  write_and_attend(step, 3);
  OK(pagedkv_step_commit(step));
  OK(pagedkv_step_close(step));
  OK(pagedkv_sequence_close(a));
  OK(pagedkv_sequence_close(b));
}

static void test_handles(void) {
  pagedkv_cache cache = small_cache(), other = small_cache();
  pagedkv_sequence sequence = 0, foreign = 0;
  uint64_t number = 77;
  OK(pagedkv_cache_open(cache, NULL, 0, NULL, &sequence));
  OK(pagedkv_cache_open(other, NULL, 0, NULL, &foreign));
  const pagedkv_step_item of_other = {.sequence = foreign, .num_new_tokens = 1};
  pagedkv_step step = 0;
  CHECK_STATUS(pagedkv_cache_begin_step(cache, &of_other, 1, &step), PAGEDKV_INVALID_ARGUMENT);
  CHECK_STATUS(pagedkv_sequence_num_tokens(cache, &number), PAGEDKV_INVALID_ARGUMENT);  // another kind
  CHECK_STATUS(pagedkv_cache_close(sequence), PAGEDKV_INVALID_ARGUMENT);
  CHECK_STATUS(pagedkv_sequence_num_tokens(0, &number), PAGEDKV_CLOSED);
  CHECK_STATUS(pagedkv_sequence_num_tokens(sequence + 1000000, &number), PAGEDKV_CLOSED);  // never given out
  CHECK_STATUS(pagedkv_sequence_num_tokens(sequence | UINT64_C(0xffffffff), &number), PAGEDKV_CLOSED);
  CHECK_STATUS(pagedkv_sequence_num_tokens(UINT64_MAX, &number), PAGEDKV_INVALID_ARGUMENT);
  CHECK(number == 77);
  OK(pagedkv_sequence_close(sequence));
  CHECK_STATUS(pagedkv_sequence_close(sequence), PAGEDKV_CLOSED);  // twice
  CHECK_STATUS(pagedkv_sequence_append(sequence, 1), PAGEDKV_CLOSED);
  pagedkv_sequence reused = 0;
  OK(pagedkv_cache_open(cache, NULL, 0, NULL, &reused));
  CHECK(reused != sequence);
  CHECK_STATUS(pagedkv_sequence_append(sequence, 1), PAGEDKV_CLOSED);  // the slot serves another generation
  OK(pagedkv_sequence_close(reused));
  OK(pagedkv_sequence_close(foreign));
  OK(pagedkv_cache_close(cache));
  OK(pagedkv_cache_close(other));
  CHECK_STATUS(pagedkv_cache_close(cache), PAGEDKV_CLOSED);
  CHECK_STATUS(pagedkv_cache_open(cache, NULL, 0, NULL, &reused), PAGEDKV_CLOSED);
  CHECK(strlen(pagedkv_last_error()) > 0);
}

static void test_bad_options(void) {
  pagedkv_cache cache = 0;
  pagedkv_cache_options options = small_options();
  CHECK_STATUS(pagedkv_cache_create(NULL, &cache), PAGEDKV_INVALID_ARGUMENT);
  CHECK_STATUS(pagedkv_cache_create(&options, NULL), PAGEDKV_INVALID_ARGUMENT);
  options.struct_size = 8;
  CHECK_STATUS(pagedkv_cache_create(&options, &cache), PAGEDKV_INVALID_ARGUMENT);
  struct {
    pagedkv_cache_options known;
    uint64_t unknown;
  } newer = {small_options(), 0};
  newer.known.struct_size = sizeof newer;
  OK(pagedkv_cache_create(&newer.known, &cache));
  OK(pagedkv_cache_close(cache));
  newer.unknown = 1;
  CHECK_STATUS(pagedkv_cache_create(&newer.known, &cache), PAGEDKV_UNSUPPORTED);
  options = small_options();
  options.dtype = 99;
  CHECK_STATUS(pagedkv_cache_create(&options, &cache), PAGEDKV_INVALID_ARGUMENT);
  options = small_options();
  options.attention.sm_scale = NAN;
  CHECK_STATUS(pagedkv_cache_create(&options, &cache), PAGEDKV_INVALID_ARGUMENT);
  options = small_options();
  options.attention.num_sinks = 2;
  CHECK_STATUS(pagedkv_cache_create(&options, &cache), PAGEDKV_INVALID_ARGUMENT);
  options = small_options();
  options.eviction_policy = 7;
  CHECK_STATUS(pagedkv_cache_create(&options, &cache), PAGEDKV_INVALID_ARGUMENT);
  options = small_options();
  options.attention_flags = UINT64_MAX;
  CHECK_STATUS(pagedkv_cache_create(&options, &cache), PAGEDKV_UNSUPPORTED);
  options = small_options();
  options.zero_pages_between_tenants = 2;
  CHECK_STATUS(pagedkv_cache_create(&options, &cache), PAGEDKV_INVALID_ARGUMENT);
  options = small_options();
  options.target = (pagedkv_bytes){"abacus", 6};
  CHECK_STATUS(pagedkv_cache_create(&options, &cache), PAGEDKV_UNSUPPORTED);
  options = small_options();
  const uint32_t first[] = {0}, second[] = {1};
  const pagedkv_layer_group groups[] = {{first, 1, 0, 0}, {second, 1, 8, 3}};
  options.layer_groups = groups;
  options.num_layer_groups = 2;
  options.eviction_policy = PAGEDKV_S3FIFO;
  OK(pagedkv_cache_create(&options, &cache));
  pagedkv_sequence sequence = 0;
  OK(pagedkv_cache_open(cache, NULL, 0, NULL, &sequence));
  CHECK_STATUS(pagedkv_cache_open(cache, NULL, 3, NULL, &sequence), PAGEDKV_INVALID_ARGUMENT);
  pagedkv_step step = 0;
  const pagedkv_step_item item = {.sequence = sequence, .num_new_tokens = 1};
  OK(pagedkv_cache_begin_step(cache, &item, 1, &step));
  float row[8] = {0};
  CHECK_STATUS(pagedkv_step_write(step, 0, in(NULL, 4), in(row, 4)), PAGEDKV_INVALID_ARGUMENT);
  CHECK_STATUS(pagedkv_step_write(step, 0, in(row, 3), in(row, 4)), PAGEDKV_INVALID_ARGUMENT);
  CHECK_STATUS(pagedkv_step_write(step, 0, in(row, SIZE_MAX), in(row, 4)), PAGEDKV_INVALID_ARGUMENT);
  pagedkv_const_tensor odd = in(row, 4);
  odd.dtype = 55;
  CHECK_STATUS(pagedkv_step_write(step, 0, odd, in(row, 4)), PAGEDKV_INVALID_ARGUMENT);
  CHECK_STATUS(pagedkv_step_attend(step, 0, in(row, 8), out(NULL, 8), NULL, 0), PAGEDKV_INVALID_ARGUMENT);
  CHECK_STATUS(pagedkv_step_attend(step, 0, in(row, 8), out(row, 8), NULL, 2), PAGEDKV_INVALID_ARGUMENT);
  OK(pagedkv_step_close(step));
  pagedkv_cache_stats stats = {.struct_size = 3};
  CHECK_STATUS(pagedkv_cache_get_stats(cache, &stats), PAGEDKV_INVALID_ARGUMENT);
  CHECK_STATUS(pagedkv_cache_get_stats(cache, NULL), PAGEDKV_INVALID_ARGUMENT);
  OK(pagedkv_sequence_close(sequence));
  OK(pagedkv_cache_close(cache));
}

// Attention over two pages of a caller's layout: [K, V][token][dim].
static void check_plan(pagedkv_pool pool, const int32_t* pages) {
  void* data = NULL;
  size_t count = 0;
  uint64_t number = 0;
  OK(pagedkv_pool_page_data(pool, 0, &data));
  pagedkv_kv_view view = {.k = data,
                          .v = (char*)data + kPageSize * kDim * 4,
                          .k_page_stride = kPageSize * 2 * kDim * 4,
                          .k_head_stride = kPageSize * 2 * kDim * 4,
                          .k_token_stride = kDim * 4,
                          .v_page_stride = kPageSize * 2 * kDim * 4,
                          .v_head_stride = kPageSize * 2 * kDim * 4,
                          .v_token_stride = kDim * 4,
                          .num_pages = 16};
  const pagedkv_attention_config config = {.struct_size = sizeof config,
                                           .num_q_heads = 1,
                                           .num_kv_heads = 1,
                                           .head_dim = kDim,
                                           .page_size = kPageSize,
                                           .kv_dtype = PAGEDKV_F32};
  int64_t slots[6];
  float rows[6 * kDim], q[kDim], result[kDim], lse = 0;
  for (int t = 0; t < 6; ++t) slots[t] = (int64_t)pages[t / kPageSize] * kPageSize + t % kPageSize;
  for (int i = 0; i < 6 * kDim; ++i) rows[i] = 1.5F;
  for (int i = 0; i < kDim; ++i) q[i] = 1;
  OK(pagedkv_write_kv(&config, &view, slots, 6, in(rows, 6 * kDim), in(rows, 6 * kDim)));
  slots[0] = 1 << 20;
  CHECK_STATUS(pagedkv_write_kv(&config, &view, slots, 6, in(rows, 6 * kDim), in(rows, 6 * kDim)),
               PAGEDKV_INVALID_ARGUMENT);
  const int32_t qo_indptr[] = {0, 1}, seq_lens[] = {6};
  const pagedkv_attention_batch batch = {.struct_size = sizeof batch,
                                         .qo_indptr = qo_indptr,
                                         .num_qo_indptr = 2,
                                         .block_table = pages,
                                         .num_block_table = 2,
                                         .block_table_stride = 2,
                                         .seq_lens = seq_lens,
                                         .num_seq_lens = 1};
  pagedkv_plan plan = 0;
  OK(pagedkv_plan_workspace_bytes(&config, &batch, &count));
  OK(pagedkv_plan_create(&config, &batch, NULL, 0, &plan));
  OK(pagedkv_plan_run(plan, &view, in(q, kDim), out(result, kDim), &lse, 1));
  for (int i = 0; i < kDim; ++i) CHECK(fabsf(result[i] - 1.5F) < 1e-6F);
  CHECK(fabsf(lse - (logf(6) + 3)) < 1e-5F);
  OK(pagedkv_plan_num_rows(plan, &count));
  CHECK(count == 1);
  const char* target = NULL;
  double flops = 0;
  OK(pagedkv_plan_target(plan, &target));
  OK(pagedkv_plan_kv_bytes(plan, &number));
  OK(pagedkv_plan_flops(plan, &flops));
  CHECK(target != NULL && number > 0 && flops > 0);
  CHECK_STATUS(pagedkv_plan_run(plan, NULL, in(q, kDim), out(result, kDim), NULL, 0), PAGEDKV_INVALID_ARGUMENT);
  CHECK_STATUS(pagedkv_plan_run(plan, &view, in(q, 1), out(result, kDim), NULL, 0), PAGEDKV_INVALID_ARGUMENT);
  OK(pagedkv_plan_close(plan));
  CHECK_STATUS(pagedkv_plan_run(plan, &view, in(q, kDim), out(result, kDim), NULL, 0), PAGEDKV_CLOSED);
}

static void test_merge(void) {
  float a[2] = {1, 1}, b[2] = {3, 3}, lse_a = 0, lse_b = 0;
  OK(pagedkv_merge_states(a, &lse_a, b, &lse_b, 1, 2));
  CHECK(fabsf(a[0] - 2) < 1e-6F && fabsf(lse_a - logf(2)) < 1e-6F);
  CHECK_STATUS(pagedkv_merge_states(a, &lse_a, b, &lse_b, SIZE_MAX, 2), PAGEDKV_INVALID_ARGUMENT);
}

// A group with a window gives pages back as its sequence advances, but for those of the sinks.
static void check_windows(void) {
  const pagedkv_pool_options options = {
      .struct_size = sizeof options, .page_bytes = kPageSize * 2 * kDim * 4, .capacity_pages = 8};
  pagedkv_pool pool = 0;
  const pagedkv_store_group groups[] = {{.window = 0}, {.window = 5, .sink_tokens = 2}};
  pagedkv_store store = 0;
  pagedkv_sequence sequence = 0;
  int32_t pages[4] = {0};
  size_t count = 0;
  OK(pagedkv_pool_create(&options, &pool));
  CHECK_STATUS(pagedkv_store_create(pool, kPageSize, groups, 65, &store), PAGEDKV_INVALID_ARGUMENT);
  CHECK_STATUS(pagedkv_store_create(pool, kPageSize, NULL, 1, &store), PAGEDKV_INVALID_ARGUMENT);
  OK(pagedkv_store_create(pool, kPageSize, groups, 2, &store));
  OK(pagedkv_store_open(store, &sequence));
  for (int i = 0; i < 3; ++i) OK(pagedkv_sequence_append(sequence, kPageSize));
  OK(pagedkv_sequence_append(sequence, 1));
  OK(pagedkv_sequence_num_groups(sequence, &count));
  CHECK(count == 2);
  OK(pagedkv_sequence_pages(sequence, 1, pages, 4, &count));
  CHECK(count == 4 && pages[0] >= 0 && pages[1] == -1 && pages[2] >= 0);
  OK(pagedkv_sequence_close(sequence));
  OK(pagedkv_store_close(store));
  OK(pagedkv_pool_close(pool));
}

static void test_pool_store_and_plan(void) {
  const pagedkv_pool_options options = {.struct_size = sizeof options,
                                        .page_bytes = kPageSize * 2 * kDim * 4,
                                        .capacity_pages = 8,
                                        .max_capacity_pages = 16};
  pagedkv_pool pool = 0;
  OK(pagedkv_pool_create(&options, &pool));
  int32_t pages[9], fits = 0;
  uint32_t references = 0;
  uint64_t number = 0;
  OK(pagedkv_pool_allocate(pool, pages, 2));
  CHECK_STATUS(pagedkv_pool_allocate(pool, pages + 2, 7), PAGEDKV_OUT_OF_PAGES);
  CHECK_STATUS(pagedkv_pool_allocate(pool, pages, 9), PAGEDKV_OUT_OF_PAGES);
  CHECK_STATUS(pagedkv_pool_allocate(pool, pages, 1 << 20), PAGEDKV_OUT_OF_PAGES);
  CHECK_STATUS(pagedkv_pool_allocate(pool, NULL, 1), PAGEDKV_INVALID_ARGUMENT);
  OK(pagedkv_pool_retain(pool, pages, 1));
  OK(pagedkv_pool_ref_count(pool, pages[0], &references));
  CHECK(references == 2);
  OK(pagedkv_pool_release(pool, pages, 1));
  OK(pagedkv_pool_release(pool, pages, 2));
  CHECK_STATUS(pagedkv_pool_release(pool, pages, 1), PAGEDKV_INVALID_ARGUMENT);  // freed twice
  const int32_t absurd[] = {-1, 1 << 30};
  CHECK_STATUS(pagedkv_pool_release(pool, absurd, 2), PAGEDKV_INVALID_ARGUMENT);
  OK(pagedkv_pool_available(pool, &number));
  CHECK(number == 8);
  OK(pagedkv_pool_can_allocate(pool, 9, &fits));
  CHECK(fits == 0);
  OK(pagedkv_pool_set_capacity(pool, 9));
  OK(pagedkv_pool_trim(pool, &number));
  void* data = NULL;
  OK(pagedkv_pool_page_data(pool, 0, &data));
  CHECK_STATUS(pagedkv_pool_page_data(pool, -1, &data), PAGEDKV_INVALID_ARGUMENT);
  pagedkv_pool_stats stats = {.struct_size = sizeof stats};
  OK(pagedkv_pool_get_stats(pool, &stats));
  CHECK(stats.capacity_pages == 9 && stats.used_pages == 0 && stats.failed_allocations == 3);

  pagedkv_store store = 0;
  pagedkv_sequence sequence = 0;
  OK(pagedkv_store_create(pool, kPageSize, NULL, 0, &store));
  CHECK_STATUS(pagedkv_store_create(pool, 0, NULL, 0, &store), PAGEDKV_INVALID_ARGUMENT);
  OK(pagedkv_store_open(store, &sequence));
  OK(pagedkv_sequence_append(sequence, 6));
  OK(pagedkv_store_open_sequences(store, &number));
  CHECK(number == 1);
  size_t count = 0;
  OK(pagedkv_sequence_pages(sequence, 0, pages, 9, &count));

  check_plan(pool, pages);

  OK(pagedkv_store_close(store));
  check_windows();
  OK(pagedkv_pool_close(pool));
  OK(pagedkv_sequence_append(sequence, 1));  // keeps what it needs alive
  OK(pagedkv_sequence_close(sequence));
}

// Threads that share what must not be shared get PAGEDKV_BUSY or PAGEDKV_CLOSED, and nothing is lost.
static pagedkv_sequence shared_sequence;
static void* append_many(void* result) {
  int* const total = result;
  int appended = 0;
  for (int i = 0; i < 200; ++i) {
    const pagedkv_status status = pagedkv_sequence_append(shared_sequence, 1);
    if (status == PAGEDKV_OK) ++appended;
    if (status != PAGEDKV_OK && status != PAGEDKV_BUSY) {
      *total = -1;
      return NULL;
    }
  }
  *total = appended;
  return NULL;
}

static void test_threads(void) {
  pagedkv_cache_options options = small_options();
  options.capacity_pages = options.max_capacity_pages = 1000;
  pagedkv_cache cache = 0;
  OK(pagedkv_cache_create(&options, &cache));
  OK(pagedkv_cache_open(cache, NULL, 0, NULL, &shared_sequence));
  pthread_t threads[3];
  int appended[3] = {0};
  int total = 0;
  for (int i = 0; i < 3; ++i) CHECK(pthread_create(&threads[i], NULL, append_many, &appended[i]) == 0);
  for (int i = 0; i < 3; ++i) {
    CHECK(pthread_join(threads[i], NULL) == 0);
    CHECK(appended[i] >= 0);
    total += appended[i];
  }
  uint64_t held = 0;
  OK(pagedkv_sequence_num_tokens(shared_sequence, &held));
  CHECK(held == (uint64_t)total);
  OK(pagedkv_sequence_close(shared_sequence));
  OK(pagedkv_cache_close(cache));
}

// While one thread begins and ends steps, others look at the sequence: they see it between calls, or PAGEDKV_BUSY.
static pagedkv_cache stepping_cache;
static void* look_on(void* result) {
  int* const wrong = result;
  for (int i = 0; i < 3000; ++i) {
    int32_t pages[64], tokens[256];
    size_t num_pages = 0, num_tokens = 0;
    const pagedkv_status a = pagedkv_sequence_pages(shared_sequence, 0, pages, 64, &num_pages);
    const pagedkv_status b = pagedkv_sequence_tokens(shared_sequence, tokens, 256, &num_tokens);
    if ((a != PAGEDKV_OK && a != PAGEDKV_BUSY) || (b != PAGEDKV_OK && b != PAGEDKV_BUSY)) ++*wrong;
    for (size_t t = 0; b == PAGEDKV_OK && t < num_tokens && t < 256; ++t) *wrong += tokens[t] != (int32_t)t;
  }
  return NULL;
}

static void step_on(void) {
  const int32_t ids[] = {0, 1, 2, 3, 4};
  uint64_t held = 0;
  for (int i = 0; i < 500; ++i) {
    pagedkv_status status = PAGEDKV_BUSY;
    while (status == PAGEDKV_BUSY) status = pagedkv_sequence_truncate(shared_sequence, 0);
    OK(status);
    const pagedkv_step_item item = {.sequence = shared_sequence, .num_new_tokens = 5, .tokens = ids, .num_tokens = 5};
    pagedkv_step step = 0;
    do status = pagedkv_cache_begin_step(stepping_cache, &item, 1, &step);
    while (status == PAGEDKV_BUSY);
    OK(status);
    do status = i % 2 == 0 ? pagedkv_step_commit(step) : pagedkv_step_close(step);
    while (status == PAGEDKV_BUSY);
    OK(status);
    while (i % 2 == 0 && pagedkv_step_close(step) == PAGEDKV_BUSY) continue;
  }
  pagedkv_status status = PAGEDKV_BUSY;
  while (status == PAGEDKV_BUSY) status = pagedkv_sequence_num_tokens(shared_sequence, &held);
  CHECK(status == PAGEDKV_OK && held == 0);  // the last step was closed without a commit
}

static void test_threads_beside_a_step(void) {
  stepping_cache = small_cache();
  OK(pagedkv_cache_open(stepping_cache, NULL, 0, NULL, &shared_sequence));
  pthread_t threads[2];
  int wrong[2] = {0};
  for (int i = 0; i < 2; ++i) CHECK(pthread_create(&threads[i], NULL, look_on, &wrong[i]) == 0);
  step_on();
  for (int i = 0; i < 2; ++i) CHECK(pthread_join(threads[i], NULL) == 0 && wrong[i] == 0);
  OK(pagedkv_sequence_close(shared_sequence));
  OK(pagedkv_cache_close(stepping_cache));
}

int main(void) {
  test_names();
  test_serving();
  test_events();
  test_steps();
  test_handles();
  test_bad_options();
  test_pool_store_and_plan();
  test_merge();
  test_prefix_cache();
  test_plans();
  test_misuse();
  test_dense();
  test_interleaved();
  test_threads();
  test_threads_beside_a_step();
  if (failures == 0) puts("the C interface holds");
  return failures == 0 ? 0 : 1;
}
