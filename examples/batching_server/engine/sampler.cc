// Penalties, temperature, top-k, top-p, one random number.
#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace serving {
namespace {

// A number in [0, 1) from a counter: SplitMix64's finaliser over seed, sample and position.
double uniform(std::uint64_t seed, std::uint64_t sample, std::uint64_t position) {
  std::uint64_t z = seed * 0x9E3779B97F4A7C15ULL + sample * 0xD1B54A32D192ED03ULL + position * 0x8CB92BA72F3D8DD7ULL;
  for (int round = 0; round < 2; ++round) {
    z += 0x9E3779B97F4A7C15ULL;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    z ^= z >> 31;
  }
  return static_cast<double>(z >> 11) * 0x1p-53;
}

double log_sum_exp(std::span<const float> logits) noexcept {
  const double largest = *std::ranges::max_element(logits);
  double sum = 0;
  for (float logit : logits) sum += std::exp(static_cast<double>(logit) - largest);
  return largest + std::log(sum);
}

// Token ids, most likely first, as many as may be drawn.
std::vector<Token> most_likely(std::span<const float> logits, std::size_t count) {
  std::vector<Token> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  count = std::min(count, order.size());
  const auto likelier = [&](Token a, Token b) {
    const float x = logits[static_cast<std::size_t>(a)], y = logits[static_cast<std::size_t>(b)];
    return x > y || (x == y && a < b);
  };
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), order.end(), likelier);
  order.resize(count);
  return order;
}

void apply_penalties(std::span<float> logits, const SamplingParams& params, std::span<const Token> generated) {
  for (const auto& [token, bias] : params.logit_bias) {
    if (token >= 0 && static_cast<std::size_t>(token) < logits.size()) logits[static_cast<std::size_t>(token)] += bias;
  }
  if (params.presence_penalty == 0 && params.frequency_penalty == 0) return;
  std::vector<Token> seen(generated.begin(), generated.end());
  std::ranges::sort(seen);
  for (std::size_t i = 0; i < seen.size();) {
    const auto same = std::upper_bound(seen.begin(), seen.end(), seen[i]) - seen.begin();
    const auto times = static_cast<float>(static_cast<std::size_t>(same) - i);
    logits[static_cast<std::size_t>(seen[i])] -= params.presence_penalty + params.frequency_penalty * times;
    i = static_cast<std::size_t>(same);
  }
}

// Draws from softmax(logits / temperature), without sorting a vocabulary.
Token draw_from_all(std::span<const float> logits, float temperature, double random) {
  const double best = *std::ranges::max_element(logits);
  std::vector<double> sums(logits.size());
  double total = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) sums[i] = total += std::exp((logits[i] - best) / temperature);
  const auto hit = std::ranges::upper_bound(sums, random * total);
  return static_cast<Token>(std::min<std::ptrdiff_t>(hit - sums.begin(), std::ssize(sums) - 1));
}

// Draws from softmax(logits / temperature), cut to the top k tokens and the top p share.
Token draw(std::span<const float> logits, const SamplingParams& params, double random) {
  const std::size_t limit = params.top_k > 0 ? params.top_k : logits.size();
  if (limit >= logits.size() && params.top_p >= 1) return draw_from_all(logits, params.temperature, random);
  const std::vector<Token> order = most_likely(logits, limit);
  std::vector<double> weights(order.size());
  const double best = logits[static_cast<std::size_t>(order[0])];
  double total = 0;
  for (std::size_t i = 0; i < order.size(); ++i) {
    weights[i] = std::exp((logits[static_cast<std::size_t>(order[i])] - best) / params.temperature);
    total += weights[i];
  }
  double kept = 0;
  std::size_t count = 0;
  while (count < order.size() && (count == 0 || kept < params.top_p * total)) kept += weights[count++];
  double left = random * kept;
  for (std::size_t i = 0; i < count; ++i) {
    left -= weights[i];
    if (left < 0) return order[i];
  }
  return order[count - 1];
}

}  // namespace

Token argmax(std::span<const float> logits) noexcept {
  return static_cast<Token>(std::ranges::max_element(logits) - logits.begin());
}

void log_softmax(std::span<float> logits) noexcept {
  const double total = log_sum_exp(logits);
  for (float& logit : logits) logit = static_cast<float>(logit - total);
}

Sampled sample_token(std::span<const float> raw, const SamplingParams& params, std::span<const Token> generated,
                     std::uint32_t sample_index) {
  std::vector<float> logits(raw.begin(), raw.end());
  apply_penalties(logits, params, generated);
  const Token token = params.temperature <= 0
                          ? argmax(logits)
                          : draw(logits, params, uniform(params.seed, sample_index, generated.size()));
  Sampled sampled{{token, 0}, {}};
  if (!params.wants_logprob) return sampled;
  const auto total = static_cast<float>(log_sum_exp(raw));
  sampled.chosen.logprob = raw[static_cast<std::size_t>(token)] - total;
  for (Token likely : most_likely(raw, params.num_logprobs)) {
    sampled.most_likely.push_back({likely, raw[static_cast<std::size_t>(likely)] - total});
  }
  return sampled;
}

}  // namespace serving
