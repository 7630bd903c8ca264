// Cuts rows out of a bank of random elements and sums up outputs.
#include "replay/attention_load.h"

#include <bit>
#include <cmath>
#include <cstring>

namespace pagedkv::tool {
namespace {

constexpr std::size_t kBankElements = 1 << 20;
enum : std::uint64_t { kQueryRows = 1, kKeyRows = 2, kValueRows = 3 };

/// Uniform in [-1, 1), from bits.
float uniform(std::uint64_t bits) { return static_cast<float>(static_cast<double>(bits >> 40) * 0x1p-23 - 1); }

/// Any finite element will do, so truncation is good enough: bf16 keeps the upper half, f16 gets 2^-1 .. 2^0.
std::uint16_t to_16_bits(float value, DType dtype, std::uint64_t bits) {
  if (dtype == DType::bf16) return static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(value) >> 16);
  return static_cast<std::uint16_t>((value < 0 ? 0x8000u : 0u) | 0x3800u | (bits & 0x3FFu));
}

}  // namespace

AttentionLoad::AttentionLoad(const AttentionShape& shape, std::uint32_t max_seqs)
    : shape_(shape),
      q_row_(std::size_t{shape.q_heads} * shape.head_dim),
      kv_row_(std::size_t{shape.kv_heads} * shape.head_dim),
      owners_(max_seqs) {
  const std::size_t num_elements = kBankElements + q_row_;
  for (std::size_t i = 0; i < num_elements; ++i) {
    const std::uint64_t bits = scatter(i + 1);
    const float value = uniform(bits);
    if (shape.dtype == DType::f32) {
      bank32_.push_back(value);
    } else {
      bank16_.push_back(to_16_bits(value, shape.dtype, bits));
    }
  }
}

void AttentionLoad::open(SequenceKey key, const Demand& demand) {
  owners_[key] = {RequestTokens(*demand.request), demand.request->number, demand.total_tokens};
}

void AttentionLoad::begin_step(std::span<const NewTokens> parts) {
  tokens_.clear();
  for (const NewTokens& part : parts) {
    const std::size_t at = tokens_.size();
    tokens_.resize(at + part.count);
    owners_[part.key].tokens.expand(part.begin, std::span(tokens_).subspan(at));
  }
  q_.resize(tokens_.size() * q_row_ * size_of(shape_.dtype));
  k_.resize(tokens_.size() * kv_row_ * size_of(shape_.dtype));
  v_.resize(k_.size());
  out_.resize(tokens_.size() * q_row_);
}

void AttentionLoad::fill(std::uint32_t layer) {
  const std::size_t element = size_of(shape_.dtype);
  const auto* bank = shape_.dtype == DType::f32 ? static_cast<const void*>(bank32_.data()) : bank16_.data();
  const auto cut = [&](std::uint64_t kind, Token token, std::byte* row, std::size_t num_elements) {
    const std::uint64_t stream = static_cast<std::uint64_t>(token) << 32 | std::uint64_t{layer} << 2 | kind;
    const std::size_t begin = scatter(stream) % kBankElements;
    std::memcpy(row, static_cast<const std::byte*>(bank) + begin * element, num_elements * element);
  };
  for (std::size_t i = 0; i < tokens_.size(); ++i) {
    cut(kQueryRows, tokens_[i], &q_[i * q_row_ * element], q_row_);
    cut(kKeyRows, tokens_[i], &k_[i * kv_row_ * element], kv_row_);
    cut(kValueRows, tokens_[i], &v_[i * kv_row_ * element], kv_row_);
  }
}

ConstTensor AttentionLoad::q() const { return {q_.data(), tokens_.size() * q_row_, shape_.dtype}; }
ConstTensor AttentionLoad::k() const { return {k_.data(), tokens_.size() * kv_row_, shape_.dtype}; }
ConstTensor AttentionLoad::v() const { return {v_.data(), tokens_.size() * kv_row_, shape_.dtype}; }
Tensor AttentionLoad::out() { return std::span<float>(out_); }

void AttentionLoad::took(std::uint32_t layer, std::span<const NewTokens> parts, std::chrono::nanoseconds time,
                         MemoryTotals& totals) {
  totals.attention_s += std::chrono::duration<double>(time).count();
  std::size_t row = 0;
  for (const NewTokens& part : parts) {
    row += part.count;
    const Owner& owner = owners_[part.key];
    const std::uint64_t held = part.begin + part.count;
    totals.attention_kv_bytes += held * shape_.bytes_per_token() / shape_.layers;
    if (held != owner.total_tokens) continue;
    std::uint64_t hash = scatter(owner.number << 16 | layer);
    for (const float value : std::span(out_).subspan((row - 1) * q_row_, q_row_)) {
      hash = scatter(hash + std::bit_cast<std::uint32_t>(value));
    }
    totals.output_checksum += hash;
  }
}

}  // namespace pagedkv::tool
