// Makes the objects behind the C interface and asks them.
#include "faults/c_api_world.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace pagedkv::testing {
namespace {

constexpr std::size_t kMaxRows = 256, kPlanPages = 4;
constexpr std::array<std::int32_t, kPlanPages> kTable{0, 1, 2, 3};
constexpr std::array<std::int32_t, 2> kOneRow{0, 1};

/// [kMaxRows][kDim], no two rows alike.
const std::vector<float>& all_rows() {
  static const std::vector<float> rows = [] {
    std::vector<float> made(kMaxRows * kDim);
    for (std::size_t i = 0; i < made.size(); ++i) made[i] = static_cast<float>(i % 251) / 64;
    return made;
  }();
  return rows;
}

void must(pagedkv_status status) { ASSERT_EQ(status, PAGEDKV_OK) << pagedkv_last_error(); }

std::string bytes_of(const void* data, std::size_t size) { return {static_cast<const char*>(data), size}; }

/// The status of a question and what it wrote.
template <class T>
std::string answer(pagedkv_status status, const T& written) {
  return std::to_string(status) + ':' + bytes_of(&written, sizeof written);
}
template <class T, class Function, class... Arguments>
std::string ask(Function function, Arguments... arguments) {
  T written{};
  if constexpr (requires { written.struct_size; }) written.struct_size = sizeof written;
  const pagedkv_status status = function(arguments..., &written);
  return answer(status, written);
}

/// Length, tokens and pages of a sequence, and how often each page is held.
std::string state_of(pagedkv_sequence sequence, pagedkv_pool pool) {
  std::array<std::int32_t, 64> pages{}, tokens{};
  std::size_t num_pages = 0, num_tokens = 0;
  std::string state = ask<std::uint64_t>(pagedkv_sequence_num_tokens, sequence) +
                      ask<std::uint64_t>(pagedkv_sequence_cached_tokens, sequence);
  const pagedkv_status listed = pagedkv_sequence_pages(sequence, 0, pages.data(), pages.size(), &num_pages);
  state += answer(listed, pages);
  state += answer(pagedkv_sequence_tokens(sequence, tokens.data(), tokens.size(), &num_tokens), tokens);
  for (std::size_t i = 0; i < num_pages; ++i) state += ask<std::uint32_t>(pagedkv_pool_ref_count, pool, pages[i]);
  return state;
}

/// The bytes of the pages of a sequence.
std::string rows_of(pagedkv_sequence sequence, pagedkv_pool pool) {
  std::array<std::int32_t, 64> pages{};
  std::size_t num_pages = 0;
  std::uint64_t page_bytes = 0;
  (void)pagedkv_sequence_pages(sequence, 0, pages.data(), pages.size(), &num_pages);
  (void)pagedkv_pool_memory(pool, nullptr, &page_bytes, nullptr);
  std::string rows;
  for (std::size_t i = 0; i < num_pages; ++i) {
    void* data = nullptr;
    if (pagedkv_pool_page_data(pool, pages[i], &data) == PAGEDKV_OK) rows += bytes_of(data, page_bytes);
  }
  return rows;
}

}  // namespace

pagedkv_const_tensor World::rows(std::size_t num_rows) { return {all_rows().data(), num_rows * kDim, PAGEDKV_F32}; }
pagedkv_tensor World::output(std::size_t num_rows) { return {output_.data(), num_rows * kDim, PAGEDKV_F32}; }

pagedkv_cache_options World::cache_options() {
  pagedkv_cache_options options{};
  options.struct_size = sizeof options;
  options.num_layers = kLayers;
  options.num_q_heads = options.num_kv_heads = 1;
  options.head_dim = kDim;
  options.page_size = kPageSize;
  options.capacity_pages = 2048;
  options.max_capacity_pages = 4096;
  options.event_capacity = 16;
  return options;
}

pagedkv_open_options World::open_options() {
  static constexpr pagedkv_retention kFirstTokens{0, 4, 50, 1000};
  pagedkv_open_options options{};
  options.struct_size = sizeof options;
  options.cache_salt = {"tenant of a name too long to be kept in place", 45};
  options.extra_key = {"adapter of a name too long to be kept in place", 46};
  options.retention = &kFirstTokens;
  options.num_retention = 1;
  return options;
}

