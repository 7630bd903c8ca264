// Plans from C: masks, biases, sinks, cascade, extension, a workspace of one's own. Pages hold keys of zeros, so that
// every visible key weighs the same and the expected output is a mean.
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "check.h"
#include "pagedkv/c/pagedkv.h"

enum { kDim = 2, kPageSize = 4, kPages = 3, kTokens = kPages * kPageSize };

static float k_rows[kTokens * kDim], v_rows[kTokens * kDim];

// Token t has the value t in all elements of V; pages lie in order.
static pagedkv_kv_view pages_of_zeros(void) {
  for (int i = 0; i < kTokens * kDim; ++i) k_rows[i] = 0, v_rows[i] = (float)(i / kDim);
  return (pagedkv_kv_view){.k = k_rows,
                           .v = v_rows,
                           .k_page_stride = kPageSize * kDim * 4,
                           .k_head_stride = kPageSize * kDim * 4,
                           .k_token_stride = kDim * 4,
                           .v_page_stride = kPageSize * kDim * 4,
                           .v_head_stride = kPageSize * kDim * 4,
                           .v_token_stride = kDim * 4,
                           .num_pages = kPages};
}

static pagedkv_attention_config one_head(void) {
  return (pagedkv_attention_config){.struct_size = sizeof(pagedkv_attention_config),
                                    .num_q_heads = 1,
                                    .num_kv_heads = 1,
                                    .head_dim = kDim,
                                    .page_size = kPageSize,
                                    .kv_dtype = PAGEDKV_F32};
}

static const int32_t kTable[] = {0, 1, 2};

// One sequence with one query row, over the first tokens of the pages.
static pagedkv_attention_batch decode(const int32_t* seq_len) {
  static const int32_t qo_indptr[] = {0, 1};
  return (pagedkv_attention_batch){.struct_size = sizeof(pagedkv_attention_batch),
                                   .qo_indptr = qo_indptr,
                                   .num_qo_indptr = 2,
                                   .block_table = kTable,
                                   .num_block_table = kPages,
                                   .block_table_stride = kPages,
                                   .seq_lens = seq_len,
                                   .num_seq_lens = 1};
}

// Output of a plan of one row, and its lse.
static float run(const pagedkv_attention_config* config, const pagedkv_attention_batch* batch, float* lse) {
  const pagedkv_kv_view pages = pages_of_zeros();
  const float q[kDim] = {1, 1};
  float result[kDim] = {-1, -1};
  pagedkv_plan plan = 0;
  OK(pagedkv_plan_create(config, batch, NULL, 0, &plan));
  OK(pagedkv_plan_run(plan, &pages, in(q, kDim), out(result, kDim), lse, lse != NULL ? 1 : 0));
  OK(pagedkv_plan_close(plan));
  CHECK(result[0] == result[1]);
  return result[0];
}

static void test_masks(void) {
  const pagedkv_attention_config config = one_head();
  const int32_t length = 4;
  const int64_t offset = 0;
  const uint8_t booleans[] = {1, 0, 0, 1}, bits[] = {0x9};
  const float additive[] = {0, -INFINITY, -INFINITY, 0};
  const struct {
    uint32_t kind;
    const void* mask;
    size_t bytes;
  } masks[] = {{PAGEDKV_MASK_BOOL, booleans, sizeof booleans},
               {PAGEDKV_MASK_BITS, bits, sizeof bits},
               {PAGEDKV_MASK_ADDITIVE, additive, sizeof additive}};
  for (size_t i = 0; i < 3; ++i) {
    pagedkv_attention_batch batch = decode(&length);
    batch.mask_kind = masks[i].kind;
    batch.mask = masks[i].mask;
    batch.mask_bytes = masks[i].bytes;
    batch.mask_offsets = &offset;
    batch.num_mask_offsets = 1;
    CHECK(fabsf(run(&config, &batch, NULL) - 1.5F) < 1e-6F);  // tokens 0 and 3
    pagedkv_plan plan = 0;
    batch.mask_bytes = 0;
    CHECK_STATUS(pagedkv_plan_create(&config, &batch, NULL, 0, &plan), PAGEDKV_INVALID_ARGUMENT);
    batch.mask_bytes = masks[i].bytes;
    batch.mask_kind = 9;
    CHECK_STATUS(pagedkv_plan_create(&config, &batch, NULL, 0, &plan), PAGEDKV_INVALID_ARGUMENT);
  }
}

