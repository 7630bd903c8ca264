// A server's loop in miniature: admit, prefill, decode, branch, and what to do when pages run out.
#include <cstdint>
#include <cstdio>
#include <vector>

#include "pagedkv/kv_cache.h"

namespace {

constexpr std::uint32_t kLayers = 2, kQHeads = 8, kKvHeads = 2, kHeadDim = 64;

/// Stands for the model: computes q, k and v of the new tokens of a layer. Here they are constants.
struct Layer {
  std::vector<float> q, k, v, out;
  explicit Layer(std::size_t rows)
      : q(rows * kQHeads * kHeadDim, 0.1f), k(rows * kKvHeads * kHeadDim, 0.2f), v(k), out(q.size()) {}
};

/// Runs one batch through all layers.
pagedkv::Result<void> forward(pagedkv::Step& step) {
  Layer layer(step.num_rows());
  for (std::uint32_t l = 0; l < kLayers; ++l) {
    if (auto done = step.write(l, layer.k, layer.v); !done) return done;
    if (auto done = step.attend(l, layer.q, layer.out); !done) return done;  // out: [rows][q heads][head_dim]
  }
  return step.commit();
}

int fail(const pagedkv::Error& error) {
  std::fprintf(stderr, "%s: %s\n", pagedkv::to_string(error.code), error.what);
  return 1;
}

}  // namespace

int main() {
  auto cache = pagedkv::KvCache::create({.shape = {.num_layers = kLayers,
                                                   .num_q_heads = kQHeads,
                                                   .num_kv_heads = kKvHeads,
                                                   .head_dim = kHeadDim,
                                                   .dtype = pagedkv::DType::bf16},
                                         .page_size = 16,
                                         .capacity_bytes = 1u << 20});
  if (!cache) return fail(cache.error());

  // Admission: ask before acting.
  const std::vector<pagedkv::Token> prompt(37, 1);
  if (!cache->can_admit(prompt.size(), /*max_new_tokens=*/100)) return std::puts("wait"), 1;
  auto chat = cache->open(prompt);
  if (!chat) return fail(chat.error());

  // Prefill: the tokens of the prompt that the prefix cache does not hold, in one step. A scheduler may cut it into
  // chunks.
  const auto new_tokens = static_cast<std::uint32_t>(prompt.size() - chat->num_tokens());
  auto prefill = cache->begin_step({{&*chat, new_tokens}});
  if (!prefill) return fail(prefill.error());
  if (auto done = forward(*prefill); !done) return fail(done.error());

  // Two answers to one prompt share its pages; the last, half-full one is copied when they part ways.
  auto branch = chat->fork();
  if (!branch) return fail(branch.error());
  for (int token = 0; token < 20; ++token) {
    auto decode = cache->begin_step({{&*chat, 1}, {&*branch, 1}});
    if (!decode && decode.error() == pagedkv::Errc::kOutOfPages) {
      (void)branch->close();  // preempt somebody; every sequence is as it was before the step
      continue;
    }
    if (!decode) return fail(decode.error());
    if (auto done = forward(*decode); !done) return fail(done.error());
  }

  const pagedkv::CacheStats stats = cache->stats();
  std::printf(
      "%llu + %llu tokens in %llu pages of %llu bytes, %llu of them shared\n",
      static_cast<unsigned long long>(chat->num_tokens()), static_cast<unsigned long long>(branch->num_tokens()),
      static_cast<unsigned long long>(stats.pool.used_pages), static_cast<unsigned long long>(cache->page_bytes()),
      static_cast<unsigned long long>(stats.pool.shared_pages));
}
