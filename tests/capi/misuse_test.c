// Misuse from C, function by function: handles that are null, closed, of another kind or made up; pointers that are
// NULL. Nothing is followed and nothing is lost.
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "check.h"
#include "pagedkv/c/pagedkv.h"

enum { kDim = 2 };

// All kinds of objects at once; a handle of each.
typedef struct {
  pagedkv_cache cache;
  pagedkv_sequence sequence;
  pagedkv_step step;
  pagedkv_pool pool;
  pagedkv_store store;
  pagedkv_plan plan;
  pagedkv_dense dense;
} handles;

static const pagedkv_attention_config kConfig = {.struct_size = sizeof(pagedkv_attention_config),
                                                 .num_q_heads = 1,
                                                 .num_kv_heads = 1,
                                                 .head_dim = kDim,
                                                 .kv_dtype = PAGEDKV_F32};

static handles make_all(void) {
  handles all = {0};
  const pagedkv_cache_options cache = {.struct_size = sizeof cache,
                                       .num_layers = 1,
                                       .num_q_heads = 1,
                                       .num_kv_heads = 1,
                                       .head_dim = kDim,
                                       .dtype = PAGEDKV_F32,
                                       .capacity_pages = 8};
  OK(pagedkv_cache_create(&cache, &all.cache));
  OK(pagedkv_cache_open(all.cache, NULL, 0, NULL, &all.sequence));
  const pagedkv_step_item item = {.sequence = all.sequence, .num_new_tokens = 1};
  OK(pagedkv_cache_begin_step(all.cache, &item, 1, &all.step));
  const pagedkv_pool_options pool = {.struct_size = sizeof pool, .page_bytes = 256, .capacity_pages = 8};
  OK(pagedkv_pool_create(&pool, &all.pool));
  OK(pagedkv_store_create(all.pool, 4, NULL, 0, &all.store));
  const int32_t qo_indptr[] = {0, 1}, table[] = {0}, seq_lens[] = {1};
  const pagedkv_attention_batch batch = {.struct_size = sizeof batch,
                                         .qo_indptr = qo_indptr,
                                         .num_qo_indptr = 2,
                                         .block_table = table,
                                         .num_block_table = 1,
                                         .block_table_stride = 1,
                                         .seq_lens = seq_lens,
                                         .num_seq_lens = 1};
  OK(pagedkv_plan_create(&kConfig, &batch, NULL, 0, &all.plan));
  const pagedkv_dense_options dense = {
      .struct_size = sizeof dense, .batch_size = 1, .num_layers = 1, .num_heads = 1, .head_dim = kDim};
  OK(pagedkv_dense_create(&dense, &all.dense));
  return all;
}

static void close_all(const handles* all) {
  OK(pagedkv_step_close(all->step));
  OK(pagedkv_sequence_close(all->sequence));
  OK(pagedkv_cache_close(all->cache));
  OK(pagedkv_store_close(all->store));
  OK(pagedkv_pool_close(all->pool));
  OK(pagedkv_plan_close(all->plan));
  OK(pagedkv_dense_close(all->dense));
}

static void ignore_event(void* user, const pagedkv_event* event) { (void)user, (void)event; }

// Calls every function that takes a handle with `h`; each must say `expected` and write nothing.
#define EVERY(call) CHECK_STATUS(call, expected)

static void every_cache_call(pagedkv_cache h, pagedkv_status expected) {
  const int32_t tokens[] = {1};
  uint64_t number = 77, handle = 78;
  int32_t flag = 79;
  size_t count = 80;
  const pagedkv_step_item item = {.sequence = h, .num_new_tokens = 1};
  pagedkv_cache_stats stats = {.struct_size = sizeof stats, .used_pages = 81};
  pagedkv_cache_info info = {.struct_size = sizeof info, .num_layers = 82};
  pagedkv_kv_view view = {.num_pages = 83};
  EVERY(pagedkv_cache_open(h, tokens, 1, NULL, &handle));
  EVERY(pagedkv_cache_begin_step(h, &item, 1, &handle));
  EVERY(pagedkv_cache_pages_available(h, &number));
  EVERY(pagedkv_cache_pages_for_tokens(h, 1, 0, &number));
  EVERY(pagedkv_cache_pages_needed(h, &item, 1, &number));
  EVERY(pagedkv_cache_can_admit(h, 1, 1, 0, &flag));
  EVERY(pagedkv_cache_get_stats(h, &stats));
  EVERY(pagedkv_cache_get_info(h, &info));
  EVERY(pagedkv_cache_page_bytes(h, &number));
  EVERY(pagedkv_cache_view(h, 0, &view));
  EVERY(pagedkv_cache_page_table_of(h, 0, &count));
  EVERY(pagedkv_cache_trim(h, &number));
  EVERY(pagedkv_cache_set_capacity(h, 4));
  EVERY(pagedkv_cache_pin(h, tokens, 1, NULL, &number));
  EVERY(pagedkv_cache_unpin(h, 1));
  EVERY(pagedkv_cache_clear_prefixes(h));
  EVERY(pagedkv_cache_pool(h, &handle));
  EVERY(pagedkv_cache_poll_events(h, ignore_event, NULL, &number));
  EVERY(pagedkv_cache_close(h));
  CHECK(number == 77 && handle == 78 && flag == 79 && count == 80);
  CHECK(stats.used_pages == 81 && info.num_layers == 82 && view.num_pages == 83);
}