static void test_variants(void) {
  const int32_t length = 4;
  const pagedkv_attention_batch batch = decode(&length);
  float lse = 0;
  pagedkv_attention_config config = one_head();
  CHECK(fabsf(run(&config, &batch, &lse) - 1.5F) < 1e-6F && fabsf(lse - logf(4)) < 1e-6F);

  const float sink = 0;  // a fifth place in the softmax, without a value
  config.variant.sinks = &sink;
  config.variant.num_sinks = 1;
  CHECK(fabsf(run(&config, &batch, &lse) - 6 / 5.0F) < 1e-6F);

  config = one_head();
  pagedkv_plan with_sinks = 0;
  const pagedkv_kv_view pages = pages_of_zeros();
  const float q[kDim] = {1, 1};
  float result[kDim];
  OK(pagedkv_plan_create(&config, &batch, NULL, 0, &with_sinks));
  OK(pagedkv_plan_run_with_sinks(with_sinks, &pages, in(q, kDim), out(result, kDim), NULL, 0, &sink, 1));
  CHECK(fabsf(result[0] - 6 / 5.0F) < 1e-6F);
  CHECK_STATUS(pagedkv_plan_run_with_sinks(with_sinks, &pages, in(q, kDim), out(result, kDim), NULL, 0, NULL, 1),
               PAGEDKV_INVALID_ARGUMENT);
  CHECK_STATUS(pagedkv_plan_run_with_sinks(with_sinks, &pages, in(q, kDim), out(result, kDim), NULL, 0, result, 2),
               PAGEDKV_INVALID_ARGUMENT);
  OK(pagedkv_plan_close(with_sinks));
  const float slope = 1;  // logit of key j: j - 3
  config.variant.alibi_slopes = &slope;
  config.variant.num_alibi_slopes = 1;
  float sum = 0, mean = 0;
  for (int j = 0; j < 4; ++j) sum += expf((float)(j - 3)), mean += expf((float)(j - 3)) * (float)j;
  CHECK(fabsf(run(&config, &batch, NULL) - mean / sum) < 1e-5F);

  config = one_head();
  config.variant.window = 2;
  CHECK(fabsf(run(&config, &batch, NULL) - 2.5F) < 1e-6F);
  config.variant.window = 0;
  config.variant.logits_soft_cap = 5;
  CHECK(fabsf(run(&config, &batch, NULL) - 1.5F) < 1e-6F);

  pagedkv_plan plan = 0;
  const float bad[] = {NAN, INFINITY, -1};
  for (size_t i = 0; i < 3; ++i) {
    config.variant.logits_soft_cap = bad[i];
    CHECK_STATUS(pagedkv_plan_create(&config, &batch, NULL, 0, &plan), PAGEDKV_INVALID_ARGUMENT);
  }
}

enum { kManyRows = 20 };

// The first output element of 20 query rows over f16 pages whose values are 1 + 2^-9, which bf16 rounds to 1.
static float run_f16(const pagedkv_attention_config* config) {
  uint16_t k[kTokens * kDim] = {0}, v[kTokens * kDim];
  for (int i = 0; i < kTokens * kDim; ++i) v[i] = 0x3C02;
  pagedkv_kv_view pages = pages_of_zeros();
  pages.k = k;
  pages.v = v;
  pages.k_page_stride = pages.k_head_stride = pages.v_page_stride = pages.v_head_stride = kPageSize * kDim * 2;
  pages.k_token_stride = pages.v_token_stride = kDim * 2;
  const int32_t qo_indptr[] = {0, kManyRows}, length = kTokens, start = kTokens;
  pagedkv_attention_batch batch = decode(&length);
  batch.qo_indptr = qo_indptr;
  batch.q_start = &start;
  batch.num_q_start = 1;
  const float q[kManyRows * kDim] = {1, 1};
  float result[kManyRows * kDim];
  pagedkv_plan plan = 0;
  OK(pagedkv_plan_create(config, &batch, NULL, 0, &plan));
  OK(pagedkv_plan_run(plan, &pages, in(q, kManyRows * kDim), out(result, kManyRows * kDim), NULL, 0));
  OK(pagedkv_plan_close(plan));
  return result[0];
}

static void test_f16_as_bf16(void) {
  const float exact = 1 + 1.0F / 512;
  size_t index = 0;
  const pagedkv_bytes amx = {"amx", 3}, dots = {"avx512_bf16", 11};
  const int has_amx = pagedkv_find_target(amx, &index) == PAGEDKV_OK;
  const int rounds = has_amx || pagedkv_find_target(dots, &index) == PAGEDKV_OK;
  pagedkv_attention_config config = one_head();
  config.kv_dtype = PAGEDKV_F16;
  if (rounds) config.target = has_amx ? amx : dots;
  CHECK(fabsf(run_f16(&config) - exact) < 1e-6F);
  config.attention_flags = PAGEDKV_F16_AS_BF16;
  CHECK(fabsf(run_f16(&config) - (rounds ? 1 : exact)) < 2e-4F);
  config.struct_size = offsetof(pagedkv_attention_config, attention_flags);  // a caller that knows no flags
  CHECK(fabsf(run_f16(&config) - exact) < 1e-6F);

  config.struct_size = sizeof config;
  config.attention_flags = 4;
  pagedkv_plan plan = 0;
  const int32_t length = 1;
  const pagedkv_attention_batch batch = decode(&length);
  CHECK_STATUS(pagedkv_plan_create(&config, &batch, NULL, 0, &plan), PAGEDKV_UNSUPPORTED);
}

