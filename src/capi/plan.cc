// The C functions of AttentionPlan, write_kv and merge_states.
#include "capi/convert.h"
#include "capi/handles.h"

using namespace pagedkv;
using namespace pagedkv::capi;

namespace {

Result<AttentionConfig> read_config(const pagedkv_attention_config* given) noexcept {
  const Result<pagedkv_attention_config> known = read_sized(given);
  if (!known) return known.error();
  Checks checks;
  AttentionConfig config;
  config.num_q_heads = known->num_q_heads;
  config.num_kv_heads = known->num_kv_heads;
  config.head_dim = known->head_dim;
  config.v_head_dim = known->v_head_dim;
  if (known->page_size != 0) config.page_size = known->page_size;
  config.kv_dtype = checks.dtype(known->kv_dtype);
  config.variant = checks.variant(known->variant, known->attention_flags);
  config.target = checks.text(known->target);
  config.cascade = known->cascade != 0 || (known->attention_flags & PAGEDKV_CASCADE) != 0;
  if (checks.failed()) return checks.error();
  return config;
}

Result<AttentionBatch> read_batch(const pagedkv_attention_batch* given) noexcept {
  const Result<pagedkv_attention_batch> known = read_sized(given);
  if (!known) return known.error();
  Checks checks;
  AttentionBatch batch;
  batch.qo_indptr = checks.span(known->qo_indptr, known->num_qo_indptr);
  batch.kv_indptr = checks.span(known->kv_indptr, known->num_kv_indptr);
  batch.kv_indices = checks.span(known->kv_indices, known->num_kv_indices);
  batch.kv_last_page_len = checks.span(known->kv_last_page_len, known->num_kv_last_page_len);
  batch.block_table = checks.span(known->block_table, known->num_block_table);
  batch.block_table_stride = known->block_table_stride;
  batch.seq_lens = checks.span(known->seq_lens, known->num_seq_lens);
  batch.q_start = checks.span(known->q_start, known->num_q_start);
  if (known->mask_kind > PAGEDKV_MASK_BITS) checks.fail({Errc::kInvalidArgument, "mask_kind is unknown"});
  batch.mask.kind = static_cast<MaskKind>(known->mask_kind > PAGEDKV_MASK_BITS ? 0 : known->mask_kind);
  batch.mask.bytes = checks.span(static_cast<const std::byte*>(known->mask), known->mask_bytes);
  batch.mask.offsets = checks.span(known->mask_offsets, known->num_mask_offsets);
  batch.mask.row_strides = checks.span(known->mask_row_strides, known->num_mask_row_strides);
  batch.mask.head_strides = checks.span(known->mask_head_strides, known->num_mask_head_strides);
  if (checks.failed()) return checks.error();
  return batch;
}

}  // namespace

pagedkv_status pagedkv_plan_workspace_bytes(const pagedkv_attention_config* config,
                                            const pagedkv_attention_batch* batch, size_t* bytes) {
  if (bytes == nullptr) return report(kNullArgument);
  const Result<AttentionConfig> layer = read_config(config);
  if (!layer) return report(layer.error());
  const Result<AttentionBatch> ragged = read_batch(batch);
  if (!ragged) return report(ragged.error());
  const Result<std::size_t> needed = AttentionPlan::workspace_bytes(*layer, *ragged);
  if (!needed) return report(needed.error());
  *bytes = *needed;
  return PAGEDKV_OK;
}

pagedkv_status pagedkv_plan_create(const pagedkv_attention_config* config, const pagedkv_attention_batch* batch,
                                   void* workspace, size_t workspace_bytes, pagedkv_plan* plan) {
  if (plan == nullptr) return report(kNullArgument);
  const Result<AttentionConfig> layer = read_config(config);
  if (!layer) return report(layer.error());
  const Result<AttentionBatch> ragged = read_batch(batch);
  if (!ragged) return report(ragged.error());
  const Result<std::span<std::byte>> memory = span_of(static_cast<std::byte*>(workspace), workspace_bytes);
  if (!memory) return report(memory.error());
  return report(give<PlanTable>(plan, [&] { return AttentionPlan::create(*layer, *ragged, *memory); }));
}