pagedkv_pool_options World::pool_options() {
  pagedkv_pool_options options{};
  options.struct_size = sizeof options;
  options.page_bytes = 4096;
  options.capacity_pages = 16;
  options.max_capacity_pages = 4096;
  return options;
}

pagedkv_dense_options World::dense_options() {
  pagedkv_dense_options options{};
  options.struct_size = sizeof options;
  options.batch_size = 2;
  options.num_layers = kLayers;
  options.num_heads = 1;
  options.head_dim = kDim;
  options.max_seq_len = 64;
  options.page_size = kPageSize;
  return options;
}

pagedkv_attention_config World::plan_config() {
  pagedkv_attention_config config{};
  config.struct_size = sizeof config;
  config.num_q_heads = config.num_kv_heads = 1;
  config.head_dim = kDim;
  config.page_size = kPageSize;
  return config;
}

pagedkv_attention_batch World::batch(const std::int32_t& seq_len) {
  pagedkv_attention_batch batch{};
  batch.struct_size = sizeof batch;
  batch.qo_indptr = kOneRow.data();
  batch.num_qo_indptr = kOneRow.size();
  batch.block_table = kTable.data();
  batch.num_block_table = kTable.size();
  batch.block_table_stride = kPlanPages;
  batch.seq_lens = &seq_len;
  batch.num_seq_lens = 1;
  return batch;
}

pagedkv_kv_view World::view() {
  constexpr std::int64_t kRow = kDim * sizeof(float), kPage = kRow * kPageSize;
  const float* const rows = all_rows().data();
  return {rows, rows, kPage, kPage, kRow, kPage, kPage, kRow, kPlanPages};
}

pagedkv_status World::keep(pagedkv_status (*close)(std::uint64_t), pagedkv_status status) {
  if (status == PAGEDKV_OK) made_.emplace_back(close, result);
  return status;
}

void World::open_others() {
  for (pagedkv_sequence* const sequence : {&prompt, &branch}) {
    made_.emplace_back(pagedkv_sequence_close, *sequence);
    must(pagedkv_cache_open(cache, nullptr, 0, nullptr, sequence));
  }
}

World::World() : output_(kMaxRows * kDim) {
  made_.reserve(4096);  // `keep` is called while allocations fail
  const pagedkv_cache_options of_cache = cache_options();
  const pagedkv_open_options opened = open_options();
  must(pagedkv_cache_create(&of_cache, &cache));
  must(pagedkv_cache_pool(cache, &pool_of_cache));
  must(pagedkv_cache_open(cache, kPromptTokens.data(), kPromptTokens.size(), &opened, &prompt));
  must(pagedkv_cache_open(cache, nullptr, 0, nullptr, &in_step));
  for (const auto& [sequence, count] : {std::pair{prompt, 5U}, std::pair{in_step, 3U}}) {
    const pagedkv_step_item item{sequence, count, nullptr, 0};
    must(pagedkv_cache_begin_step(cache, &item, 1, &step));
    for (std::uint32_t layer = 0; layer < kLayers; ++layer) {
      must(pagedkv_step_write(step, layer, rows(count), rows(count)));
    }
    if (sequence != prompt) continue;
    must(pagedkv_step_commit(step));
    must(pagedkv_step_close(step));
  }
  must(pagedkv_sequence_fork(prompt, &branch));
  must(pagedkv_cache_pin(cache, kPromptTokens.data(), kPromptTokens.size(), &opened, &pin));

  const pagedkv_pool_options of_pool = pool_options();
  must(pagedkv_pool_create(&of_pool, &pool));
  must(pagedkv_pool_allocate(pool, pages.data(), pages.size()));
  must(pagedkv_store_create(pool, kPageSize, nullptr, 0, &store));
  must(pagedkv_store_open(store, &stored));
  must(pagedkv_sequence_append(stored, 3));

  const pagedkv_attention_config config = plan_config();
  const std::int32_t seq_len = 3;
  const pagedkv_attention_batch one = batch(seq_len);
  must(pagedkv_plan_create(&config, &one, nullptr, 0, &plan));

  const pagedkv_dense_options of_dense = dense_options();
  must(pagedkv_dense_create(&of_dense, &dense));
  for (std::uint32_t layer = 0; layer < kLayers; ++layer) {
    must(pagedkv_dense_update(dense, layer, rows(2 * 3), rows(2 * 3), nullptr));
  }
  interleaved = kvcache_create(kMaxRows, kDim);
  must(kvcache_append(interleaved, all_rows().data(), all_rows().data(), 3));
}