static void every_sequence_call(pagedkv_sequence h, pagedkv_status expected) {
  uint64_t number = 77;
  uint32_t small = 78;
  size_t count = 79;
  int32_t ids[1] = {80};
  EVERY(pagedkv_sequence_append(h, 1));
  EVERY(pagedkv_sequence_truncate(h, 0));
  EVERY(pagedkv_sequence_slide(h, 0, 0, 0, &number));
  EVERY(pagedkv_sequence_fork(h, &number));
  EVERY(pagedkv_sequence_num_tokens(h, &number));
  EVERY(pagedkv_sequence_cached_tokens(h, &number));
  EVERY(pagedkv_sequence_num_groups(h, &count));
  EVERY(pagedkv_sequence_page_size(h, &small));
  EVERY(pagedkv_sequence_pages_needed(h, 1, &number));
  EVERY(pagedkv_sequence_pages(h, 0, ids, 1, &count));
  EVERY(pagedkv_sequence_tokens(h, ids, 1, &count));
  EVERY(pagedkv_sequence_close(h));
  CHECK(number == 77 && small == 78 && count == 79 && ids[0] == 80);
}

static void every_step_call(pagedkv_step h, pagedkv_status expected) {
  float row[kDim] = {5, 5};
  const uint32_t accepted[] = {1};
  size_t count = 77;
  EVERY(pagedkv_step_write(h, 0, in(row, kDim), in(row, kDim)));
  EVERY(pagedkv_step_attend(h, 0, in(row, kDim), out(row, kDim), NULL, 0));
  EVERY(pagedkv_step_commit(h));
  EVERY(pagedkv_step_commit_partial(h, accepted, 1));
  EVERY(pagedkv_step_rollback(h));
  EVERY(pagedkv_step_num_rows(h, &count));
  EVERY(pagedkv_step_num_items(h, &count));
  EVERY(pagedkv_step_close(h));
  CHECK(count == 77 && row[0] == 5);
}

static void every_storage_call(uint64_t h, pagedkv_status expected) {
  int32_t page[1] = {77}, flag = 78;
  uint32_t references = 79;
  uint64_t number = 80;
  void* data = NULL;
  pagedkv_pool_stats stats = {.struct_size = sizeof stats, .used_pages = 81};
  EVERY(pagedkv_pool_allocate(h, page, 1));
  EVERY(pagedkv_pool_retain(h, page, 1));
  EVERY(pagedkv_pool_release(h, page, 1));
  EVERY(pagedkv_pool_ref_count(h, 0, &references));
  EVERY(pagedkv_pool_is_evictable(h, 0, &flag));
  EVERY(pagedkv_pool_available(h, &number));
  EVERY(pagedkv_pool_can_allocate(h, 1, &flag));
  EVERY(pagedkv_pool_memory(h, &data, &number, &number));
  EVERY(pagedkv_pool_page_data(h, 0, &data));
  EVERY(pagedkv_pool_get_stats(h, &stats));
  EVERY(pagedkv_pool_trim(h, &number));
  EVERY(pagedkv_pool_set_capacity(h, 4));
  EVERY(pagedkv_store_create(h, 4, NULL, 0, &number));
  EVERY(pagedkv_pool_close(h));
  CHECK(page[0] == 77 && flag == 78 && references == 79 && number == 80 && data == NULL && stats.used_pages == 81);
}

static void every_store_call(pagedkv_store h, pagedkv_status expected) {
  uint64_t number = 77;
  EVERY(pagedkv_store_open(h, &number));
  EVERY(pagedkv_store_open_sequences(h, &number));
  EVERY(pagedkv_store_close(h));
  CHECK(number == 77);
}

