// A consumer's program: opens a cache, runs one step, and says what it linked.
#include <cstdio>
#include <vector>

#include "pagedkv/pagedkv.h"

// Private dependencies stay private: what pagedkv is compiled with never reaches a consumer's compiler.
#if defined(HWY_SHARED_DEFINE) || defined(XXH_INLINE_ALL) || defined(PAGEDKV_HARDENED)
#error "pagedkv hands compile definitions of its own to its consumers"
#endif

int main() {
  const auto policy = pagedkv::make_s3fifo_policy();  // a function outside of every class is exported, too
  if (!policy || !pagedkv::make_lru_policy() || !pagedkv::make_arc_policy()) return 1;
  auto cache = pagedkv::KvCache::create(
      {.shape = {.num_layers = 1, .num_q_heads = 2, .num_kv_heads = 1, .head_dim = 8, .dtype = pagedkv::DType::f32},
       .capacity_pages = 4,
       .prefix = {.policy = *policy}});
  if (!cache) return std::puts(cache.error().what), 1;
  auto sequence = cache->open();
  if (!sequence) return std::puts(sequence.error().what), 1;
  std::vector<float> k(3 * 8, 1), v(3 * 8, 2), q(3 * 2 * 8, 1), out(3 * 2 * 8);
  auto step = cache->begin_step({{&*sequence, 3}});
  if (!step || !step->write(0, k, v) || !step->attend(0, q, out) || !step->commit()) return 1;
  if (sequence->num_tokens() != 3 || out.front() != 2 || out.back() != 2) return 1;
  std::printf("pagedkv %s: %zu tokens\n", pagedkv::version(), static_cast<std::size_t>(sequence->num_tokens()));
}