pagedkv_status pagedkv_plan_extend(pagedkv_plan plan, const pagedkv_attention_batch* batch) {
  return with<PlanTable>(plan, [&](AttentionPlan& object) -> Result<void> {
    const Result<AttentionBatch> ragged = read_batch(batch);
    return ragged ? object.extend(*ragged) : ragged.error();
  });
}

pagedkv_status pagedkv_plan_run(pagedkv_plan plan, const pagedkv_kv_view* pages, pagedkv_const_tensor q,
                                pagedkv_tensor out, float* lse, size_t num_lse) {
  return pagedkv_plan_run_with_sinks(plan, pages, q, out, lse, num_lse, nullptr, 0);
}

pagedkv_status pagedkv_plan_run_with_sinks(pagedkv_plan plan, const pagedkv_kv_view* pages, pagedkv_const_tensor q,
                                           pagedkv_tensor out, float* lse, size_t num_lse, const float* sinks,
                                           size_t num_sinks) {
  if (pages == nullptr) return report(kNullArgument);
  return with<PlanTable>(plan, [&](AttentionPlan& object) -> Result<void> {
    Checks checks;
    const ConstTensor queries = checks.tensor(q);
    const Tensor output = checks.tensor(out);
    const std::span<float> sums = checks.span(lse, num_lse);
    const std::span<const float> of_layer = checks.span(sinks, num_sinks);
    return checks.failed() ? checks.error() : object.run(view_of(*pages), queries, output, sums, of_layer);
  });
}

pagedkv_status pagedkv_plan_num_rows(pagedkv_plan plan, size_t* num_rows) {
  return ask<PlanTable>(plan, num_rows, [](AttentionPlan& object) { return object.num_rows(); });
}
pagedkv_status pagedkv_plan_target(pagedkv_plan plan, const char** name) {
  return ask<PlanTable>(plan, name, [](AttentionPlan& object) { return object.target(); });
}
pagedkv_status pagedkv_plan_kv_bytes(pagedkv_plan plan, uint64_t* bytes) {
  return ask<PlanTable>(plan, bytes, [](AttentionPlan& object) { return object.kv_bytes(); });
}
pagedkv_status pagedkv_plan_flops(pagedkv_plan plan, double* flops) {
  return ask<PlanTable>(plan, flops, [](AttentionPlan& object) { return object.flops(); });
}
pagedkv_status pagedkv_plan_close(pagedkv_plan plan) { return capi::close<PlanTable>(plan); }

pagedkv_status pagedkv_write_kv(const pagedkv_attention_config* config, const pagedkv_kv_view* pages,
                                const int64_t* slots, size_t num_slots, pagedkv_const_tensor k,
                                pagedkv_const_tensor v) {
  if (pages == nullptr) return report(kNullArgument);
  const Result<AttentionConfig> layer = read_config(config);
  if (!layer) return report(layer.error());
  Checks checks;
  const std::span<const std::int64_t> places = checks.span(slots, num_slots);
  const ConstTensor keys = checks.tensor(k), values = checks.tensor(v);
  if (checks.failed()) return report(checks.error());
  KvWriteView view;
  view.k = const_cast<void*>(pages->k);  // the caller says that they are writable
  view.v = const_cast<void*>(pages->v);
  view.k_page_stride = pages->k_page_stride;
  view.k_head_stride = pages->k_head_stride;
  view.k_token_stride = pages->k_token_stride;
  view.v_page_stride = pages->v_page_stride;
  view.v_head_stride = pages->v_head_stride;
  view.v_token_stride = pages->v_token_stride;
  view.num_pages = pages->num_pages;
  return report(write_kv(*layer, view, places, keys, values));
}

pagedkv_status pagedkv_merge_states(float* out_a, float* lse_a, const float* out_b, const float* lse_b, size_t rows,
                                    size_t dim) {
  size_t count = 0;
  if (__builtin_mul_overflow(rows, dim, &count)) {
    return report(Error{Errc::kInvalidArgument, "the count of an array is absurd"});
  }
  Checks checks;
  const std::span<float> a = checks.span(out_a, count), sums_a = checks.span(lse_a, rows);
  const std::span<const float> b = checks.span(out_b, count), sums_b = checks.span(lse_b, rows);
  return report(checks.failed() ? checks.error() : merge_states(a, sums_a, b, sums_b));
}