static void every_plan_call(pagedkv_plan h, pagedkv_status expected) {
  const pagedkv_kv_view pages = {.num_pages = 1};
  const pagedkv_attention_batch batch = {.struct_size = sizeof batch};
  float row[kDim] = {5, 5};
  size_t count = 77;
  uint64_t number = 78;
  double flops = 79;
  const char* name = NULL;
  EVERY(pagedkv_plan_extend(h, &batch));
  EVERY(pagedkv_plan_run(h, &pages, in(row, kDim), out(row, kDim), NULL, 0));
  EVERY(pagedkv_plan_run_with_sinks(h, &pages, in(row, kDim), out(row, kDim), NULL, 0, row, 1));
  EVERY(pagedkv_plan_num_rows(h, &count));
  EVERY(pagedkv_plan_target(h, &name));
  EVERY(pagedkv_plan_kv_bytes(h, &number));
  EVERY(pagedkv_plan_flops(h, &flops));
  EVERY(pagedkv_plan_close(h));
  CHECK(count == 77 && number == 78 && flops > 78 && name == NULL);
}

static void every_dense_call(pagedkv_dense h, pagedkv_status expected) {
  float row[kDim] = {5, 5};
  uint64_t number = 77;
  pagedkv_dense_kv kv = {.struct_size = sizeof kv, .seq_len = 78};
  pagedkv_pool_stats stats = {.struct_size = sizeof stats, .used_pages = 79};
  EVERY(pagedkv_dense_update(h, 0, in(row, kDim), in(row, kDim), &kv));
  EVERY(pagedkv_dense_get(h, 0, &kv));
  EVERY(pagedkv_dense_copy(h, 0, out(row, kDim), out(row, kDim)));
  EVERY(pagedkv_dense_seq_length(h, 0, &number));
  EVERY(pagedkv_dense_reset(h));
  EVERY(pagedkv_dense_cached_attention(h, 0, in(row, kDim), in(row, kDim), in(row, kDim), out(row, kDim)));
  EVERY(pagedkv_dense_get_stats(h, &stats));
  EVERY(pagedkv_dense_close(h));
  CHECK(row[0] == 5 && number == 77 && kv.seq_len == 78 && stats.used_pages == 79);
}

static void every_interleaved_call(kvcache* h, pagedkv_status expected) {
  float row[kDim] = {5, 5};
  EVERY(kvcache_append(h, row, row, 1));
  EVERY(kvcache_reset(h));
  EVERY(kvcache_attend(h, row, row));
  EVERY(kvcache_attend_last(h, row, 1, row));
  CHECK(kvcache_len(h) == -1 && kvcache_rows(h) == NULL && row[0] == 5);
  kvcache_free(h);
}

static void every_call(const handles* h, pagedkv_status expected) {
  every_cache_call(h->cache, expected);
  every_sequence_call(h->sequence, expected);
  every_step_call(h->step, expected);
  every_storage_call(h->pool, expected);
  every_store_call(h->store, expected);
  every_plan_call(h->plan, expected);
  every_dense_call(h->dense, expected);
}

static void test_bad_handles(void) {
  const handles nothing = {0};
  every_call(&nothing, PAGEDKV_CLOSED);
  every_interleaved_call(NULL, PAGEDKV_CLOSED);

  const handles all = make_all();
  const handles foreign = {all.pool, all.cache, all.plan, all.dense, all.step, all.sequence, all.store};
  every_call(&foreign, PAGEDKV_INVALID_ARGUMENT);
  every_interleaved_call((kvcache*)(uintptr_t)all.cache, PAGEDKV_INVALID_ARGUMENT);

  const uint64_t slot = UINT64_C(0xfffffff0), generation = UINT64_C(0x0ffffff) << 32;
  const handles never = {all.cache | slot, all.sequence | generation, all.step | slot, all.pool | generation,
                         all.store | slot, all.plan | generation,     all.dense | slot};
  every_call(&never, PAGEDKV_CLOSED);

  close_all(&all);
  every_call(&all, PAGEDKV_CLOSED);  // use after close, and closing twice
  kvcache* interleaved = kvcache_create(4, kDim);
  kvcache_free(interleaved);
  every_interleaved_call(interleaved, PAGEDKV_CLOSED);

  const handles reused = make_all();  // in the slots of the old ones
  every_call(&all, PAGEDKV_CLOSED);
  close_all(&reused);
}