static void test_extend(void) {
  const pagedkv_attention_config config = one_head();
  const pagedkv_kv_view pages = pages_of_zeros();
  const float q[kDim] = {1, 1};
  float result[kDim];
  int32_t length = 4;
  pagedkv_attention_batch batch = decode(&length);
  pagedkv_plan plan = 0;
  OK(pagedkv_plan_create(&config, &batch, NULL, 0, &plan));
  for (length = 5; length <= kTokens; ++length) {
    OK(pagedkv_plan_extend(plan, &batch));
    OK(pagedkv_plan_run(plan, &pages, in(q, kDim), out(result, kDim), NULL, 0));
    CHECK(fabsf(result[0] - (float)(length - 1) / 2) < 1e-5F);
  }
  const int32_t two_rows[] = {0, 2};
  pagedkv_attention_batch other = batch;
  other.qo_indptr = two_rows;
  length = kTokens;
  CHECK_STATUS(pagedkv_plan_extend(plan, &other), PAGEDKV_INVALID_ARGUMENT);
  other = batch;
  other.block_table = NULL;
  CHECK_STATUS(pagedkv_plan_extend(plan, &other), PAGEDKV_INVALID_ARGUMENT);
  CHECK_STATUS(pagedkv_plan_extend(plan, NULL), PAGEDKV_INVALID_ARGUMENT);
  OK(pagedkv_plan_run(plan, &pages, in(q, kDim), out(result, kDim), NULL, 0));  // as it was
  CHECK(fabsf(result[0] - (kTokens - 1) / 2.0F) < 1e-5F);
  OK(pagedkv_plan_close(plan));
  CHECK_STATUS(pagedkv_plan_extend(plan, &batch), PAGEDKV_CLOSED);
}

// One new row of each of two sequences; their page tables are borrowed.
static pagedkv_attention_batch decode_two(const int32_t* kv_indptr, const int32_t* indices, const int32_t* last) {
  static const int32_t qo_indptr[] = {0, 1, 2};
  return (pagedkv_attention_batch){.struct_size = sizeof(pagedkv_attention_batch),
                                   .qo_indptr = qo_indptr,
                                   .num_qo_indptr = 3,
                                   .kv_indptr = kv_indptr,
                                   .num_kv_indptr = 3,
                                   .kv_indices = indices,
                                   .num_kv_indices = (size_t)kv_indptr[2],
                                   .kv_last_page_len = last,
                                   .num_kv_last_page_len = 2};
}

static void test_cascade_reads_shared_pages_once(void) {
  pagedkv_attention_config config = one_head();
  config.page_size = 256;
  const int32_t kv_indptr[] = {0, 5, 10}, indices[] = {0, 1, 2, 3, 4, 0, 1, 2, 3, 5}, last[] = {10, 10};
  const pagedkv_attention_batch batch = decode_two(kv_indptr, indices, last);
  uint64_t bytes[3];
  for (int way = 0; way < 3; ++way) {
    config.cascade = way == 1;
    config.attention_flags = way == 2 ? PAGEDKV_CASCADE : 0;
    pagedkv_plan plan = 0;
    OK(pagedkv_plan_create(&config, &batch, NULL, 0, &plan));
    OK(pagedkv_plan_kv_bytes(plan, &bytes[way]));
    OK(pagedkv_plan_close(plan));
  }
  CHECK(bytes[0] / (2 * 1034) * (1024 + 20) == bytes[1] && bytes[2] == bytes[1]);
}

static void test_workspace_and_cascade(void) {
  pagedkv_attention_config config = one_head();
  const int32_t kv_indptr[] = {0, 2, 5}, indices[] = {0, 1, 0, 1, 2}, last[] = {4, 2};
  const pagedkv_attention_batch batch = decode_two(kv_indptr, indices, last);
  const pagedkv_kv_view pages = pages_of_zeros();
  const float q[2 * kDim] = {1, 1, 1, 1};
  for (config.cascade = 0; config.cascade < 2; ++config.cascade) {
    size_t needed = 0;
    OK(pagedkv_plan_workspace_bytes(&config, &batch, &needed));
    char* const memory = aligned_alloc(64, (needed / 64 + 1) * 64);
    if (memory == NULL) abort();
    pagedkv_plan plan = 0;
    float result[2 * kDim];
    OK(pagedkv_plan_create(&config, &batch, memory, needed, &plan));
    OK(pagedkv_plan_run(plan, &pages, in(q, 2 * kDim), out(result, 2 * kDim), NULL, 0));
    CHECK(fabsf(result[0] - 3.5F) < 1e-5F && fabsf(result[kDim] - 4.5F) < 1e-5F);
    OK(pagedkv_plan_close(plan));
    if (needed > 0) {
      CHECK_STATUS(pagedkv_plan_create(&config, &batch, memory, needed - 1, &plan), PAGEDKV_INVALID_ARGUMENT);
    }
    CHECK_STATUS(pagedkv_plan_create(&config, &batch, memory + 1, needed, &plan), PAGEDKV_INVALID_ARGUMENT);
    CHECK_STATUS(pagedkv_plan_create(&config, &batch, NULL, needed, &plan), PAGEDKV_INVALID_ARGUMENT);
    free(memory);
  }
}

void test_plans(void) {
  test_masks();
  test_variants();
  test_f16_as_bf16();
  test_extend();
  test_cascade_reads_shared_pages_once();
  test_workspace_and_cascade();
}