World::~World() {
  std::reverse(made_.begin(), made_.end());
  for (const auto& [close, handle] : made_) (void)close(handle);
  (void)pagedkv_step_close(step);
  for (const pagedkv_sequence sequence : {prompt, branch, in_step, stored}) (void)pagedkv_sequence_close(sequence);
  (void)pagedkv_plan_close(plan);
  (void)pagedkv_dense_close(dense);
  kvcache_free(interleaved);
  (void)pagedkv_store_close(store);
  for (const pagedkv_pool one : {pool, pool_of_cache}) (void)pagedkv_pool_close(one);
  (void)pagedkv_cache_close(cache);
}

Snapshot World::snapshot() {
  Snapshot now;
  now["cache"] = ask<pagedkv_cache_stats>(pagedkv_cache_get_stats, cache);
  now["pool of the cache"] = ask<pagedkv_pool_stats>(pagedkv_pool_get_stats, pool_of_cache);
  now["pool"] = ask<pagedkv_pool_stats>(pagedkv_pool_get_stats, pool);
  for (const std::int32_t page : pages) now["pool"] += ask<std::uint32_t>(pagedkv_pool_ref_count, pool, page);
  now["store"] = ask<std::uint64_t>(pagedkv_store_open_sequences, store);
  now["prompt"] = state_of(prompt, pool_of_cache) + rows_of(prompt, pool_of_cache);
  now["branch"] = state_of(branch, pool_of_cache) + rows_of(branch, pool_of_cache);
  now["sequence in a step"] = state_of(in_step, pool_of_cache) + rows_of(in_step, pool_of_cache);
  now["sequence of the store"] = state_of(stored, pool);
  now["step"] = ask<std::size_t>(pagedkv_step_num_rows, step) + ask<std::size_t>(pagedkv_step_num_items, step);
  now["plan"] = ask<std::size_t>(pagedkv_plan_num_rows, plan) + ask<std::uint64_t>(pagedkv_plan_kv_bytes, plan) +
                ask<double>(pagedkv_plan_flops, plan);
  const pagedkv_kv_view pages_of_plan = view();
  std::array<float, kDim> row{};
  now["plan"] +=
      answer(pagedkv_plan_run(plan, &pages_of_plan, rows(1), {row.data(), kDim, PAGEDKV_F32}, nullptr, 0), row);
  pagedkv_pool_stats of_dense{};
  of_dense.struct_size = sizeof of_dense;
  const pagedkv_status told = pagedkv_dense_get_stats(dense, &of_dense);
  // What happened stays counted: attention that fails has had its pages, and gave them back.
  of_dense.allocations = of_dense.peak_used_pages = of_dense.committed_bytes = 0;
  now["dense"] = answer(told, of_dense);
  for (std::uint32_t layer = 0; layer < kLayers; ++layer) {
    std::uint64_t length = 0;
    now["dense"] += answer(pagedkv_dense_seq_length(dense, layer, &length), length);
    std::vector<float> k(2 * length * kDim), v(k);
    (void)pagedkv_dense_copy(dense, layer, {k.data(), k.size(), PAGEDKV_F32}, {v.data(), v.size(), PAGEDKV_F32});
    now["dense"] += bytes_of(k.data(), k.size() * sizeof(float)) + bytes_of(v.data(), v.size() * sizeof(float));
  }
  const std::int64_t held = kvcache_len(interleaved);
  now["interleaved"] = std::to_string(held);
  if (held > 0) {
    now["interleaved"] +=
        bytes_of(kvcache_rows(interleaved), static_cast<std::size_t>(held) * 2 * kDim * sizeof(float));
  }
  return now;
}

}  // namespace pagedkv::testing
