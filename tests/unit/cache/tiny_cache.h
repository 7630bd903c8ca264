// A cache of two layers and rows of four elements, and steps that fill it with numbers a test can predict.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "pagedkv/kv_cache.h"

namespace pagedkv {

inline constexpr std::uint32_t kPageSize = 4;

inline KvCacheOptions tiny(std::uint64_t capacity_pages) {
  return {.shape = {.num_layers = 2, .num_q_heads = 2, .num_kv_heads = 1, .head_dim = 4, .dtype = DType::f32},
          .page_size = kPageSize,
          .capacity_pages = capacity_pages};
}

inline KvCache tiny_cache(std::uint64_t capacity_pages) { return KvCache::create(tiny(capacity_pages)).value(); }

/// Writes rows of K and V that are all `value`, into every layer.
inline void write_all(Step& step, float value) {
  const std::vector<float> rows(step.num_rows() * 4, value);
  for (std::uint32_t layer = 0; layer < 2; ++layer) ASSERT_TRUE(step.write(layer, rows, rows));
}

/// Begins a step of one sequence, writes `value`, and commits `accepted` of its rows (all by default).
inline void feed(KvCache& cache, Sequence& sequence, std::uint32_t num_tokens, float value) {
  Step step = cache.begin_step({{&sequence, num_tokens}}).value();
  write_all(step, value);
  ASSERT_TRUE(step.commit());
}

/// First K element of a token.
inline float k_of(const KvCache& cache, const Sequence& sequence, std::uint64_t token, std::uint32_t layer = 1) {
  const KvView view = cache.view(layer).value();
  const auto* base = static_cast<const std::byte*>(view.k);
  const std::int64_t page = to_index(sequence.pages()[token / kPageSize]);
  const auto offset = static_cast<std::int64_t>(token % kPageSize) * view.k_token_stride;
  return *reinterpret_cast<const float*>(base + page * view.k_page_stride + offset);
}

}  // namespace pagedkv