// Pointers that must not be NULL.
static void test_null_pointers(void) {
  const handles all = make_all();
  const pagedkv_status expected = PAGEDKV_INVALID_ARGUMENT;
  float row[kDim] = {0};
  uint64_t handle = 0;
  EVERY(pagedkv_cache_open(all.cache, NULL, 0, NULL, NULL));
  EVERY(pagedkv_cache_begin_step(all.cache, NULL, 0, NULL));
  EVERY(pagedkv_cache_pages_available(all.cache, NULL));
  EVERY(pagedkv_cache_pages_for_tokens(all.cache, 1, 0, NULL));
  EVERY(pagedkv_cache_pages_needed(all.cache, NULL, 0, NULL));
  EVERY(pagedkv_cache_can_admit(all.cache, 1, 0, 0, NULL));
  EVERY(pagedkv_cache_get_info(all.cache, NULL));
  EVERY(pagedkv_cache_page_bytes(all.cache, NULL));
  EVERY(pagedkv_cache_view(all.cache, 0, NULL));
  EVERY(pagedkv_cache_page_table_of(all.cache, 0, NULL));
  EVERY(pagedkv_cache_pin(all.cache, NULL, 0, NULL, NULL));
  EVERY(pagedkv_cache_pool(all.cache, NULL));
  EVERY(pagedkv_sequence_fork(all.sequence, NULL));
  EVERY(pagedkv_sequence_num_tokens(all.sequence, NULL));
  EVERY(pagedkv_sequence_cached_tokens(all.sequence, NULL));
  EVERY(pagedkv_sequence_num_groups(all.sequence, NULL));
  EVERY(pagedkv_sequence_page_size(all.sequence, NULL));
  EVERY(pagedkv_sequence_pages_needed(all.sequence, 1, NULL));
  EVERY(pagedkv_sequence_pages(all.sequence, 0, NULL, 0, NULL));
  EVERY(pagedkv_sequence_tokens(all.sequence, NULL, 3, NULL));
  EVERY(pagedkv_step_commit_partial(all.step, NULL, 1));
  EVERY(pagedkv_step_num_rows(all.step, NULL));
  EVERY(pagedkv_step_num_items(all.step, NULL));
  EVERY(pagedkv_pool_create(NULL, &handle));
  EVERY(pagedkv_pool_retain(all.pool, NULL, 1));
  EVERY(pagedkv_pool_release(all.pool, NULL, 1));
  EVERY(pagedkv_pool_allocate(all.pool, (int32_t*)row, SIZE_MAX));
  EVERY(pagedkv_pool_ref_count(all.pool, 0, NULL));
  EVERY(pagedkv_pool_is_evictable(all.pool, 0, NULL));
  EVERY(pagedkv_pool_available(all.pool, NULL));
  EVERY(pagedkv_pool_can_allocate(all.pool, 1, NULL));
  EVERY(pagedkv_pool_page_data(all.pool, 0, NULL));
  EVERY(pagedkv_pool_get_stats(all.pool, NULL));
  EVERY(pagedkv_store_create(all.pool, 4, NULL, 0, NULL));
  EVERY(pagedkv_store_open(all.store, NULL));
  EVERY(pagedkv_store_open_sequences(all.store, NULL));
  EVERY(pagedkv_plan_create(NULL, NULL, NULL, 0, &handle));
  EVERY(pagedkv_plan_create(&kConfig, NULL, NULL, 0, &handle));
  EVERY(pagedkv_plan_create(&kConfig, NULL, NULL, 0, NULL));
  EVERY(pagedkv_plan_workspace_bytes(&kConfig, NULL, NULL));
  EVERY(pagedkv_plan_num_rows(all.plan, NULL));
  EVERY(pagedkv_plan_target(all.plan, NULL));
  EVERY(pagedkv_plan_kv_bytes(all.plan, NULL));
  EVERY(pagedkv_plan_flops(all.plan, NULL));
  EVERY(pagedkv_write_kv(&kConfig, NULL, NULL, 0, in(NULL, 0), in(NULL, 0)));
  EVERY(pagedkv_write_kv(NULL, NULL, NULL, 0, in(NULL, 0), in(NULL, 0)));
  EVERY(pagedkv_merge_states(NULL, NULL, NULL, NULL, 1, 1));
  EVERY(pagedkv_dense_create(NULL, &handle));
  EVERY(pagedkv_dense_page_bytes(NULL, &handle));
  EVERY(pagedkv_dense_get(all.dense, 0, NULL));
  EVERY(pagedkv_dense_copy(all.dense, 0, out(NULL, kDim), out(row, kDim)));
  EVERY(pagedkv_dense_seq_length(all.dense, 0, NULL));
  EVERY(pagedkv_dense_get_stats(all.dense, NULL));
  EVERY(pagedkv_dense_update(all.dense, 0, in(NULL, kDim), in(row, kDim), NULL));
  EVERY(pagedkv_active_target(NULL));
  EVERY(pagedkv_find_target((pagedkv_bytes){"amx", 3}, NULL));
  CHECK(handle == 0);
  close_all(&all);
}

