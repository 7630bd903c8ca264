// The dense and the interleaved cache from C.
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "check.h"
#include "pagedkv/c/pagedkv.h"

void test_dense(void) {
  const pagedkv_dense_options options = {
      .struct_size = sizeof options, .batch_size = 1, .num_layers = 2, .num_heads = 1, .head_dim = 2, .max_seq_len = 5};
  pagedkv_dense dense = 0;
  uint64_t number = 0;
  OK(pagedkv_dense_create(&options, &dense));
  const float k[] = {1, 0, 0, 1}, v[] = {2, 4, 6, 8};
  pagedkv_dense_kv kv = {.struct_size = sizeof kv};
  OK(pagedkv_dense_update(dense, 0, in(k, 4), in(v, 4), &kv));
  CHECK(kv.seq_len == 2 && kv.batch_size == 1 && kv.head_dim == 2);
  float row[2];
  memcpy(row, (const char*)kv.pages.v + kv.page_table[0] * kv.pages.v_page_stride + kv.pages.v_token_stride,
         sizeof row);
  CHECK(row[0] == 6 && row[1] == 8);
  OK(pagedkv_dense_seq_length(dense, 1, &number));
  CHECK(number == 0);
  float result[4], copy_k[8], copy_v[8];
  OK(pagedkv_dense_cached_attention(dense, 0, in((const float[]){0, 0, 0, 0}, 4), in(k, 4), in(v, 4), out(result, 4)));
  CHECK(fabsf(result[0] - (2 + 6 + 2) / 3.0F) < 1e-6F);  // causal: not the fourth
  CHECK(fabsf(result[2] - 4) < 1e-6F);
  OK(pagedkv_dense_copy(dense, 0, out(copy_k, 8), out(copy_v, 8)));
  CHECK(copy_k[0] == 1 && copy_v[7] == 8);
  CHECK_STATUS(pagedkv_dense_update(dense, 0, in(k, 4), in(v, 4), NULL), PAGEDKV_INVALID_ARGUMENT);  // 6 > 5
  OK(pagedkv_dense_get(dense, 0, &kv));
  CHECK(kv.seq_len == 4);
  kv.struct_size = 1;
  CHECK_STATUS(pagedkv_dense_update(dense, 1, in(k, 4), in(v, 4), &kv), PAGEDKV_INVALID_ARGUMENT);
  OK(pagedkv_dense_seq_length(dense, 1, &number));
  CHECK(number == 0);
  OK(pagedkv_dense_reset(dense));
  OK(pagedkv_dense_seq_length(dense, 0, &number));
  CHECK(number == 0);
  pagedkv_pool_stats stats = {.struct_size = sizeof stats};
  OK(pagedkv_dense_get_stats(dense, &stats));
  CHECK(stats.used_pages == 1);
  OK(pagedkv_dense_close(dense));
  CHECK_STATUS(pagedkv_dense_reset(dense), PAGEDKV_CLOSED);

  uint64_t page_bytes = 0;
  OK(pagedkv_dense_page_bytes(&options, &page_bytes));
  const pagedkv_pool_options pool_options = {
      .struct_size = sizeof pool_options, .page_bytes = page_bytes, .capacity_pages = 1};
  pagedkv_pool pool = 0;
  OK(pagedkv_pool_create(&pool_options, &pool));
  pagedkv_dense_options shared = options;
  shared.pool = pool;
  OK(pagedkv_dense_create(&shared, &dense));
  OK(pagedkv_dense_update(dense, 0, in(k, 4), in(v, 4), NULL));
  CHECK_STATUS(pagedkv_dense_update(dense, 1, in(k, 4), in(v, 4), NULL), PAGEDKV_OUT_OF_PAGES);
  OK(pagedkv_pool_close(pool));
  OK(pagedkv_dense_close(dense));
  shared.pool = pool;
  CHECK_STATUS(pagedkv_dense_create(&shared, &dense), PAGEDKV_CLOSED);
}

void test_interleaved(void) {
  CHECK(kvcache_create(0, 4) == NULL);
  CHECK(kvcache_create(-1, 4) == NULL);
  CHECK(kvcache_create(4, INT64_MAX) == NULL);
  kvcache* cache = kvcache_create(3, 2);
  CHECK(cache != NULL);
  const float k[] = {1, 0, 0, 1, 9, 9}, v[] = {2, 4, 6, 8, 9, 9};
  OK(kvcache_append(cache, k, v, 2));
  CHECK(kvcache_len(cache) == 2);
  const float* rows = kvcache_rows(cache);
  CHECK(rows != NULL && rows[0] == 1 && rows[2] == 2 && rows[3] == 4 && rows[4] == 0 && rows[7] == 8);
  float result[4];
  OK(kvcache_attend(cache, (const float[]){0, 0}, result));
  CHECK(fabsf(result[0] - 4) < 1e-6F && fabsf(result[1] - 6) < 1e-6F);
  OK(kvcache_attend_last(cache, (const float[]){0, 0, 0, 0}, 2, result));
  CHECK(fabsf(result[0] - 2) < 1e-6F && fabsf(result[2] - 4) < 1e-6F);
  CHECK_STATUS(kvcache_append(cache, k, v, 2), PAGEDKV_INVALID_ARGUMENT);  // beyond its capacity
  CHECK_STATUS(kvcache_append(cache, k, v, 0), PAGEDKV_INVALID_ARGUMENT);
  CHECK_STATUS(kvcache_append(cache, k, v, -3), PAGEDKV_INVALID_ARGUMENT);
  CHECK_STATUS(kvcache_append(cache, NULL, v, 1), PAGEDKV_INVALID_ARGUMENT);
  CHECK_STATUS(kvcache_attend(cache, k, NULL), PAGEDKV_INVALID_ARGUMENT);
  CHECK_STATUS(kvcache_attend_last(cache, k, INT64_MAX, result), PAGEDKV_INVALID_ARGUMENT);
  CHECK(kvcache_len(cache) == 2);
  OK(kvcache_reset(cache));
  CHECK(kvcache_len(cache) == 0);
  OK(kvcache_attend(cache, k, result));
  CHECK(result[0] == 0);
  kvcache_free(cache);
  kvcache_free(cache);  // twice
  kvcache_free(NULL);
  CHECK(kvcache_len(cache) == -1);
  CHECK(kvcache_rows(cache) == NULL);
  CHECK_STATUS(kvcache_append(cache, k, v, 1), PAGEDKV_CLOSED);
  CHECK_STATUS(kvcache_append((kvcache*)k, k, v, 1), PAGEDKV_INVALID_ARGUMENT);  // a pointer that is no handle
  CHECK_STATUS(kvcache_append(NULL, k, v, 1), PAGEDKV_CLOSED);
}