// Numbers that no request can mean.
static void test_huge_numbers(void) {
  const handles all = make_all();
  uint64_t number = 0;
  size_t count = 0;
  int32_t fits = 1;
  float row[kDim] = {0};
  OK(pagedkv_cache_can_admit(all.cache, UINT64_MAX, UINT64_MAX, 0, &fits));
  CHECK(fits == 0);
  OK(pagedkv_cache_pages_for_tokens(all.cache, UINT64_MAX, 0, &number));
  CHECK(number > 8);
  CHECK_STATUS(pagedkv_cache_set_capacity(all.cache, UINT64_MAX), PAGEDKV_INVALID_ARGUMENT);
  CHECK_STATUS(pagedkv_cache_set_capacity(all.cache, 0), PAGEDKV_INVALID_ARGUMENT);
  CHECK_STATUS(pagedkv_cache_view(all.cache, UINT32_MAX, &(pagedkv_kv_view){0}), PAGEDKV_INVALID_ARGUMENT);
  CHECK_STATUS(pagedkv_cache_page_table_of(all.cache, UINT32_MAX, &count), PAGEDKV_INVALID_ARGUMENT);
  CHECK_STATUS(pagedkv_cache_unpin(all.cache, UINT64_MAX), PAGEDKV_NOT_FOUND);
  CHECK_STATUS(pagedkv_step_write(all.step, UINT32_MAX, in(row, kDim), in(row, kDim)), PAGEDKV_INVALID_ARGUMENT);
  CHECK_STATUS(pagedkv_step_attend(all.step, 1, in(row, kDim), out(row, kDim), NULL, 0), PAGEDKV_INVALID_ARGUMENT);
  CHECK_STATUS(pagedkv_pool_can_allocate(all.pool, UINT64_MAX, &fits), PAGEDKV_OK);
  CHECK(fits == 0);
  CHECK_STATUS(pagedkv_dense_get(all.dense, UINT32_MAX, &(pagedkv_dense_kv){.struct_size = sizeof(pagedkv_dense_kv)}),
               PAGEDKV_INVALID_ARGUMENT);
  pagedkv_pool_options pool = {.struct_size = sizeof pool, .page_bytes = UINT64_MAX, .capacity_pages = 2};
  CHECK_STATUS(pagedkv_pool_create(&pool, &number), PAGEDKV_INVALID_ARGUMENT);
  pool.page_bytes = 4096, pool.capacity_pages = UINT64_C(1) << 40;
  CHECK_STATUS(pagedkv_pool_create(&pool, &number), PAGEDKV_INVALID_ARGUMENT);
  pool.capacity_pages = 4, pool.watermark_pages = UINT64_MAX;
  CHECK_STATUS(pagedkv_pool_create(&pool, &number), PAGEDKV_INVALID_ARGUMENT);

  pagedkv_sequence sequence = 0;
  OK(pagedkv_store_open(all.store, &sequence));
  CHECK_STATUS(pagedkv_sequence_append(sequence, UINT32_MAX), PAGEDKV_INVALID_ARGUMENT);
  CHECK_STATUS(pagedkv_sequence_append(sequence, 1U << 30), PAGEDKV_OUT_OF_PAGES);
  CHECK_STATUS(pagedkv_sequence_truncate(sequence, UINT64_MAX), PAGEDKV_INVALID_ARGUMENT);
  CHECK_STATUS(pagedkv_sequence_slide(sequence, UINT64_MAX, UINT64_MAX, SIZE_MAX, NULL), PAGEDKV_INVALID_ARGUMENT);
  OK(pagedkv_sequence_num_tokens(sequence, &number));
  CHECK(number == 0);
  OK(pagedkv_sequence_close(sequence));
  close_all(&all);
}

void test_misuse(void) {
  test_bad_handles();
  test_null_pointers();
  test_huge_numbers();
}
